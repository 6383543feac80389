"""What an encoder has to be given, in words that a program without this package can follow."""

import dataclasses
from typing import Any

from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input import normalise
from fusmae_jax.input.contract import Group
from fusmae_jax.input.presets import describe_statistics, preset_of


def fields(model: Pretrained) -> dict[str, Group]:
    """Input name -> what it holds: the record fields of the training data, in the unit of the model.

    Of a sensor whose records are not known (imported weights): one image on the grid of the model.
    """
    config, known = model.config, model.contract.first.groups
    side = preset_of(config).resize
    result = {}
    for name, modality in config.model.modalities.items():
        groups = {
            field: group
            for field, group in known.items()
            if group.modality == name and set(group.bands) & set(modality.bands) and min(group.size) > 0
        }
        size = (side, side) if side else config.model.image_size
        groups = groups or {name: Group(name, modality.bands, size, resolution=0.0)}
        for field, group in groups.items():
            unit = normalise.target_unit(modality, group)
            result[field] = dataclasses.replace(
                group, dtype='float32', unit=unit, scale=1.0, offset=0.0, nodata=()
            )
    return result


def describe(model: Pretrained) -> dict[str, Any]:
    """How to feed the function and what it gives, as JSON holds it."""
    config = model.config
    rows, columns = config.model.grid
    sensors = {}
    for name, modality in config.model.modalities.items():
        mean, std = normalise.statistics(modality)
        sensors[name] = {
            'bands': list(modality.bands),
            'mean': mean.tolist(),
            'std': std.tolist(),
            'fields': [field for field, group in fields(model).items() if group.modality == name],
        }
    return {
        'inputs': {field: _describe(group) for field, group in fields(model).items()},
        'sensors': sensors,
        'missing': 'NaN where nothing was measured; an absent sensor is left out, or NaN throughout',
        'inside': f'normalisation ({describe_statistics(config)}), resampling onto the grid of the model '
        f'({config.model.image_size[0]} x {config.model.image_size[1]} px), patches',
        'outside': 'units: convert to those of `inputs` first',
        'outputs': {
            'cls': ['b', config.model.width if config.model.cls else 0],
            'pooled': ['b', config.model.width],
            'tokens/SENSOR': ['b', rows * columns, config.model.width],
        },
        'grid': [rows, columns],
        'matmul_precision': config.model.numerics.matmul_precision,
    }


def _describe(group: Group) -> dict[str, Any]:
    return {
        'sensor': group.modality,
        'shape': ['b', *group.size, len(group.bands)],
        'dtype': 'float32',
        'bands': list(group.bands),
        'unit': group.unit,
        'metres_a_pixel': group.resolution or None,
    }
