"""What the paper says of its evaluations, as every command has it: one recipe for each data set."""

import dataclasses

import pytest

from fusmae_jax.config.build import from_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.errors import InputError
from fusmae_jax.eval import config as eval_config
from fusmae_jax.eval.config import Knn, LinearProbe
from fusmae_jax.eval.finetune import config as finetune_config
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.tables.config import Tables
from fusmae_jax.tables.recipes import evaluation

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
