"""What a path names: encoders, several side by side, and imported ones with what is refused of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from fusmae_jax.config import run as cfg
from fusmae_jax.encoders import store
from fusmae_jax.encoders.load import SideBySide, load, load_one, several
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.features import Extractor, Extractors, Features, make_extractor
from fusmae_jax.eval.finetune.command import run_finetune
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.input import contract as contracts
from fusmae_jax.interop.weights import published as importing
from fusmae_jax.interop.weights.published_kinds import WeightFile, check
from tests.support import published_states as theirs
from tests.support.helpers import CONTRACT, weights
from tests.support.probe_fixtures import ACCEPT, archive, checkpoint, native
from tests.support.published_states import DINO, SAT, SATVIT, WIDTH
from tests.support.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures('one_device')
UNITS = {'s1': 'dB', 's2': 'DN'}
STEP = {'s1': 37.5, 's2': 37.5}  # metres a pixel: 32 are the 1200 m of a record


@pytest.fixture(scope='module')
def models():
    runs = {}
    for seed, (name, modality) in enumerate(cfg.Model().modalities.items()):
        config = tiny_config(model=tiny_model('none', 'none', modalities={name: modality}, depth=1))
        runs[name] = Pretrained(config, CONTRACT, weights(config.model, seed), 'float32')
    return runs


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
    pooled = both('val')['mean_patch']
    apart = [features(open_system(one[m], settings), (m,))('val')['mean_patch'] for m in ('s1', 's2')]
    np.testing.assert_array_equal(pooled.values, np.concatenate([x.values for x in apart], axis=1))
    np.testing.assert_array_equal(pooled.valid, apart[0].valid | apart[1].valid)
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


def test_what_is_written_is_what_is_read(tmp_path):
    settings, params, _ = importing.build(SAT, theirs.satvit(4, 8), 'own')
    about = {'kind': 'satvit', 'untouched': False}
    store.write(tmp_path / 'own', settings, importing._contract('satvit'), params, about)
    assert store.is_imported(tmp_path / 'own') and not store.is_imported(tmp_path)
    stored = store.read(tmp_path / 'own')
    assert stored.model.config == settings and not settings.model.cls
    jax.tree.map(np.testing.assert_array_equal, stored.model.params, params)
    assert stored.model.contract.products['s2'].level == 'L2A' and not stored.untouched
    # Older folders say in the preset that there is no CLS token.
    about = json.loads((tmp_path / 'own' / store.ABOUT).read_text())
    about['config']['preset']['cls'] = about['config']['model'].pop('cls')
    (tmp_path / 'own' / store.ABOUT).write_text(json.dumps(about))
    assert store.read(tmp_path / 'own').model.config == settings
    weights = tmp_path / 'own' / store.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match='cannot be read'):
        store.read(tmp_path / 'own')
    (tmp_path / 'own' / store.ABOUT).write_text('{"format": 1}')
    with pytest.raises(InputError, match='import the weights again'):
        store.read(tmp_path / 'own')


@pytest.mark.slow
def test_an_import_is_a_system_of_an_evaluation(tmp_path, capsys):
    data = archive(tmp_path / 'data', {'train': 4, 'val': 12, 'test': 4})
    file = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(theirs.timm(14, 3, 14), file)
    importing.run_import(dataclasses.replace(DINO, file=str(file)), tmp_path / 'dino')
    assert 'the stacked projection is split' not in capsys.readouterr().out
    published, common = (str(tmp_path / 'dino' / name) for name in ('own', 'common'))
    system = open_system(published, EncoderSettings(checkpoint=published))
    assert system.name == 'DINO-MM, own preset' and system.seen is None
    other, fresh = (open_system(kind, EncoderSettings(checkpoint=common)) for kind in (common, 'random'))
    assert len({one.fingerprint for one in (system, other, fresh)}) == 3
    task = Task(path=str(data), labels='labels')
    ready = Extractor(system, task, ('s1',), ('last4_cls', 'mean_patch'), EncoderSettings(batch=16))
    features = ready('val', tmp_path / 'features')
    assert features['last4_cls'].values.shape == (12, 4 * WIDTH)
    assert features['last4_cls'].valid.sum() == 11  # one record has no radar
    assert ready.row_fields() == {
        'modalities': ('s1',),
        'absent': 'zero_image',
        'image': 'resize 24 x 24, centre 21 x 21',
        'statistics': 'mean +- 2 std to [0, 1] in 256 levels (s2: native grid); '
        's1 clipped to 1% .. 99% of each resized image; '
        's1: the code of DINO-MM',
        'accepted': (),
    }
    second = Extractor(other, task, ('s1',), ('mean_patch',), EncoderSettings(batch=16)).row_fields()
    assert second['image'] == 'resize 42 x 42' and second['statistics'] == 'zscore; s1: the sensor table'
    assert_encode_gives_what_an_evaluation_takes(published, data, features['mean_patch'].values, ('s1',))
    both = Extractor(system, task, ('s1', 's2'), ('mean_patch',), EncoderSettings(batch=16))('val')[
        'mean_patch'
    ]
    assert_encode_gives_what_an_evaluation_takes(published, data, both.values, ('s1', 's2'))
    with pytest.raises(InputError, match='stacks its sensors'):
        open_system(published, EncoderSettings(checkpoint=published, absent='bypass'))


def assert_encode_gives_what_an_evaluation_takes(path, data, pooled, modalities):
    """From Python, on the native grids of the records; `pooled` is the feature of the evaluation."""
    contract = contracts.read(data)
    images = {name: native(data, 'val', name) for name in modalities}
    units = {'s1': 'dB', 's2': 'DN'}
    embedding = load(path).encode(
        images, units={name: units[name] for name in modalities}, contract=contract, accept=ACCEPT
    )
    np.testing.assert_allclose(embedding.pooled, pooled, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (WeightFile('satvit', 'x'), 'channels is empty: the weights of SatViT have 15 input channels'),
        (WeightFile('satvit', 'x', channels=('B02', 'VV', 'B02')), 'B02 stands there twice'),
        (WeightFile('satvit', 'x', channels=('VV', 'B02', 'VV', 'VV')), 'VV stands there 3 times'),
        (WeightFile('dino_mm', 'x', channels=('VV', 'B02', 'VV')), 'VV stands there twice'),
        (WeightFile('satvit', 'x', channels=('a', 'VV')), r'no band of s2 \(B01'),
        (WeightFile('imagenet_vit', 'x', channels=('B04',)), 'leave the list empty'),
        (WeightFile('imagenet_vit', 'x', pixel_mean=0.4), 'pixel_std must be positive'),
        (WeightFile('', 'x'), 'choose one of imagenet_vit'),
        (WeightFile('dino_mm'), 'give the weight file'),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        check(config)


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r'not \(width, 14 \* 4 \* 4\)'):
        importing.build(dataclasses.replace(SAT, channels=SATVIT[1:]), theirs.satvit(4, 8), 'own')
    with pytest.raises(InputError, match='expected 14 input channels'):
        importing.build(DINO, theirs.timm(13, 3, 14), 'own')
    with pytest.raises(InputError, match='missing: blocks'):
        importing.build(dataclasses.replace(DINO, depth=5), theirs.timm(14, 3, 14), 'own')
    with pytest.raises(InputError, match='no such weight file'):
        importing.run_import(dataclasses.replace(SAT, file=str(tmp_path / 'none.pt')), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
