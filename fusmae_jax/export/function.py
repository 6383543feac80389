"""The function that is exported: images on their native grids to features, and what it has to be given.

It is what `Pretrained.encode` computes of images by record field, in float32: normalisation, resampling and
the preset of the model are inside. A pixel that was not measured is NaN; a sensor of which a sample has
nothing is NaN throughout, which gives the same numbers as a sensor that is not given. There is one function
for each set of sensors, so that one sensor alone costs no more than it has to.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array

from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input import normalise
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.presets import describe_statistics, make_inputs, preset_of
from fusmae_jax.models import fusmae

Features = dict[str, Any]  # 'cls', 'pooled', 'tokens/<modality>' of the sensors that are given
MOST_SENSORS = 3  # of which every subset gets a function of its own


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


def subsets(model: Pretrained) -> list[tuple[str, ...]]:
    """The sets of sensors that get a function; of many sensors, each alone and all together."""
    names = list(model.config.model.modalities)
    few = len(names) <= MOST_SENSORS
    sizes = range(1, len(names) + 1) if few else sorted({1, len(names)})
    return [given for size in sizes for given in itertools.combinations(names, size)]


def given_fields(model: Pretrained, given: tuple[str, ...]) -> dict[str, Group]:
    """The inputs of the function of some sensors."""
    return {field: group for field, group in fields(model).items() if group.modality in given}


def encode_function(
    model: Pretrained, given: tuple[str, ...]
) -> Callable[[Mapping[str, Array], Mapping[str, Array]], Features]:
    """The traceable function (weights, images) -> features, for some sensors.

    Weights are those of `encoder_weights`; images are those of `given_fields`, each (b, rows, columns, bands)
    float32. Of the result, `cls` and `pooled` are (b, d), and `tokens/<modality>` are (b, n, d), patches in
    raster order.
    """
    config = model.config
    modalities = {name: m for name, m in config.model.modalities.items() if name in given}
    reading = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=modalities))
    inputs = make_inputs(reading, Contract(groups=given_fields(model, given)))
    # Plain operations in every part, which all platforms have.
    whole = dataclasses.replace(config.model, attention='xla', norm='xla', remat='none')
    graphdef = fusmae.graph(whole, jnp.float32)
    shapes = fusmae.param_shapes(whole)

    def encode(weights: Mapping[str, Array], images: Mapping[str, Array]) -> Features:
        # No feature passes the decoders; a compiler drops these zeros.
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        params |= traverse_util.unflatten_dict(dict(weights), sep='/')
        encoded = nnx.merge(graphdef, params).encode(inputs(images, None))
        tokens = {f'tokens/{name}': x for name, x in encoded.tokens.items()}
        return {'cls': encoded.cls, 'pooled': encoded.pooled} | tokens

    return encode


def encoder_weights(model: Pretrained) -> dict[str, Array]:
    """The parameters that features depend on, by flat name."""
    flat = traverse_util.flatten_dict({'encoder': model.params['encoder']}, sep='/')
    return {name: jnp.asarray(x) for name, x in flat.items()}


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
