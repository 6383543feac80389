"""Radiometric augmentation of multispectral crops, as in DINO-MM, for batches inside jit.

Values lie on [0, 255], where the ends are mean - 2 std and mean + 2 std of a band. They are not rounded, and
what leaves the range is clipped (DINO-MM's own code lets 8 bits overflow).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusmae_jax.config.dino import Distortion

Image = Float[Array, 'h w c']
TOP = 255.0


def distort(image: Image, key: Array, blur: Array, solarized: Array, settings: Distortion) -> Image:
    """One crop after brightness and contrast, gray, blur and solarisation, each by chance.

    Args:
        image: all bands of all sensors.
        key: a random key.
        blur: probability of the blur, a scalar.
        solarized: probability of the solarisation, a scalar.
        settings: strengths, and the other probabilities.
    """
    # All numbers in one draw: each draw is a program of its own to compile.
    drawn = jax.random.uniform(key, (7,))

    def maybe(index: int, probability: Array | float, new: Image, old: Image) -> Image:
        return jnp.where(drawn[index] < probability, new, old)

    def factor(index: int, strength: float) -> Float[Array, '']:
        low = max(0.0, 1 - strength)
        return low + (1 + strength - low) * drawn[index]

    jittered = brightness(image, factor(4, settings.brightness))
    jittered = adjust_contrast(jittered, factor(5, settings.contrast))
    image = maybe(0, settings.jitter, jittered, image)
    image = maybe(1, settings.gray, jnp.broadcast_to(jnp.mean(image, 2, keepdims=True), image.shape), image)
    low, high = settings.blur_sigma
    image = maybe(2, blur, gaussian_blur(image, low + (high - low) * drawn[6]), image)
    return maybe(3, solarized, solarize(image, settings.solarize_below), image)


def brightness(image: Image, factor: Float[Array, '']) -> Image:
    """All values times one factor."""
    return jnp.clip(image * factor, 0, TOP)


def adjust_contrast(image: Image, factor: Float[Array, '']) -> Image:
    """Distances from the mean of each band times one factor."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return jnp.clip((image - mean) * factor + mean, 0, TOP)


def solarize(image: Image, below: float) -> Image:
    """Dark values inverted; DINO-MM inverts those below the threshold, other libraries those above."""
    return jnp.where(image < below, TOP - image, image)


def gaussian_blur(image: Image, sigma: Float[Array, '']) -> Image:
    """A Gaussian of `sigma` pixels, cut at 3 sigma and mirrored at the border pixel, as OpenCV blurs 8 bits.

    Two small matrix products; the matrix of an axis has the mirrored taps already added in.
    """
    rows, columns = (_blur_matrix(length, sigma) for length in image.shape[:2])
    image = jnp.einsum('yi,ijc->yjc', rows, image, precision='highest')
    return jnp.einsum('xj,yjc->yxc', columns, image, precision='highest')


def _blur_matrix(length: int, sigma: Float[Array, '']) -> Float[Array, 'n n']:
    index = np.arange(length)
    out, source = index[:, None], index[None, :]
    # OpenCV's width is round(6 sigma + 1), made odd.
    radius = jnp.floor(jnp.round(6 * sigma + 1) / 2)

    def tap(distance: np.ndarray) -> Array:
        away = jnp.asarray(np.abs(distance), jnp.float32)
        return jnp.where(away <= radius, jnp.exp(-0.5 * jnp.square(away / sigma)), 0)

    last = length - 1
    weight = tap(out - source)
    weight += tap(out + source) * (source > 0)  # pixel -j mirrors pixel j
    weight += tap(2 * last - source - out) * (source < last)
    return weight / jnp.sum(weight, axis=1, keepdims=True)


def drop_sensor(image: Image, key: Array, sensors: tuple[int, ...], probability: float) -> Image:
    """With this probability one sensor, each as likely, is 0 as a whole.

    Args:
        image: the bands of the sensors one after the other.
        key: a random key.
        sensors: number of bands of each.
        probability: that a sensor is dropped at all.
    """
    happens, which = jax.random.uniform(key, (2,))
    owner = jnp.asarray(np.repeat(np.arange(len(sensors)), sensors))
    dropped = (owner == jnp.floor(which * len(sensors)).astype(owner.dtype)) & (happens < probability)
    return jnp.where(dropped[None, None], 0, image)
