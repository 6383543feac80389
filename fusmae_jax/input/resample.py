"""Separable resampling of a crop box onto the model grid, along rows and then along columns.

Pixel centres lie at half-integers. A kernel is widened only when shrinking (no antialias when enlarging);
rows of weights are normalised at the border of the image. Values and validity use the same weights: a
model pixel is valid only if every source pixel that contributes to it is. That footprint is why this is not
`jax.image.scale_and_translate`, which gives values alone: zeros and ones resampled beside them would not tell
which pixels a cubic kernel touched, since its weights change sign and may add up to 0.

`opencv_cubic` is what `cv2.resize` does with INTER_CUBIC, for weights that learned from its images:
a = -0.75, never widened, the border repeated.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.config.run import Augment
from fusmae_jax.parallel.mesh import target_platform

Kernel = Literal['bilinear', 'bicubic', 'opencv_cubic']


# A smaller weight is none to validity: at the edge of a kernel it may come from the rounding of coordinates.
TOUCHES = 1e-4


class Box(NamedTuple):
    """The crop of each sample, in shares of the image, and its flips; shared by all sensors."""

    top: Float[Array, ' b']
    left: Float[Array, ' b']
    height: Float[Array, ' b']
    width: Float[Array, ' b']
    hflip: Bool[Array, ' b']
    vflip: Bool[Array, ' b']


def full_box(batch: Any) -> Box:
    """The whole image, not flipped; `batch` is a number, or the symbol of one that is free."""
    zero, one, no = jnp.zeros(batch), jnp.ones(batch), jnp.zeros(batch, bool)
    return Box(zero, zero, one, one, no, no)


def sample_box(keys: Array, augment: Augment) -> Box:
    """A random resized crop and flips, one for each of the random keys (b,).

    Area and aspect ratio as in torchvision's RandomResizedCrop; a side longer than the image is cut to
    it, where torchvision draws again. The box has real-valued edges.
    """

    def sample(key: Array) -> tuple[Array, ...]:
        area, ratio, y, x, h, v = jax.random.uniform(key, (6,))
        low, high = augment.crop_scale
        area = low + (high - low) * area
        low, high = (math.log(r) for r in augment.crop_ratio)
        ratio = jnp.exp(low + (high - low) * ratio)
        height, width = jnp.minimum(jnp.sqrt(area / ratio), 1), jnp.minimum(jnp.sqrt(area * ratio), 1)
        return y * (1 - height), x * (1 - width), height, width, h < augment.hflip, v < augment.vflip

    box = Box(*jax.vmap(sample)(keys))
    if augment.crop:
        return box
    return full_box(keys.shape[0])._replace(hflip=box.hflip, vflip=box.vflip)


def kernel_weight(distance: Array, kernel: Kernel) -> Array:
    """Interpolation weight at a distance in source pixels; cubic: Keys's with a = -1/2 (OpenCV: -3/4)."""
    x = jnp.abs(distance)
    if kernel == 'bilinear':
        return jnp.maximum(1 - x, 0)
    a = -0.5 if kernel == 'bicubic' else -0.75
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


class Axis(NamedTuple):
    """Rows or columns that are resampled: the crop [start, start + length) of an image, flipped or not."""

    out_size: int
    in_size: int
    start: Float[Array, ' b']  # as a share of the image
    length: Float[Array, ' b']
    flip: Bool[Array, ' b']
    kernel: Kernel

    def centres(self) -> tuple[Float[Array, 'b out'], Float[Array, ' b']]:
        """Where the model pixels lie among the source pixels, and how many of these each covers."""
        scale = self.length * (self.in_size / self.out_size)
        index = jnp.arange(self.out_size, dtype=jnp.float32)[None]
        centres = (self.start * self.in_size)[:, None] + (index + 0.5) * scale[:, None] - 0.5
        # A flip is an order of the same centres, so that a flipped crop is the flip of the crop, to the last
        # bit.
        return jnp.where(self.flip[:, None], centres[:, ::-1], centres), scale


def weights(axis: Axis) -> Float[Array, 'b out in']:
    """Rows of interpolation weights along an axis."""
    centres, scale = axis.centres()
    in_size, kernel = axis.in_size, axis.kernel
    if kernel == 'opencv_cubic':
        return _border_repeated(centres, in_size)
    # Every source pixel has a weight, most of them 0: a product with a small dense matrix needs no gather.
    distance = centres[:, :, None] - jnp.arange(in_size, dtype=jnp.float32)[None, None]
    weight = kernel_weight(distance / jnp.maximum(scale, 1)[:, None, None], kernel)
    return weight / jnp.sum(weight, axis=2, keepdims=True)


def _border_repeated(centres: Float[Array, 'b out'], in_size: int) -> Float[Array, 'b out in']:
    """OpenCV's weights of four source pixels; what falls outside counts for the pixel at the border."""
    outside = np.arange(-2, in_size + 2)
    distance = centres[:, :, None] - jnp.asarray(outside, jnp.float32)[None, None]
    inside = np.clip(outside, 0, in_size - 1)[:, None] == np.arange(in_size)
    weight = kernel_weight(distance, 'opencv_cubic')
    return jnp.einsum('boi,ij->boj', weight, jnp.asarray(inside, jnp.float32), precision='highest')


class Taps(NamedTuple):
    """For each model pixel of an axis: the source pixels that it rests on, and their weights."""

    source: Int[Array, 'b out taps']
    weight: Float[Array, 'b out taps']


def taps(axis: Axis) -> Taps:
    """The weights of `weights` that can be other than 0: two or four of a row, more where it shrinks."""
    centres, scale = axis.centres()
    in_size, kernel = axis.in_size, axis.kernel
    stretch = jnp.ones_like(scale) if kernel == 'opencv_cubic' else jnp.maximum(scale, 1)
    reach = 1 if kernel == 'bilinear' else 2
    count = 2 * reach if kernel == 'opencv_cubic' else math.ceil(2 * reach * max(in_size / axis.out_size, 1))
    # The first whole number within reach of the centre; with it no more than `count` are.
    first = jnp.floor(centres - reach * stretch[:, None]) + 1
    index = first[:, :, None] + jnp.arange(count, dtype=jnp.float32)[None, None]
    weight = kernel_weight((centres[:, :, None] - index) / stretch[:, None, None], kernel)
    if kernel != 'opencv_cubic':
        weight = jnp.where((index >= 0) & (index < in_size), weight, 0)
        weight = weight / jnp.sum(weight, axis=2, keepdims=True)
    # What falls outside has no weight, or is the pixel at the border.
    return Taps(jnp.clip(index, 0, in_size - 1).astype(jnp.int32), weight)


def resample(
    image: Float[Array, 'b h w c'],
    valid: Bool[Array, 'b h w c'],
    box: Box,
    size: tuple[int, int],
    kernel: Kernel,
) -> tuple[Float[Array, 'b oh ow c'], Bool[Array, 'b oh ow c']]:
    """Resamples the crop of an image, and its validity, to `size`.

    Invalid pixels must hold a finite number. Values are computed in full float32: bfloat16 products would err
    by up to 0.2 standard deviations.
    """
    axes = [
        Axis(size[0], image.shape[1], box.top, box.height, box.vflip, kernel),
        Axis(size[1], image.shape[2], box.left, box.width, box.hflip, kernel),
    ]
    # A GPU reads a few pixels for each result sooner than it multiplies with a dense matrix outside its
    # tensor cores; for a CPU and a TPU the opposite holds.
    return (by_taps if target_platform() == 'gpu' else by_products)(image, valid, axes)


def by_taps(image: Array, valid: Array, axes: Sequence[Axis]) -> tuple[Array, Array]:
    """`resample` by gathering, along rows and then along columns, the pixels that each result rests on."""
    for number, axis in enumerate(axes, start=1):
        image, valid = _along(taps(axis), image, valid, number)
    return image, valid


def by_products(image: Array, valid: Array, axes: Sequence[Axis]) -> tuple[Array, Array]:
    """`resample` as products with two dense matrices, most of whose weights are 0."""
    rows, columns = (weights(axis) for axis in axes)
    values = _multiply(rows, columns, image, 'highest')
    # Zeros and ones are exact in bfloat16, and so is whether a sum of them is 0. Of weights, only whether
    # there is one: a negative one is a contribution too.
    dtype = jnp.float32 if target_platform() == 'cpu' else jnp.bfloat16
    touched = [(jnp.abs(weight) > TOUCHES).astype(dtype) for weight in (rows, columns)]
    return values, _multiply(touched[0], touched[1], (~valid).astype(dtype), 'default') < 0.5


def _along(near: Taps, image: Array, valid: Array, axis: int) -> tuple[Array, Array]:
    """Values and validity resampled along one axis of (b, h, w, c)."""
    values, good = [], []
    for index, weight in zip(jnp.moveaxis(near.source, 2, 0), jnp.moveaxis(near.weight, 2, 0)):
        shape = (len(index), *(index.shape[1] if a == axis else 1 for a in (1, 2, 3)))
        index, weight = index.reshape(shape), weight.reshape(shape)
        values.append(weight * jnp.take_along_axis(image, index, axis, mode='clip'))
        good.append((jnp.abs(weight) <= TOUCHES) | jnp.take_along_axis(valid, index, axis, mode='clip'))
    return functools.reduce(jnp.add, values), functools.reduce(jnp.logical_and, good)


def _multiply(rows: Array, columns: Array, image: Array, precision: str) -> Array:
    x = jnp.einsum('byi,bijc->byjc', rows, image, precision=precision)
    return jnp.einsum('bxj,byjc->byxc', columns, x, precision=precision)
