"""Geometry of labels: the augmentation of the images, pixel for pixel, and nothing between two of them.

A label map goes through the crop box and the flips of its images on its own grid; the label of a point is
that of the pixel it lies in. Traceable.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from fusmae_jax.config.run import Augment
from fusmae_jax.input.resample import Axis, Box, sample_box


def nearest(labels: Shaped[Array, 'b h w'], box: Box, size: tuple[int, int]) -> Shaped[Array, 'b oh ow']:
    """The labels, of classes or numbers, at the centres of the pixels of a crop box, brought to `size`.

    The centres are those that images are resampled at (`input/resample.py`); of two equally near pixels the
    later one counts.
    """
    rows = Axis(size[0], labels.shape[1], box.top, box.height, box.vflip, 'bilinear')
    columns = Axis(size[1], labels.shape[2], box.left, box.width, box.hflip, 'bilinear')
    taken = jnp.take_along_axis(labels, _pixels(rows)[:, :, None], axis=1, mode='clip')
    return jnp.take_along_axis(taken, _pixels(columns)[:, None, :], axis=2, mode='clip')


def _pixels(axis: Axis) -> Int[Array, 'b out']:
    centres, _ = axis.centres()
    return jnp.clip(jnp.floor(centres + 0.5), 0, axis.in_size - 1).astype(jnp.int32)


def moved(labels: Shaped[Array, 'b h w'], keys: Array | None, augment: Augment | None) -> Array:
    """The labels under the augmentation that `input.prepare` gives images with the same keys."""
    if augment is None or keys is None:
        return labels
    box = sample_box(keys, augment)
    return nearest(labels, box, (labels.shape[1], labels.shape[2]))


def turned(batch: Mapping[str, Array], names: Sequence[str], keys: Array) -> dict[str, Array]:
    """The batch with the named fields of each record turned by 0, 90, 180 or 270 degrees, as its key says.

    Args:
        batch: images (b, n, n, bands) and labels (b, n, n).
        names: the fields that turn together.
        keys: (b,) random keys.
    """
    quarters = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys)

    def turn(x: Shaped[Array, 'b n n *bands']) -> Shaped[Array, 'b n n *bands']:
        kinds = [x, *(jnp.rot90(x, quarter, axes=(1, 2)) for quarter in (1, 2, 3))]
        which = quarters.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.select([which == quarter for quarter in range(4)], kinds)

    return {name: turn(x) if name in names else x for name, x in batch.items()}
