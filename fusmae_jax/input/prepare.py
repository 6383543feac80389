"""Preparation of a batch inside jit: from raw record fields to the normalised patches a model sees.

For each group of bands: native validity, unit, z-score, fill with the mean, one resample from the native
grid to the model grid through the shared crop box, clip; then patches. Driven by the input contract.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from fusmae_jax.config.run import Augment, Config, Modality
from fusmae_jax.input import units
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.normalise import statistics, target_unit
from fusmae_jax.input.resample import Box, full_box, resample, sample_box
from fusmae_jax.parallel.mesh import target_platform

LANES = 128  # columns of a TPU's matrix unit


class Patches(NamedTuple):
    """Normalised, flattened patches of one modality in raster order; 0 is the sensor's mean."""

    values: Float[Array, 'b n p']  # p = rows * columns * bands of a patch; 0 where nothing valid is near
    valid: Bool[Array, 'b n p']  # False for numbers that rest on a missing pixel

    @property
    def any_valid(self) -> Bool[Array, 'b n']:
        """Which patches have a valid number at all."""
        if target_platform() != 'tpu':
            return jnp.any(self.valid, axis=2)
        # Products of zeros and ones, and sums of them in float32, are exact, and there 25 times faster. A
        # product with a single column would be turned into a sum again.
        ones = jnp.ones((self.valid.shape[2], LANES), jnp.bfloat16)
        count = jnp.matmul(self.valid.astype(jnp.bfloat16), ones, preferred_element_type=jnp.float32)
        return count[..., 0] > 0


Prepare = Callable[[Mapping[str, Array], Array | None], dict[str, Patches]]
Patchify = Callable[[Array, int], Array]


def fields(config: Config, contract: Contract) -> list[str]:
    """The image fields that the model needs, with the prefix that they have in a batch."""
    return [
        f'{prefix}{field}'
        for prefix, part in contract.each.items()
        for field, group in part.groups.items()
        if group.modality in config.model.modalities
        and set(group.bands) & set(config.model.modalities[group.modality].bands)
    ]


def make_prepare(
    config: Config,
    contract: Contract,
    augment: Augment | None,
    eight_bit: Collection[str] = (),
    cut: Patchify | None = None,
) -> Prepare:
    """The function `prepare(batch, keys)` for one kind of data.

    All of it runs on the device: the host hands over what the shards hold, and nothing is decoded twice.

    Args:
        config: model grid, modalities, statistics and clip.
        contract: the record's image fields.
        augment: random crop and flips, or None for the whole image as it is.
        eight_bit: modalities that are brought to 8 bits (`to_bytes`) on their native grids, before they are
            resampled. Their values stay on that scale; `config.data` does not apply to them.
        cut: what cuts images into patches; None: `patchify`.

    Returns:
        A traceable function of a batch, with each image field of `fields` as (b, rows, columns, bands) in
        its stored type, and of one random key for each sample (ignored without `augment`).
    """

    def prepare(batch: Mapping[str, Array], keys: Array | None = None) -> dict[str, Patches]:
        size = next(iter(batch[name].shape[0] for name in fields(config, contract)))
        box = full_box(size) if augment is None or keys is None else sample_box(keys, augment)
        moved = augment is not None and augment.crop
        return {
            name: _cut(
                _modality(name, batch, contract, config, box, moved, name in eight_bit),
                config.model.patch_size,
                cut or patchify,
            )
            for name in config.model.modalities
        }

    return prepare


def to_bytes(zscores: Array) -> Array:
    """[mean - 2 std, mean + 2 std] to whole numbers from 0 to 255, rounded down, as float32."""
    return jnp.floor((jnp.clip(zscores, -2, 2) + 2) / 4 * 255)


def _modality(
    name: str,
    batch: Mapping[str, Array],
    contract: Contract,
    config: Config,
    box: Box,
    moved: bool,
    eight_bit: bool,
) -> tuple[Array, Array]:
    """Values and validity of one modality; its bands may come from groups with different native grids."""
    modality, where = config.model.modalities[name], contract.modality_bands(name)
    mean, std = statistics(modality)
    parts, order = [], []
    for field in dict.fromkeys(where[band] for band in modality.bands if band in where):
        group = contract.groups[field]
        take = [band for band in group.bands if band in modality.bands]
        rows = np.array([modality.bands.index(band) for band in take])
        channels = batch[field]
        if take != list(group.bands):
            channels = jnp.stack([channels[..., group.bands.index(band)] for band in take], axis=-1)
        parts.append(_group(channels, group, mean[rows], std[rows], modality, config, box, moved, eight_bit))
        order += take
    if absent := [band for band in modality.bands if band not in where]:
        # data.absent_bands='mean': 0 is the mean, and an invalid pixel is never a target.
        shape = (*parts[0][0].shape[:3], len(absent))
        mean_value = jnp.zeros(shape, parts[0][0].dtype)
        parts.append((to_bytes(mean_value) if eight_bit else mean_value, jnp.zeros(shape, bool)))
        order += absent
    values, valid = (jnp.concatenate(part, axis=-1) for part in zip(*parts))
    if order != list(modality.bands):
        index = [order.index(band) for band in modality.bands]
        values, valid = (jnp.stack([x[..., i] for i in index], axis=-1) for x in (values, valid))
    # 8 bits are on their scale already.
    return values if eight_bit else _scaled(values, config), valid


def _cut(image: tuple[Array, Array], patch_size: int, cut: Patchify) -> Patches:
    return Patches(*(cut(x, patch_size) for x in image))


def _scaled(zscores: Array, config: Config) -> Array:
    """Z-scores as `config.data` wants them."""
    if config.data.normalisation == 'mean_2sigma':
        return jnp.clip(zscores, -2, 2) / 2
    return jnp.clip(zscores, -config.data.clip, config.data.clip)


def _group(
    stored: Shaped[Array, 'b h w c'],
    group: Group,
    mean: np.ndarray,
    std: np.ndarray,
    modality: Modality,
    config: Config,
    box: Box,
    moved: bool,
    eight_bit: bool,
) -> tuple[Array, Array]:
    """Z-scores and validity of one group of bands on the model grid."""
    physical, valid = stored.astype(jnp.float32), units.validity(stored, group)
    if group.scale != 1 or group.offset != 0:
        physical = physical * jnp.float32(group.scale) + jnp.float32(group.offset)
    if (wanted := target_unit(modality, group)) != group.unit:
        physical = units.convert(physical, group.unit, wanted)
        # A power of 0 or less has no decibels.
        valid &= jnp.isfinite(physical)
    # Filled before resampling: a NaN that met the kernel would spread over the whole image. With the mean,
    # which is 0 here, so that a hole pulls its neighbours nowhere.
    mean, std = mean[None, None, None], std[None, None, None]
    values = jnp.where(valid, (physical - mean) / std, 0)
    values = to_bytes(values) if eight_bit else values
    # A box that only flips needs no kernel; on the model grid the stored numbers pass through exactly.
    if moved or stored.shape[1:3] != config.model.image_size:
        return resample(values, valid, box, config.model.image_size, modality.resample)
    for flip, axis in ((box.vflip, 1), (box.hflip, 2)):
        values, valid = (jnp.where(flip[:, None, None, None], jnp.flip(x, axis), x) for x in (values, valid))
    return values, valid


def patchify(image: Shaped[Array, 'b h w c'], patch_size: int) -> Shaped[Array, 'b n p']:
    """Cuts images into patches of `patch_size` x `patch_size`, row-major."""
    batch, height, width, bands = image.shape
    rows, columns = height // patch_size, width // patch_size
    x = image.reshape(batch, rows, patch_size, columns, patch_size, bands)
    return x.swapaxes(2, 3).reshape(batch, rows * columns, patch_size**2 * bands)


def patchify_columns(image: Shaped[Array, 'b h w c'], patch_size: int) -> Shaped[Array, 'b n p']:
    """The patches of `patchify` with their numbers in another order: columns, bands, rows.

    A TPU pads the last axis of what it holds to 128 numbers. On the way here the shortest last axis is bands
    times rows of a patch; on that of `patchify` it is the bands, and nine tenths of what is moved is padding.
    """
    batch, height, width, bands = image.shape
    rows, columns = height // patch_size, width // patch_size
    x = image.reshape(batch, rows, patch_size, width, bands).transpose(0, 1, 4, 2, 3)
    x = x.reshape(batch, rows, bands * patch_size, width)
    return x.swapaxes(2, 3).reshape(batch, rows * columns, patch_size**2 * bands)


def unpatchify(
    patches: Shaped[np.ndarray, 'b n p'], grid: tuple[int, int], patch_size: int
) -> Shaped[np.ndarray, 'b h w c']:
    """The inverse of `patchify`, on the host."""
    batch, (rows, columns) = patches.shape[0], grid
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return x.swapaxes(2, 3).reshape(batch, rows * patch_size, columns * patch_size, -1)
