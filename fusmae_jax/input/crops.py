"""Multi-crop views of stacked sensors, inside jit: from raw record fields to images on [0, 1].

Each crop is resampled from the native grids through `prepare`, distorted and stripped of a sensor by chance.
All randomness of a crop follows from the key of its record and its index, so neither the number of devices
nor the order of rows changes a pixel. Distortions are DINO-MM's, on [0, 255]; values are not rounded, and
what leaves the range is clipped (DINO-MM's own code lets 8 bits overflow).
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusmae_jax.config.dino import Crops, Distortion
from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.prepare import Patches, make_prepare
from fusmae_jax.input.units import validity

Views = tuple[Float[Array, 'b g gh gw c'], Float[Array, 'b l lh lw c']]
Image = Float[Array, 'h w c']
TOP = 255.0  # of the scale that crops are distorted on


def make_views(config: Config, contract: Contract) -> Callable[[Mapping[str, Array], Array], Views]:
    """The function `views(batch, keys)` for one kind of data.

    Returns:
        A traceable function of a raw batch (as for `make_prepare`) and one random key for each record. It
        gives the global and the local crops with the bands of all modalities in the order of the
        configuration. 0 and 1 are mean - 2 std and mean + 2 std of a band; 0 is also a sensor that was
        dropped or is not there.
    """
    dino = config.distillation
    first = dino.global_crops.count
    kinds = (dino.global_crops, 0), (dino.local_crops, first)
    make = [(_make_crops(config, contract, crops), crops.count, start) for crops, start in kinds]

    def views(batch: Mapping[str, Array], keys: Array) -> Views:
        batch = clip_quantiles(batch, contract, dino.quantile_clip_modality, dino.quantile_clip)
        crops = []
        for crop, count, start in make:
            index = jnp.arange(start, start + count)
            crop_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, index)
            crops.append(crop(batch, crop_keys))
        return crops[0], crops[1]

    return views


def _pixels(config: Config, size: int) -> Config:
    """The same settings for images of one number a patch, which `prepare` cuts into pixels."""
    model = dataclasses.replace(config.model, image_size=(size, size), patch_size=1)
    return dataclasses.replace(config, model=model)


def _stack(config: Config, pixels: Mapping[str, Patches], size: int) -> tuple[Array, Array]:
    """Images with all bands on [0, 1], and (b, 1, 1, c): whether the sensor of a band is there."""
    ordered = [pixels[name] for name in config.model.modalities]
    stacked = jnp.concatenate([p.values for p in ordered], axis=-1)
    there = [
        jnp.broadcast_to(jnp.any(p.valid, axis=(1, 2))[:, None], (len(p.valid), p.valid.shape[-1]))
        for p in ordered
    ]
    images = (stacked.reshape(-1, size, size, stacked.shape[-1]) + 1) / 2
    return images, jnp.concatenate(there, axis=-1)[:, None, None]


def _make_crops(config: Config, contract: Contract, crops: Crops) -> Callable[..., Array]:
    augment = dataclasses.replace(config.augment, crop=True, crop_scale=crops.scale)
    prepare = make_prepare(_pixels(config, crops.size), contract, augment)
    sensors = tuple(len(modality.bands) for modality in config.model.modalities.values())
    settings = config.distillation.distortion
    chances = [
        jnp.asarray(x if len(x) == crops.count else x * crops.count) for x in (crops.blur, crops.solarize)
    ]

    def finish(image: Array, key: Array, blur: Array, solarized: Array) -> Array:
        radiometry, drop = jax.random.split(key)
        image = distort(image * TOP, radiometry, blur, solarized, settings) / TOP
        return drop_sensor(image, drop, sensors, settings.sensor_drop)

    def crop_of_every_record(batch: Mapping[str, Array], keys: Array, blur: Array, solarized: Array) -> Array:
        """One crop of every record."""
        pairs = jax.vmap(jax.random.split)(keys)
        images, present = _stack(config, prepare(batch, pairs[:, 0]), crops.size)
        images = jax.vmap(finish, (0, 0, None, None))(images, pairs[:, 1], blur, solarized)
        return jnp.where(present, images, 0)

    def make(batch: Mapping[str, Array], keys: Array) -> Array:
        return jax.vmap(crop_of_every_record, (None, 1, 0, 0), 1)(batch, keys, *chances)

    return make


def clip_quantiles(
    batch: Mapping[str, Array], contract: Contract, modality: str, quantiles: tuple[float, float]
) -> dict[str, Array]:
    """The batch with one modality clipped to quantiles of each image and band, over its valid pixels."""
    clipped = dict(batch)
    for field, group in contract.groups.items():
        if group.modality != modality or quantiles == (0, 1) or field not in batch:
            continue
        values, valid = batch[field].astype(jnp.float32), validity(batch[field], group)
        limits = jnp.nanquantile(jnp.where(valid, values, jnp.nan), jnp.array(quantiles), axis=(1, 2))
        bottom, top = limits[:, :, None, None]
        # An image without a valid pixel has no quantiles; it stays as it is.
        clipped[field] = jnp.where(valid, jnp.clip(values, bottom, top), values)
    return clipped


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
