"""Mean and standard deviation that a model's inputs are normalised with, and where they come from."""

import dataclasses
from typing import NamedTuple

import numpy as np

from fusmae_jax import sensors
from fusmae_jax.config.run import Config, Modality
from fusmae_jax.errors import InputError
from fusmae_jax.input import units
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.installed import program


class Measured(NamedTuple):
    """What was measured of one band, in the unit of the model."""

    mean: float
    std: float
    images: float  # as many as would have this number of valid pixels


def target_unit(modality: Modality, group: Group) -> str:
    """The unit that the model sees a group in."""
    return modality.unit or (sensors.SENSORS[modality.sensor].unit if modality.sensor else group.unit)


def statistics(modality: Modality) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a modality's bands, in the model's unit; both (bands,) float32."""
    if modality.mean:
        return np.asarray(modality.mean, np.float32), np.asarray(modality.std, np.float32)
    bands = [sensors.SENSORS[modality.sensor].bands[name] for name in modality.bands]
    return np.array([b.mean for b in bands], np.float32), np.array([b.std for b in bands], np.float32)


def measured(data: Contract, name: str, modality: Modality, band: str) -> Measured | None:
    """A band's statistics as measured while converting; None without them, or where the unit is curved."""
    field = data.modality_bands(name).get(band)
    if field is None or field not in data.statistics:
        return None
    group, values = data.groups[field], data.statistics[field]
    # Reflectance and its digital numbers differ by a factor; a decibel has no mean that a power could tell.
    wanted = target_unit(modality, group)
    factor = 1.0 if group.unit == wanted else units.SCALES.get((group.unit, wanted))
    if factor is None:
        return None
    i = group.bands.index(band)
    mean = (values.mean[i] * group.scale + group.offset) * factor
    images = values.valid[i] / (group.size[0] * group.size[1])
    return Measured(mean, values.std[i] * abs(group.scale) * factor, images)


def resolve(config: Config, data: Contract) -> Config:
    """The configuration with units, statistics and bands settled for a data set.

    `data.stats='dataset'` becomes explicit numbers, `data.absent_bands='drop'` a shorter list of bands, so
    that a checkpoint says in full what its model expects.

    Raises:
        InputError: statistics of the data set are asked for, and it has none in the model's unit.
    """
    modalities = {name: _resolve(name, m, config, data) for name, m in config.model.modalities.items()}
    model = dataclasses.replace(config.model, modalities=modalities)
    settled = dataclasses.replace(config.data, stats='config')
    return dataclasses.replace(config, model=model, data=settled)


def _resolve(name: str, modality: Modality, config: Config, data: Contract) -> Modality:
    where = data.modality_bands(name)
    group = data.groups[next(iter(where.values()))] if where else Group()
    bands = modality.bands
    if config.data.absent_bands == 'drop':
        bands = tuple(band for band in bands if band in where)
    source = modality.statistics_from or ('the configuration' if modality.mean else 'the sensor table')
    if config.data.stats == 'dataset':
        mean, std = _from_data(name, modality, bands, data)
        source = f'{data.dataset} {data.version}, split {data.statistics_split}'
    else:
        all_mean, all_std = (modality.mean, modality.std) if modality.mean else ((), ())
        keep = [modality.bands.index(band) for band in bands] if all_mean else []
        mean, std = (tuple(values[i] for i in keep) for values in (all_mean, all_std))
    return dataclasses.replace(
        modality, bands=bands, mean=mean, std=std, unit=target_unit(modality, group), statistics_from=source
    )


def _from_data(
    name: str, modality: Modality, bands: tuple[str, ...], data: Contract
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = [], []
    for band in bands:
        of_band = measured(data, name, modality, band)
        if of_band is None or not of_band.images or not of_band.std > 0:
            raise InputError(
                f"data.stats='dataset': {data.dataset} {data.version} has no usable statistics of {name} "
                f"{band} (split {data.statistics_split!r}) in the model's unit; measure them with "
                f'`{program()} stats` and set model.modalities.{name}.mean and .std'
            )
        mean.append(of_band.mean)
        std.append(of_band.std)
    return tuple(mean), tuple(std)
