"""Separable resampling of a crop box onto the model grid, as two small matrix products.

Pixel centres lie at half-integers. A kernel is widened only when shrinking (no antialias when enlarging);
rows of weights are normalised at the border of the image. Values and validity use the same weights: a
model pixel is valid only if every source pixel that contributes to it is. That footprint is why this is not
`jax.image.scale_and_translate`, which gives values alone: zeros and ones resampled beside them would not tell
which pixels a cubic kernel touched, since its weights change sign and may add up to 0.

`opencv_cubic` is what `cv2.resize` does with INTER_CUBIC, for weights that learned from its images:
a = -0.75, never widened, the border repeated.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Augment

Kernel = Literal['bilinear', 'bicubic', 'opencv_cubic']


class Box(NamedTuple):
    """The crop of each sample, in shares of the image, and its flips; shared by all sensors."""

    top: Float[Array, ' b']
    left: Float[Array, ' b']
    height: Float[Array, ' b']
    width: Float[Array, ' b']
    hflip: Bool[Array, ' b']
    vflip: Bool[Array, ' b']


def full_box(batch: int) -> Box:
    """The whole image, not flipped."""
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


def weights(
    out_size: int,
    in_size: int,
    start: Float[Array, ' b'],
    length: Float[Array, ' b'],
    flip: Bool[Array, ' b'],
    kernel: Kernel,
) -> Float[Array, 'b out in']:
    """Rows of interpolation weights along one axis, for the crop [start, start + length) of the image."""
    scale = length * (in_size / out_size)  # source pixels in one model pixel
    index = jnp.arange(out_size, dtype=jnp.float32)[None]
    centres = (start * in_size)[:, None] + (index + 0.5) * scale[:, None] - 0.5
    # A flip is an order of the same centres, so that a flipped crop is the flip of the crop, to the last bit.
    centres = jnp.where(flip[:, None], centres[:, ::-1], centres)
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


def resample(
    image: Float[Array, 'b h w c'],
    valid: Bool[Array, 'b h w c'],
    box: Box,
    size: tuple[int, int],
    kernel: Kernel,
) -> tuple[Float[Array, 'b oh ow c'], Bool[Array, 'b oh ow c']]:
    """Resamples the crop of an image, and its validity, to `size`.

    Invalid pixels must hold a finite number. Values are computed at the highest precision: bfloat16
    products would err by up to 0.2 standard deviations.
    """
    rows = weights(size[0], image.shape[1], box.top, box.height, box.vflip, kernel)
    columns = weights(size[1], image.shape[2], box.left, box.width, box.hflip, kernel)
    values = _apply(rows, columns, image, 'highest')
    # Of weights, only whether there is one: a negative one is a contribution too.
    # Counts of zeros and ones are exact in any precision, as far as "is there any" goes.
    missing = _apply(
        (rows != 0).astype(jnp.float32),
        (columns != 0).astype(jnp.float32),
        (~valid).astype(jnp.float32),
        'default',
    )
    return values, missing < 0.5


def _apply(rows: Array, columns: Array, image: Array, precision: str) -> Array:
    x = jnp.einsum('byi,bijc->byjc', rows, image, precision=precision)
    return jnp.einsum('bxj,byjc->byxc', columns, x, precision=precision)
