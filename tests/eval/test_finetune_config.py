"""The settings of `finetune`: impossible ones, their file, and what a preset is."""

import contextlib
import dataclasses
import json

import pytest

from fusmae_jax.config.build import from_dict, to_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import Augment, Parallel
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.finetune.config import Finetune, check, recipe_of


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'layer_decay': 0.0}, 'layer_decay=0.0 must be above 0'),
        ({'drop_path': 1.0}, 'drop_path=1.0 must be at least 0 and below 1'),
        ({'warmup_epochs': 10.0}, 'leaves nothing of epochs=10.0'),
        ({'encoder': EncoderSettings(checkpoint='x', baselines=('bands',))}, 'has no weights to train'),
        ({'augment': Augment(hflip=2.0)}, 'augment.hflip=2.0 must be at least 0'),
        ({'learning_rates': (1e-3, 1e-3)}, 'learning_rates=.* has a number twice'),
        ({'features': ('mean_token',)}, "did you mean 'mean_patch'"),
        ({'parallel': Parallel()}, None),
    ],
)
def test_impossible_settings_are_named(changes, message):
    values = {
        'data': Task(path='x'),
        'encoder': EncoderSettings(checkpoint='x', baselines=('random',)),
    } | changes
    refused = pytest.raises(InputError, match=message) if message else contextlib.nullcontext()
    with refused:
        check(Finetune(**values))


def test_settings_come_back_from_json():
    config = from_dict(Finetune, load_config('configs/finetune.py', ['encoder.checkpoint=runs/x']))
    assert config == dataclasses.replace(
        Finetune(), data=config.data, encoder=dataclasses.replace(Finetune().encoder, checkpoint='runs/x')
    )
    assert from_dict(Finetune, json.loads(json.dumps(to_dict(config)))) == config
    config = from_dict(Finetune, load_config('configs/finetune.py:recommended,sen12ms,crops'))
    assert (config.preset, config.epoch, config.settle, config.image) == (
        'recommended',
        'best',
        'each',
        'crops',
    )
    assert config.layer_decay < 1 and config.drop_path > 0 and config.augment.crop
    assert config.data.kind == 'single_label'
    with pytest.raises(InputError, match="did you mean 'crops'"):
        load_config('configs/finetune.py:crop')


@pytest.mark.parametrize('preset', ['paper', 'recommended'])
def test_a_preset_whose_recipe_was_changed_is_custom(preset):
    config = from_dict(Finetune, load_config(f'configs/finetune.py:{preset},sen12ms,crops'))
    assert recipe_of(config) == preset
    assert recipe_of(dataclasses.replace(config, learning_rates=(1e-3,), head_seeds=(1, 2))) == preset
    for changed in ({'epochs': 3.0}, {'layer_decay': 0.9}, {'weight_decay': 0.1}):
        assert recipe_of(dataclasses.replace(config, **changed)) == 'custom'
