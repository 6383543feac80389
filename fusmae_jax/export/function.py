"""The function that is exported: images on their native grids to features (`encoders.inputs`: what it needs).

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

from fusmae_jax.encoders.inputs import fields
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.models import fusmae

Features = dict[str, Any]  # 'cls', 'pooled', 'tokens/<modality>' of the sensors that are given
MOST_SENSORS = 3  # of which every subset gets a function of its own


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
