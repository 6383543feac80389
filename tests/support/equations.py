"""Parts of the model written out in NumPy float64, head by head, and modules with random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import erf

from fusmae_jax.models.layers import Arithmetic
from tests.support.helpers import module_of


def norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p['scale'] + p['bias']


def linear(x, p):
    return x @ p['kernel'] + p['bias']


def mlp(x, p):
    hidden = linear(x, p['up'])
    return linear(hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))), p['down'])


def cross_attention(x, y, p, heads):
    """CA(x, y) for one sample, eqs (4)-(5), head by head."""
    q = linear(norm(x, p['query_norm']), p['query'])
    k, v = np.split(linear(norm(y, p['context_norm']), p['kv']), 2, axis=-1)
    width = q.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / np.sqrt(width)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
    return linear(np.concatenate(out, -1), p['out'])


def random_module(kind, model, seed=0):
    """A module in float64 whose every parameter is random, biases and norms too, and its parameters."""
    arithmetic = Arithmetic(model.numerics, jnp.float64)
    module = module_of(lambda: kind(model, arithmetic, rngs=nnx.Rngs(0)), seed)
    return module, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))
