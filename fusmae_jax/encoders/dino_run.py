"""The encoder of a DINO-MM run of our own: the teacher's backbone as one that takes stacked bands."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config.dino import DinoConfig, build
from fusmae_jax.config.run import Decoder, Parallel
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import seen as leak
from fusmae_jax.input.presets import Preset, PresetConfig
from fusmae_jax.models import fusmae
from fusmae_jax.models.dino import resize_positions
from fusmae_jax.train.dino_objective import final_teacher
from fusmae_jax.train.dino_setup import make_dino_setup

NO_DECODER = Decoder(width=4, depth=1, heads=1)  # the model family has decoders; no feature passes them


def encoder_config(config: DinoConfig) -> PresetConfig:
    """The settings of the encoder, with the input that DINO-MM evaluates on.

    An image of 8 / 7 of the size of a global crop, of which that size is cut out of the centre (128 and
    112 px); bands on [0, 1], where a sensor that is not there is 0.
    """
    side, dino = config.dino.global_crops.size, config.dino
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
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != 'dino'}
    return PresetConfig(**shared | {'model': model, 'preset': preset})


def encoder_params(backbone: Mapping[str, Any], config: DinoConfig) -> dict[str, Any]:
    """Parameters of the model of `encoder_config` that compute what a backbone does; traceable."""
    target = encoder_config(config).model
    table = backbone['position_table']
    positions = resize_positions(table[1:], config.model.grid, target.grid, config.dino.position_offset)
    moved = {'cls': backbone['cls'] + table[0], 'position_table': positions}
    return {'encoder': {**backbone, **moved}, 'decoders': no_decoders(target)}


def no_decoders(model: Any) -> dict[str, Any]:
    """Zeros in the place of the decoders of a model of stacked bands."""
    shapes = jax.eval_shape(lambda key: fusmae.init_params(model, key), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes['decoders'])


def load(
    checkpoints: Checkpoints,
    step: int,
    meta: Mapping[str, Any],
    seen: leak.Seen | None,
    path: epath.PathLike,
) -> Pretrained:
    """The teacher's encoder from a checkpoint of a DINO-MM run.

    Args:
        checkpoints: of the run.
        step: which one.
        meta: as it was stored with that.
        seen: the records of the run, whose number decides how long its schedules are.
        path: names the run in messages.

    Raises:
        InputError: the weights do not fit the stored configuration.
    """
    config = build(meta['config'])
    contract = contracts.from_values(meta['contract'], f'{path}: contract')
    if seen is None and not config.train.steps:
        logging.info('%s does not say its records: the teacher is taken as stored', path)
    examples = len(seen.names.id) if seen else 1
    one = dataclasses.replace(config, parallel=Parallel())
    setup = make_dino_setup(one, contract, examples, jax.local_devices()[:1])
    state = checkpoints.restore(setup.abstract_state(), step)
    teacher = final_teacher(state['params'], state['extra'], config, setup.total_steps)
    on_cpu = jax.default_backend() == 'cpu' and meta['dtype'] == 'bfloat16'
    dtype = 'float32' if on_cpu else meta['dtype']
    return Pretrained(encoder_config(config), contract, encoder_params(teacher['backbone'], config), dtype)
