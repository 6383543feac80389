"""Multi-crop views of stacked sensors, inside jit: from raw record fields to images on [0, 1].

Each crop is resampled from the native grids through `prepare`, distorted and stripped of a sensor by chance.
All randomness of a crop follows from the key of its record and its index, so neither the number of devices
nor the order of rows changes a pixel.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusmae_jax.config.dino import Crops
from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.distort import TOP, distort, drop_sensor
from fusmae_jax.input.patchify import Patches
from fusmae_jax.input.prepare import make_prepare

Views = tuple[Float[Array, 'b g gh gw c'], Float[Array, 'b l lh lw c']]


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
        found = []
        for crop, count, start in make:
            index = jnp.arange(start, start + count)
            own = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, index)
            found.append(crop(batch, own))
        return found[0], found[1]

    return views


def whole_views(config: Config, contract: Contract, size: int) -> Callable[[Mapping[str, Array]], Array]:
    """The function from a raw batch to whole images (b, size, size, c) as a trained model takes them."""
    prepare, dino = make_prepare(_pixels(config, size), contract, None), config.distillation

    def whole(batch: Mapping[str, Array]) -> Array:
        batch = clip_quantiles(batch, contract, dino.quantile_clip_modality, dino.quantile_clip)
        images, present = _stack(config, prepare(batch, None), size)
        return jnp.where(present, images, 0)

    return whole


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

    def one(batch: Mapping[str, Array], keys: Array, blur: Array, solarized: Array) -> Array:
        """One crop of every record."""
        pairs = jax.vmap(jax.random.split)(keys)
        images, present = _stack(config, prepare(batch, pairs[:, 0]), crops.size)
        images = jax.vmap(finish, (0, 0, None, None))(images, pairs[:, 1], blur, solarized)
        return jnp.where(present, images, 0)

    def make(batch: Mapping[str, Array], keys: Array) -> Array:
        return jax.vmap(one, (None, 1, 0, 0), 1)(batch, keys, *chances)

    return make


def clip_quantiles(
    batch: Mapping[str, Array], contract: Contract, modality: str, limits: tuple[float, float]
) -> dict[str, Array]:
    """The batch with one modality clipped to quantiles of each image and band, over its valid pixels."""
    clipped = dict(batch)
    for field, group in contract.groups.items():
        if group.modality == modality and limits != (0, 1) and field in batch:
            clipped[field] = _clip(batch[field], group, *limits)
    return clipped


def _clip(stored: Float[Array, 'b h w c'], group: Group, low: float, high: float) -> Float[Array, 'b h w c']:
    values = stored.astype(jnp.float32)
    valid = jnp.isfinite(values)
    for nodata in group.nodata:
        valid &= values != jnp.float32(nodata)
    limits = jnp.nanquantile(jnp.where(valid, values, jnp.nan), jnp.array([low, high]), axis=(1, 2))
    bottom, top = limits[:, :, None, None]
    # An image without a valid pixel has no quantiles; it stays as it is.
    return jnp.where(valid, jnp.clip(values, bottom, top), values)
