"""Exchanged and clouded images of one sensor, which show how much a model relies on it.

Both are functions of a seed and the records' positions alone, so that every system is shown the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fusmae_jax.config.run import Data
from fusmae_jax.errors import InputError
from fusmae_jax.eval.reliance.config import Cloud
from fusmae_jax.input.prepare import Patches, patchify
from fusmae_jax.input.source import Source

OTHER = 'other_'
OCTAVES = 4  # of the cloud field; the coarsest has 2 cells along the longer side, each next twice as many
EDGE = 0.08  # of the ranks, over which a cloud goes from nothing to opaque


def other_cluster(clusters: Any, seed: int = 0) -> Int[np.ndarray, ' n']:
    """For each record the position of one of another cluster; a permutation, so each is used once.

    Records stand cluster by cluster, in random order, and each takes the one that stands as far on as the
    largest cluster is long.

    Args:
        clusters: (n,) the scene, tile or region of each record.
        seed: of the order of the clusters and of the records in them.

    Raises:
        InputError: one cluster holds more than half of the records.
    """
    clusters = np.asarray(clusters)
    names, groups, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    longest = int(sizes.max())
    if 2 * longest > len(clusters):
        raise InputError(
            f'shuffling: cluster {names[sizes.argmax()]!r} holds {longest:,} of {len(clusters):,} records, '
            'so not every record can be given an image of another cluster; name a finer cluster field'
        )
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(clusters)), rng.permutation(len(names))[groups]))
    taken = np.empty(len(clusters), np.intp)
    taken[order] = np.roll(order, -longest)
    return taken


def opacity(cloud: Cloud, positions: Int[Array, ' b'], size: tuple[int, int]) -> Float[Array, 'b h w']:
    """The opacity of each record's cloud, from 0 to 1, on a grid of `size` pixels; traceable.

    Value noise in four octaves, bilinear between random cells, each half as strong as the one before. The
    noise of an image is ranked, so that the share above one half is `cloud.cover` in each; the edges are soft
    over a rank of 0.08.

    Args:
        cloud: what it is like.
        positions: of the records in their split; the cloud of a record depends on nothing else.
        size: rows and columns.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(cloud.seed), positions)

    def field(key: Array) -> Float[Array, 'h w']:
        total = jnp.zeros(size, jnp.float32)
        for octave in range(OCTAVES):
            cells = [max(2, round(2 ** (octave + 1) * side / max(size))) for side in size]
            coarse = jax.random.uniform(jax.random.fold_in(key, octave), cells)
            down, right = (_interpolate(*pair) for pair in zip(size, cells))
            total += jnp.dot(jnp.dot(down, coarse), right.T) * 0.5**octave
        return total

    noise = jax.vmap(field)(keys).reshape(len(positions), -1)
    # Ranks instead of values: the share above a rank is the same for every cloud.
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1).astype(jnp.float32) / noise.shape[1]
    opaque = jnp.clip((rank - (1 - cloud.cover)) / EDGE + 0.5, 0, 1)
    return opaque.reshape(len(positions), *size)


def _interpolate(pixels: int, cells: int) -> Float[np.ndarray, 'p c']:
    """Bilinear weights of each pixel along one axis; pixel and cell centres lie at half-integers."""
    at = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
    distance = np.abs(at.clip(0, cells - 1)[:, None] - np.arange(cells))
    return np.maximum(1 - distance, 0).astype(np.float32)


def clouded(
    patches: Patches, alpha: Float[Array, 'b h w'], cloud: Cloud, patch_size: int, data: Data
) -> Patches:
    """Normalised optical patches under a cloud: `(1 - a) * clear + a * bright` for the opacity `a`, clipped.

    All bands alike, because thick cloud is white from the visible to the short infrared. No radiative
    transfer: haze, shadows and the absorption of water vapour are left out. What was invalid stays so.

    Args:
        patches: as `prepare` makes them with the settings `data`.
        alpha: the opacity of each pixel.
        cloud: `bright` is in standard deviations, whatever the unit of the patches.
        patch_size: pixels a side.
        data: how the patches are normalised and clipped; no cloud leaves the range that a model has seen.
    """
    # What a standard deviation is in the inputs that `prepare` makes, and where these are clipped.
    unit, limit = (0.5, 1.0) if data.normalisation == 'mean_2sigma' else (1.0, data.clip)
    bands = patches.values.shape[2] // patch_size**2
    image = jnp.broadcast_to(alpha[..., None], (*alpha.shape, bands))
    share = patchify(image, patch_size)
    values = patches.values * (1 - share) + jnp.float32(cloud.bright * unit) * share
    values = jnp.clip(values, -limit, limit)
    return Patches(jnp.where(patches.valid, values, patches.values), patches.valid)


class WithOther:
    """The records of a split, each with the images of another one beside its own, as `other_<field>`."""

    def __init__(self, source: Source, other: Int[np.ndarray, ' n']):
        """`other` gives the position of each record's other one."""
        self._source, self._other = source, other

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record, other = self._source[index], self._source[int(self._other[index])]
        return record | {f'{OTHER}{name}': other[name] for name in self._source.fields}
