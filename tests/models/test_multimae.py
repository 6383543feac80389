"""MultiMAE's decoder against its definition, written out in NumPy float64, sample by sample."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import resolve
from fusmae_jax.models.layers import Arithmetic
from fusmae_jax.models.multimae import Context, MultiMaeDecoder, join
from fusmae_jax.models.positions import sincos_2d
from tests.support.equations import cross_attention, linear, mlp, norm, random_module
from tests.support.tiny import tiny_model

K, N = 3, 16  # visible patches of a sensor, patches


def block(x, p, layer, heads):
    """A pre-norm self-attention block, from stacked parameters."""
    p = jax.tree.map(lambda leaf: leaf[layer], p)
    q, k, v = np.split(linear(norm(x, p['norm1']), p['attention']['qkv']), 3, axis=-1)
    width, out = q.shape[-1] // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        weights = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
        out.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
    x = x + linear(np.concatenate(out, -1), p['attention']['out'])
    return x + mlp(norm(x, p['norm2']), p['mlp'])


def decoded(p, model, name, latents, order, cls):
    """Predictions for the hidden patches of `name`; latents and cls are one sample's."""
    table, heads = sincos_2d(model.grid, model.decoder.width), model.decoder.heads
    seen = {
        n: linear(z, p['project']) + table[order[n][:K]] + p['modality'][n]['bias']
        for n, z in latents.items()
    }
    empty = p['mask_token'] + p['modality'][name]['bias'] + table[order[name][K:]]
    queries = np.concatenate([seen[name], empty])
    context = [*seen.values(), linear(cls[None], p['project'])] if model.decoder.cls else [*seen.values()]
    x = cross_attention(queries, np.concatenate(context), p['cross'], heads)  # no residual
    x = x + mlp(norm(x, p['norm2']), p['mlp'])
    for layer in range(model.decoder.depth):
        x = block(x, p['blocks'], layer, heads)
    x = norm(x, p['norm']) if model.decoder.final_norm else x
    return linear(x[K:], p['predict'])


@pytest.mark.parametrize(('sensors', 'cls'), [(2, True), (3, False)])
def test_it_equals_its_definition(sensors, cls):
    modalities = dict(cfg.Model().modalities)
    if sensors == 3:
        modalities['dem'] = cfg.Modality(bands=('height',), mean=(300.0,), std=(200.0,))
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = tiny_model('none', 'multimae', modalities=modalities)
        model = resolve(
            dataclasses.replace(model, decoder=cfg.Decoder(16, 2, 2, cls=cls, final_norm=not cls))
        )
        decoder, params = random_module(
            lambda m, arithmetic, rngs: MultiMaeDecoder(m, 's2', arithmetic, rngs=rngs), model
        )
        latents = {name: rng.normal(size=(2, K, model.width)) for name in modalities}
        order = {name: np.stack([rng.permutation(N) for _ in range(2)]) for name in modalities}
        token = rng.normal(size=(2, model.width))
        context = join(
            {n: jnp.asarray(z) for n, z in latents.items()},
            {n: jnp.ones((2, K), bool) for n in latents},
            {n: jnp.asarray(o[:, :K]) for n, o in order.items()},
            jnp.asarray(token),
        )
        start = list(modalities).index('s2') * K
        found, _ = decoder(context, slice(start, start + K), jnp.asarray(order['s2'][:, K:]))
    assert found.dtype == jnp.float64 and found.shape == (2, N - K, model.patch_dim('s2'))
    for i in range(2):
        one = {n: z[i] for n, z in latents.items()}
        expected = decoded(params, model, 's2', one, {n: o[i] for n, o in order.items()}, token[i])
        np.testing.assert_allclose(found[i], expected, atol=1e-12)


@pytest.mark.usefixtures('strict')
def test_without_anything_to_attend_to_no_token_differs():
    """The cross-attention gives exactly 0, and no residual goes around it."""
    model = resolve(tiny_model('none', 'multimae'))
    arithmetic = Arithmetic(model.numerics, jnp.float32)
    decoder = MultiMaeDecoder(model, 's1', arithmetic, rngs=nnx.Rngs(0))
    for there in (False, True):
        own = {'s1': jnp.full((1, K), there), 's2': jnp.zeros((1, K), bool)}
        latents = jax.random.normal(jax.random.key(0), (1, K, model.width))
        context = Context(latents, own, jnp.arange(K)[None], latents[:, 0])
        hidden = jnp.ones((1, N), bool)
        _, stages = decoder(context, slice(0, K), jnp.arange(N)[None], hidden, capture=True)
        assert (np.ptp(np.asarray(stages['cross']), axis=1).max() > 1e-3) == there
