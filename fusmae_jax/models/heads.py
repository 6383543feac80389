"""A linear head on pooled encoder output, and the drop path of fine-tuning."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fusmae_jax.models.fusmae import FusMAE

INIT_STD = 0.01  # of the kernel; the bias starts at 0
Head = dict[str, Array]  # kernel (d, c) and bias (c,)


def init_head(key: Array, width: int, classes: int) -> Head:
    """A fresh head, float32; traceable."""
    kernel = INIT_STD * jax.random.normal(key, (width, classes), jnp.float32)
    return {'kernel': kernel, 'bias': jnp.zeros(classes, jnp.float32)}


def logits(head: Head, features: Float[Array, 'b d']) -> Float[Array, 'b c']:
    """The scores of every class, in full float32 on every kind of device."""
    scores = jnp.dot(features.astype(jnp.float32), head['kernel'], precision='highest')
    return scores + head['bias'][None]


class Branch(nnx.Module):
    """A residual branch whose output is scaled sample by sample."""

    def __init__(self, branch: nnx.Module, scale: Float[Array, '... b']):
        self.branch, self.scale = branch, nnx.Variable(scale)

    def __call__(self, *args: Any) -> Any:
        """The branch's tokens (b, n, d) times the scale of their sample; what else it returns as it is."""
        found = self.branch(*args)
        tokens, *rest = found if isinstance(found, tuple) else (found,)
        tokens = tokens * self.scale[...][:, None, None].astype(tokens.dtype)
        return (tokens, *rest) if rest else tokens


def drop_path_scales(keys: Array, depth: int, rate: float) -> Float[Array, 'blocks 2 b']:
    """What the two branches of each block after the first are scaled with.

    A branch is dropped (0) with a probability that rises linearly from 0 in block 1 to `rate` in the last
    block, sample by sample and apart from the other branch; otherwise it is scaled by 1 / (1 - probability),
    so that its mean stays (stochastic depth, arXiv 1603.09382).

    Args:
        keys: one random key for each sample.
        depth: number of blocks, the first included; 2 or more.
        rate: of the last block.
    """
    rates = rate * jnp.arange(1, depth, dtype=jnp.float32)[:, None, None] / (depth - 1)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (depth - 1, 2)))(keys)
    return jnp.where(jnp.moveaxis(drawn, 0, 2) >= rates, 1 / (1 - rates), 0)


def with_drop_path(model: FusMAE, keys: Array, rate: float) -> FusMAE:
    """The same model, changed in place: each sample leaves out some branches, by its key (b,)."""
    if not rate or model.model.depth < 2:
        return model
    scales = drop_path_scales(keys, model.model.depth, rate)
    blocks: Any = model.encoder.blocks
    blocks.attention = Branch(blocks.attention, scales[:, 0])
    blocks.mlp = Branch(blocks.mlp, scales[:, 1])
    return model
