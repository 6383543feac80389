"""From raw record fields to normalised patches, inside jit: what a model sees of a batch.

For each group of bands: native validity, z-score, fill with the mean, one resample from the native grid
to the model grid through the shared crop box, clip; then patches. Driven by the input contract.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from fusmae_jax import sensors
from fusmae_jax.config import Augment, Config, Modality
from fusmae_jax.errors import nearest, raise_all
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.patchify import Patches, patchify
from fusmae_jax.input.resample import Box, full_box, resample, sample_box

Prepare = Callable[[Mapping[str, Array], Array | None], dict[str, Patches]]


def statistics(modality: Modality) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a modality's bands, in sensor units; both (bands,) float32."""
    if modality.mean:
        return np.asarray(modality.mean, np.float32), np.asarray(modality.std, np.float32)
    bands = [sensors.SENSORS[modality.sensor].bands[name] for name in modality.bands]
    return np.array([b.mean for b in bands], np.float32), np.array([b.std for b in bands], np.float32)


def check_contract(config: Config, contract: Contract, source: str) -> None:
    """Raises InputError unless the data hold every band of the model, in the unit its statistics expect."""
    problems = []
    for name, modality in config.model.modalities.items():
        found = contract.modality_bands(name)
        for band in modality.bands:
            if band not in found:
                problems.append(
                    f'modality {name!r} needs band {band!r}, which is not in the data; {nearest(band, found)}'
                )
                continue
            group = contract.groups[found[band]]
            expected = sensors.SENSORS[modality.sensor].unit if modality.sensor else group.unit
            if group.unit != expected:
                problems.append(
                    f'field {found[band]!r} is in {group.unit!r}, the statistics of {name!r} in {expected!r}'
                )
    raise_all(f'{source}: these data do not fit config.model.modalities', problems)


def fields(config: Config, contract: Contract) -> list[str]:
    """The image fields of a record that the model needs."""
    return [
        field
        for field, group in contract.groups.items()
        if group.modality in config.model.modalities
        and set(group.bands) & set(config.model.modalities[group.modality].bands)
    ]


def make_prepare(config: Config, contract: Contract, augment: Augment | None) -> Prepare:
    """The function `prepare(batch, keys)` for one kind of data.

    Args:
        config: model grid, modalities, statistics and clip.
        contract: the record's image fields.
        augment: random crop and flips, or None for the whole image as it is.

    Returns:
        A traceable function of a batch, with each image field of `fields` as (b, rows, columns, bands) in
        its stored type, and of one random key for each sample (ignored without `augment`).
    """

    def prepare(batch: Mapping[str, Array], keys: Array | None = None) -> dict[str, Patches]:
        size = next(iter(batch[name].shape[0] for name in fields(config, contract)))
        box = full_box(size) if augment is None or keys is None else sample_box(keys, augment)
        moved = augment is not None and augment.crop
        return {
            name: _modality(modality, contract.modality_bands(name), batch, contract, config, box, moved)
            for name, modality in config.model.modalities.items()
        }

    return prepare


def _modality(
    modality: Modality,
    where: Mapping[str, str],
    batch: Mapping[str, Array],
    contract: Contract,
    config: Config,
    box: Box,
    moved: bool,
) -> Patches:
    """Patches of one modality; its bands may come from several groups with different native grids."""
    mean, std = statistics(modality)
    parts, order = [], []
    for field in dict.fromkeys(where[band] for band in modality.bands):
        group = contract.groups[field]
        take = [band for band in group.bands if band in modality.bands]
        rows = np.array([modality.bands.index(band) for band in take])
        channels = batch[field]
        if take != list(group.bands):
            channels = jnp.stack([channels[..., group.bands.index(band)] for band in take], axis=-1)
        parts.append(_group(channels, group, mean[rows], std[rows], modality, config, box, moved))
        order += take
    values, valid = (jnp.concatenate(part, axis=-1) for part in zip(*parts))
    if order != list(modality.bands):
        index = [order.index(band) for band in modality.bands]
        values, valid = (jnp.stack([x[..., i] for i in index], axis=-1) for x in (values, valid))
    if config.data.statistics == 'mean_2sigma':
        values = jnp.clip(values, -2, 2) / 2
    else:
        values = jnp.clip(values, -config.data.clip, config.data.clip)
    size = config.model.patch_size
    return Patches(patchify(values, size), patchify(valid, size))


def _group(
    stored: Shaped[Array, 'b h w c'],
    group: Group,
    mean: np.ndarray,
    std: np.ndarray,
    modality: Modality,
    config: Config,
    box: Box,
    moved: bool,
) -> tuple[Array, Array]:
    """Z-scores and validity of one group of bands on the model grid."""
    physical = stored.astype(jnp.float32)
    valid = jnp.isfinite(physical)
    for value in group.nodata:
        valid &= physical != jnp.float32(value)
    if group.scale != 1 or group.offset != 0:
        physical = physical * jnp.float32(group.scale) + jnp.float32(group.offset)
    # Filled before resampling: a NaN that met the kernel would spread over the whole image.
    mean, std = mean[None, None, None], std[None, None, None]
    values = jnp.where(valid, (physical - mean) / std, 0)
    if moved or stored.shape[1:3] != config.model.image_size:
        return resample(values, valid, box, config.model.image_size, modality.resample)
    for flip, axis in ((box.vflip, 1), (box.hflip, 2)):
        values, valid = (jnp.where(flip[:, None, None, None], jnp.flip(x, axis), x) for x in (values, valid))
    return values, valid
