"""The pre-norm transformer block, stacks of them stored along one leading axis, and stochastic depth."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Model
from fusmae_jax.models.attention import SelfAttention
from fusmae_jax.models.layers import PRODUCT, Arithmetic, Mlp, layer_norm
from fusmae_jax.parallel.mesh import target_platform

Paths = Float[Array, 'blocks b 2']


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

    def __init__(self, width: int, heads: int, mlp_ratio: float, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, arithmetic, rngs=rngs)
        self.attention = SelfAttention(width, heads, arithmetic, rngs=rngs)
        self.norm2 = layer_norm(width, arithmetic, rngs=rngs)
        self.mlp = Mlp(width, int(width * mlp_ratio), arithmetic, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, 'b n d'],
        valid: Bool[Array, 'b n'],
        path: Float[Array, 'b 2'] | None = None,
        only: slice | None = None,
    ) -> tuple[Float[Array, 'b q d'], dict[str, Array]]:
        """The tokens after the block, and its queries and keys.

        `path` multiplies the two branches, sample by sample (stochastic depth); None keeps both as they are.
        With `only`, no other tokens are computed; they attend to all.
        """
        x, branch, inner = self.without_last_sum(x, None, valid, path, only)
        return x + branch.astype(x.dtype), inner

    def without_last_sum(
        self,
        x: Float[Array, 'b n d'],
        branch: Float[Array, 'b n d'] | None,
        valid: Bool[Array, 'b n'],
        path: Float[Array, 'b 2'] | None,
        only: slice | None = None,
    ) -> tuple[Float[Array, 'b q d'], Float[Array, 'b q d'], dict[str, Array]]:
        """Tokens x and the branch that is still to be added to them, which the norm behind it does as well.

        The same for what is given: tokens, and the last branch of the block before.
        """
        x, normed = self.norm1.after(constrain_batch(x), branch)
        attended, inner = self.attention(normed, valid, only)
        x = x if only is None else x[:, only]
        x, normed = self.norm2.after(x, _scaled(attended, path, 0, x.dtype))
        return x, _scaled(self.mlp(normed), path, 1, x.dtype), inner


def _scaled(branch: Array, path: Float[Array, 'b 2'] | None, index: int, dtype: DTypeLike) -> Array:
    """A branch times its factors, in the type of the residual stream."""
    return branch if path is None else branch.astype(dtype) * path[:, index, None, None].astype(dtype)


def stack(depth: int, make: Callable[[nnx.Rngs], Block], rngs: nnx.Rngs) -> Block:
    """One Block whose parameters hold `depth` blocks along a leading axis, each with its own key."""
    return nnx.vmap(make)(rngs.split(depth))


def with_tokens(x: Array, inner: Mapping[str, Array]) -> dict[str, Array]:
    """All that `run_stack` can keep of a block: its tokens (`x`), queries and keys."""
    return {**inner, 'x': x}


def run_stack(
    blocks: Block,
    x: Float[Array, 'b n d'],
    valid: Bool[Array, 'b n'],
    model: Model,
    *,
    paths: Paths | None = None,
    keep: Callable[[Array, Mapping[str, Array]], Any] | None = None,
    only: slice | None = None,
) -> tuple[Float[Array, 'b q d'], Any]:
    """Runs stacked blocks one after the other, scanned or unrolled, recomputed in the backward pass or not.

    Args:
        blocks: with a leading axis of depth.
        x: tokens.
        valid: which of them are attended to.
        model: says whether to scan and what to recompute.
        paths: factors for stochastic depth.
        keep: what to return of each block, of its tokens, queries and keys.
        only: the tokens that are asked for. Of the last block no others are computed, unless it is scanned;
            `keep` must then make the same shapes of fewer tokens.

    Returns:
        The tokens after the last block and what `keep(tokens, queries and keys)` makes of each block, along
        a leading depth axis; an empty dict without it.
    """
    scan = scanned(model)

    def body(only: slice | None) -> Callable[[Array, tuple[Block, Array | None]], tuple[Array, Any]]:
        def run(x: Array, part: tuple[Block, Array | None]) -> tuple[Array, Any]:
            block, path = part
            x, inner = block(x, valid, path, only)
            return x, {} if keep is None else keep(x, inner)

        if model.remat == 'none':
            return run
        # Inside a scan XLA cannot merge the recomputation away, so no barrier is needed there.
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT) if model.remat == 'dots' else None
        return jax.checkpoint(run, prevent_cse=not scan, policy=policy)

    if scan:
        x, kept = jax.lax.scan(body(None), x, (blocks, paths))
        return x if only is None else x[:, only], kept
    kept, branch, apart = [], None, _unstack(blocks)
    for index, block in enumerate(apart):
        path = None if paths is None else paths[index]
        asked = only if index == len(apart) - 1 else None
        if model.remat == 'none':
            x, branch, inner = block.without_last_sum(x, branch, valid, path, asked)
            some = {} if keep is None else keep(x + branch.astype(x.dtype), inner)
        else:
            # Here a block is what it is given and nothing else, so that this alone is kept.
            x, some = body(asked)(x, (block, path))
        kept.append(some)
    x = x if branch is None else x + branch.astype(x.dtype)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)


def run_for(
    asked: slice,
    blocks: Block | None,
    x: Float[Array, 'b n d'],
    valid: Bool[Array, 'b n'],
    model: Model,
    *,
    capture: bool,
) -> tuple[Float[Array, 'b q d'], dict[str, Array]]:
    """The tokens `asked` for behind a decoder's blocks, if it has any.

    With `capture` all tokens are computed, and those of each block returned beside its queries and keys.
    """
    if blocks is None:
        return x[:, asked], {}
    if not capture:
        return run_stack(blocks, x, valid, model, only=asked)
    x, inner = run_stack(blocks, x, valid, model, keep=with_tokens)
    return x[:, asked], inner


def scanned(model: Model) -> bool:
    """Whether stacked blocks run as a loop; `auto`: one after the other.

    A loop writes every activation that the backward pass needs twice, into an array of all blocks that it
    has filled with zeros before, and cuts it out again: 12 of 42 ms of a step on a GPU, 13 of 54 on a TPU.
    """
    return model.scan is True


def _unstack(blocks: Block) -> list[Block]:
    """The blocks one by one; the transpose of `split` is one concatenation, that of indexing many adds."""
    leaves, structure = jax.tree.flatten(blocks)
    apart = _cut_first if target_platform() == 'tpu' else lambda x: x
    parts = [
        [apart(part[0]) for part in jax.lax.split(leaf, (1,) * leaf.shape[0], axis=0)] for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, list(part)) for part in zip(*parts)]


@jax.custom_vjp
def _cut_first(x: Array) -> Array:
    """The parameters of one block, cut out of their stack before anything else is done with them.

    A TPU's compiler would bring the whole stack to bfloat16 and then cut it; of one block that is part of the
    product that reads it.
    """
    return jax.lax.optimization_barrier(x)


_cut_first.defvjp(lambda x: (_cut_first(x), None), lambda _, gradient: (gradient,))


def sample_paths(keys: Array, depth: int, rate: float, *, first: int = 0) -> Paths:
    """Factors of the two branches of the blocks from number `first` on, for stochastic depth.

    A branch is left out (0) with a probability that rises linearly from 0 in block 0 to `rate` in the last,
    sample by sample and apart from the other branch; otherwise its factor is 1 / (1 - probability), so that
    its mean stays (arXiv 1603.09382).

    Args:
        keys: one random key for each sample, (b,).
        depth: number of blocks in all.
        rate: of the last block.
        first: 1 where the first block, which has no probability, takes no factors.
    """
    rates = rate * jnp.arange(first, depth, dtype=jnp.float32)[:, None, None] / max(depth - 1, 1)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (depth - first, 2)))(keys)
    return jnp.where(jnp.moveaxis(drawn, 0, 1) >= rates, 1 / (1 - rates), 0)
