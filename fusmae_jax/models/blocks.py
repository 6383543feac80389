"""The pre-norm transformer block, and stacks of them, stored along one leading axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Model
from fusmae_jax.models.attention import SelfAttention
from fusmae_jax.models.layers import Mlp, Policy, layer_norm


def constrain_batch(x: Array) -> Array:
    """Keeps the leading axis sharded over the whole mesh, where one is set.

    Once a block is enough; without it XLA moves activations between the batch and the parameter layout
    and rematerialises them in full.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, policy: Policy, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, policy, rngs=rngs)
        self.attention = SelfAttention(width, heads, policy, rngs=rngs)
        self.norm2 = layer_norm(width, policy, rngs=rngs)
        self.mlp = Mlp(width, int(width * mlp_ratio), policy, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b n d'], valid: Bool[Array, 'b n']
    ) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
        """The tokens after the block, and its queries and keys."""
        x = constrain_batch(x)
        attended, inner = self.attention(self.norm1(x), valid)
        x = x + attended.astype(x.dtype)
        return x + self.mlp(self.norm2(x)).astype(x.dtype), inner


def stack(depth: int, make: Callable[[nnx.Rngs], Block], rngs: nnx.Rngs) -> Block:
    """One Block whose parameters hold `depth` blocks along a leading axis, each with its own key."""
    return nnx.vmap(make)(rngs.split(depth))


def run_stack(
    blocks: Block, x: Float[Array, 'b n d'], valid: Bool[Array, 'b n'], model: Model, *, capture: bool = False
) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
    """Runs stacked blocks one after the other, scanned or unrolled, recomputed in the backward pass or not.

    Returns:
        The tokens after the last block and, with `capture`, each block's tokens (`x`), queries and keys
        with a leading depth axis.
    """

    def body(x: Array, block: Block) -> tuple[Array, dict[str, Array]]:
        x, inner = block(x, valid)
        return x, (inner | {'x': x} if capture else {})

    if model.remat != 'none':
        # Inside a scan XLA cannot merge the recomputation away, so no barrier is needed there.
        keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if model.remat == 'dots' else None
        body = jax.checkpoint(body, prevent_cse=not model.scan, policy=keep)
    if model.scan:
        return jax.lax.scan(body, x, blocks)
    inners = []
    for block in _unstack(blocks):
        x, inner = body(x, block)
        inners.append(inner)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *inners)


def _unstack(blocks: Block) -> list[Block]:
    """The blocks one by one; the transpose of `split` is one concatenation, that of indexing many adds."""
    leaves, structure = jax.tree.flatten(blocks)
    parts = [[part[0] for part in jax.lax.split(leaf, (1,) * leaf.shape[0], axis=0)] for leaf in leaves]
    return [jax.tree.unflatten(structure, list(part)) for part in zip(*parts)]
