"""Settings of evaluations: impossible ones of `finetune`, its file and presets, and the paper's recipe."""

import contextlib
import dataclasses
import json

import pytest

from fusmae_jax.config.build import from_dict, to_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import Augment, Parallel
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.errors import InputError
from fusmae_jax.eval import config as eval_config
from fusmae_jax.eval.config import Knn, LinearProbe, Task
from fusmae_jax.eval.finetune import config as finetune_config
from fusmae_jax.eval.finetune.config import Finetune, check, recipe_of
from fusmae_jax.tables.config import Tables
from fusmae_jax.tables.recipes import evaluation


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


SEN12MS = (10.0, 256, (1.0,))  # epochs, batch (in version 1 of the paper only), label fractions


def head(config):
    return config.epochs, config.batch_size, config.labels.fractions


def probe(variant):
    return from_dict(LinearProbe, load_config(f'configs/linear_probe.py:{variant}'))


@pytest.mark.parametrize('variant', ['sen12ms', 'paper,sen12ms', 'sen12ms,paper', 'sen12ms,crops,features'])
def test_a_linear_probe_of_sen12ms_is_the_papers_in_whatever_order_it_is_asked_for(variant):
    assert head(probe(variant)) == SEN12MS
    if 'features' not in variant:
        assert eval_config.recipe_of(probe(variant)) == 'paper'


def test_a_linear_probe_of_bigearthnet_is_the_papers():
    assert head(probe('paper')) == (20.0, 128, (0.01,))
    assert eval_config.recipe_of(probe('paper')) == 'paper'


@pytest.mark.parametrize(
    ('variant', 'changes'),
    [
        ('paper,sen12ms', {'epochs': 20.0, 'batch_size': 128}),  # that of the other data set
        ('paper,sen12ms', {'batch_size': 128}),
        ('paper,sen12ms', {'label_smoothing': 0.0}),
        ('paper', {'epochs': 10.0, 'batch_size': 256}),
        ('paper', {'weight_decays': (0.1,)}),
    ],
)
def test_the_recipe_of_another_data_set_is_not_called_the_papers(variant, changes):
    assert eval_config.recipe_of(dataclasses.replace(probe(variant), **changes)) == 'custom'


def test_fine_tuning_and_neighbours_on_sen12ms_have_all_labels_and_the_papers_batch():
    config = from_dict(Finetune, load_config('configs/finetune.py:paper,sen12ms'))
    assert head(config) == SEN12MS and finetune_config.recipe_of(config) == 'paper'
    changed = dataclasses.replace(config, batch_size=128)
    assert finetune_config.recipe_of(changed) == 'custom'
    assert finetune_config.recipe_of(from_dict(Finetune, load_config('configs/finetune.py:paper'))) == 'paper'
    knn = from_dict(Knn, load_config('configs/knn.py:sen12ms,crops'))
    assert (knn.data.kind, knn.image, knn.labels.fractions) == ('single_label', 'crops', (1.0,))
    assert knn.encoder.stats == 'dataset'
    with pytest.raises(InputError, match="did you mean 'sen12ms'"):
        load_config('configs/knn.py:sen12')


def test_the_tables_evaluate_as_the_commands_do():
    study = from_dict(Tables, load_config('configs/tables.py'))
    for task, variant in (('linear_1', 'paper'), ('sen12ms_resize', 'sen12ms'), ('sen12ms_crops', 'sen12ms')):
        config = evaluation(study, task, 'xae', (('s2',),))
        assert head(config) == head(probe(variant)) and eval_config.recipe_of(config) == 'paper'
    # Band statistics have nothing to fine-tune: the probe in their place is that of the data set.
    tuned = dataclasses.replace(study.tasks['finetune_100'], config='configs/finetune.py:sen12ms')
    study = dataclasses.replace(study, tasks={**study.tasks, 'tuned': tuned})
    assert head(evaluation(study, 'tuned', 'bands', (('s2',),))) == SEN12MS
