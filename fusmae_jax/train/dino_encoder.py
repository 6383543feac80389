"""The encoder of a DINO-MM run: the backbone, of student or teacher, as one that takes stacked bands."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fusmae_jax.config.run import Config, Decoder, Preset
from fusmae_jax.models import fusmae
from fusmae_jax.models.dino import resize_positions
from fusmae_jax.parallel.rules import Params

NO_DECODER = Decoder(width=4, depth=1, heads=1)  # the model family has decoders; no feature passes them


def encoder_config(config: Config) -> Config:
    """The settings of the encoder, with the input that DINO-MM evaluates on.

    An image of 8 / 7 of the size of a global crop, of which that size is cut out of the centre (128 and
    112 px); bands on [0, 1], where a sensor that is not there is 0.
    """
    dino = config.distillation
    side = dino.global_crops.size
    model = dataclasses.replace(
        config.model,
        image_size=(side, side),
        decoder=NO_DECODER,
        fusion=dataclasses.replace(config.model.fusion, absent='zero_image'),
    )
    preset = Preset(
        'own',
        resize=round(side * 8 / 7),
        quantile_clip=dino.quantile_clip,
        quantile_modality=dino.quantile_clip_modality,
        quantile_grid='native',
        scale='unit',
    )
    return dataclasses.replace(config, model=model, preset=preset, dino=None)


def encoder_params(params: Params, config: Config) -> dict[str, Any]:
    """Parameters of the model of `encoder_config` that compute what the backbone does; traceable."""
    target, backbone = encoder_config(config).model, params['backbone']
    table = backbone['position_table']
    positions = resize_positions(
        table[1:], config.model.grid, target.grid, config.distillation.position_offset
    )
    moved = {'cls': backbone['cls'] + table[0], 'position_table': positions}
    shapes = fusmae.param_shapes(target)
    decoders = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes['decoders'])
    return {'encoder': {**backbone, **moved}, 'decoders': decoders}
