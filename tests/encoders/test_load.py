"""Encoders side by side: what a path names, and late fusion in the evaluations."""

import dataclasses

import jax
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.encoders.load import SideBySide, load, load_one, several
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.features import Extractors, Features, make_extractor
from fusmae_jax.eval.finetune.command import run_finetune
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.models.fusmae import init_params
from tests.support.helpers import CONTRACT
from tests.support.probe_fixtures import archive, checkpoint
from tests.support.tiny import tiny_config, tiny_model

UNITS = {'s1': 'dB', 's2': 'DN'}
STEP = {'s1': 37.5, 's2': 37.5}  # metres a pixel: 32 are the 1200 m of a record


@pytest.fixture(scope='module')
def models():
    found = {}
    for seed, (name, modality) in enumerate(cfg.Model().modalities.items()):
        config = tiny_config(model=tiny_model('none', 'none', modalities={name: modality}, depth=1))
        params = jax.jit(lambda key, m=config.model: init_params(m, key))(jax.random.key(seed))
        found[name] = Pretrained(config, CONTRACT, params, 'float32')
    return found


def test_two_encoders_side_by_side(models):
    rng = np.random.default_rng(0)
    images = {'s2': rng.uniform(1, 4000, (3, 32, 32, 12)), 's1': rng.normal(-13, 5, (3, 32, 32, 2))}
    both = SideBySide(list(models.items())).encode(images, units=UNITS, resolution=STEP)
    apart = {name: models[name].encode({name: images[name]}, units=UNITS, resolution=STEP) for name in models}
    assert list(both.tokens) == ['s1', 's2'] and both.cls.shape == both.pooled.shape == (3, 64)
    for i, (name, one) in enumerate(apart.items()):
        columns = slice(32 * i, 32 * (i + 1))
        np.testing.assert_array_equal(both.pooled[:, columns], one.pooled)
        np.testing.assert_array_equal(both.cls[:, columns], one.cls)
        np.testing.assert_array_equal(both.tokens[name], one.tokens[name])
    alone = SideBySide(list(models.items())).encode({'s2': images['s2']}, units=UNITS, resolution=STEP)
    np.testing.assert_array_equal(alone.pooled, apart['s2'].pooled)


def test_what_does_not_fit_is_refused(models):
    fused = SideBySide(list(models.items()))
    images = {'s1': np.full((2, 32, 32, 2), -13.0), 's2': np.full((3, 32, 32, 12), 500.0)}
    with pytest.raises(InputError, match='number of images'):
        fused.encode(images, units=UNITS, resolution=STEP)
    with pytest.raises(InputError, match="images\\['s3'\\] has no encoder"):
        fused.encode({'s3': images['s1']}, units=UNITS, resolution=STEP)
    with pytest.raises(InputError, match='empty'):
        fused.encode({}, units=UNITS, resolution=STEP)
    with pytest.raises(InputError, match='at least one'):
        SideBySide([])
    with pytest.raises(InputError, match='a and b both read s1'):
        SideBySide([('a', models['s1']), ('b', models['s1'])])


def test_a_path_names_one_or_several(tmp_path):
    assert several('runs/a + runs/b') == ['runs/a', 'runs/b'] and several('runs/a') == []
    (tmp_path / 'a + b').mkdir()
    assert several(tmp_path / 'a + b') == []  # a folder that is called so
    with pytest.raises(InputError, match='give one'):
        load_one('runs/a + runs/b')
    with pytest.raises(InputError, match='give one'):
        load('runs/a + runs/b', 3)


class Part:
    """An extractor of one encoder, whose features are made up."""

    names, notes = ('mean_patch',), ['left out: B10']

    def __init__(self, sensor, values, valid):
        self._sensor, self._features = sensor, Features(np.array(values, np.float32), np.array(valid, bool))

    def __call__(self, split, folder=None):
        return {'mean_patch': self._features}

    def row_fields(self):
        about = {'modalities': (self._sensor,), 'absent': 'self', 'image': 'resize 224'}
        return about | {'statistics': f'of {self._sensor}', 'accepted': ('level',)}


def test_encoders_stand_side_by_side():
    parts = [Part('s2', [[1, 2], [0, 0], [0, 0]], [1, 0, 0]), Part('s1', [[3], [4], [0]], [1, 1, 0])]
    both = Extractors(parts)
    features = both('test')['mean_patch']
    np.testing.assert_array_equal(features.values, [[1, 2, 3], [0, 0, 4], [0, 0, 0]])
    # A record is valid where one of the encoders has seen something.
    np.testing.assert_array_equal(features.valid, [True, True, False])
    assert both.notes == ['left out: B10']
    assert both.row_fields() == {
        'modalities': ('s2', 's1'),
        'absent': None,
        'image': 'resize 224',
        'statistics': 'of s2; of s1',
        'accepted': ('level',),
    }


@pytest.mark.slow  # test_tables.py has a row of it
def test_an_evaluation_of_several_checkpoints(tmp_path):
    """What the probe is given: columns, validity, name, history, and what a row says."""
    data = archive(tmp_path / 'data')
    one = {m: checkpoint(tmp_path / m, data, modalities=(m,)) for m in ('s1', 's2')}
    settings = EncoderSettings(checkpoint=f'{one["s1"]} + {one["s2"]}', batch=16)
    task = Task(path=str(data), labels='labels')
    system = open_system(settings.checkpoint, settings)

    def features(system, modalities):
        return make_extractor(system, task, modalities, ('mean_patch',), settings)

    both = features(system, ('s1', 's2'))
    found = both('val')['mean_patch']
    apart = [features(open_system(one[m], settings), (m,))('val')['mean_patch'] for m in ('s1', 's2')]
    np.testing.assert_array_equal(found.values, np.concatenate([x.values for x in apart], axis=1))
    np.testing.assert_array_equal(found.valid, apart[0].valid | apart[1].valid)
    alone = features(system, ('s2',))
    np.testing.assert_array_equal(alone('val')['mean_patch'].values, apart[1].values)
    assert both.row_fields()['modalities'] == ('s1', 's2') and both.row_fields()['absent'] is None
    assert alone.row_fields()['modalities'] == ('s2',)
    assert system.name.startswith('late fusion of') and len(system.fingerprint) == 33
    random = open_system('random', settings)
    assert len(random.parts) == 2 and random.fingerprint != system.fingerprint
    tuned = Finetune(
        data=task,
        intervals=Intervals('scene'),
        encoder=dataclasses.replace(settings, modalities=(('s1',),), baselines=()),
    )
    with pytest.raises(InputError, match='several encoders; fine-tuning takes one'):
        run_finetune(tuned, tmp_path / 'tuned')
    with pytest.raises(InputError, match='both read s1'):
        open_system(f'{one["s1"]} + {one["s1"]}', settings)
    with pytest.raises(InputError, match="'s3' is not in late fusion"):
        features(system, ('s3',))
