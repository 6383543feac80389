"""Imported encoders on disk and as systems of an evaluation, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from fusmae_jax.encoders import store
from fusmae_jax.encoders.load import load
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.features import Extractor
from fusmae_jax.input import contract as contracts
from fusmae_jax.interop.weights import published as importing
from fusmae_jax.interop.weights.published_kinds import WeightFile, check
from tests.support import published_states as theirs
from tests.support.probe_fixtures import ACCEPT, archive, native
from tests.support.published_states import DINO, SAT, SATVIT, WIDTH


def test_what_is_written_is_what_is_read(tmp_path):
    settings, params, _ = importing.build(SAT, theirs.satvit(4, 8), 'own')
    about = {'kind': 'satvit', 'untouched': False}
    store.write(tmp_path / 'own', settings, importing._contract('satvit'), params, about)
    assert store.is_imported(tmp_path / 'own') and not store.is_imported(tmp_path)
    found = store.read(tmp_path / 'own')
    assert found.model.config == settings and not settings.model.cls
    jax.tree.map(np.testing.assert_array_equal, found.model.params, params)
    assert found.model.contract.products['s2'].level == 'L2A' and not found.untouched
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


def test_an_import_is_a_system_of_an_evaluation(tmp_path, capsys):
    data = archive(tmp_path / 'data', {'train': 4, 'val': 12, 'test': 4})
    file = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(theirs.timm(14, 3, 14), file)
    importing.run_import(dataclasses.replace(DINO, file=str(file)), tmp_path / 'dino')
    assert 'the stacked projection is split' not in capsys.readouterr().out
    own, common = (str(tmp_path / 'dino' / name) for name in ('own', 'common'))
    system = open_system(own, EncoderSettings(checkpoint=own))
    assert system.name == 'DINO-MM, own preset' and system.seen is None
    other, fresh = (open_system(kind, EncoderSettings(checkpoint=common)) for kind in (common, 'random'))
    assert len({one.fingerprint for one in (system, other, fresh)}) == 3
    task = Task(path=str(data), labels='labels')
    ready = Extractor(system, task, ('s1',), ('last4_cls', 'mean_patch'), EncoderSettings(batch=16))
    found = ready('val', tmp_path / 'features')
    assert found['last4_cls'].values.shape == (12, 4 * WIDTH)
    assert found['last4_cls'].valid.sum() == 11  # one record has no radar
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
    assert_encode_gives_what_an_evaluation_takes(own, data, found['mean_patch'].values, ('s1',))
    both = Extractor(system, task, ('s1', 's2'), ('mean_patch',), EncoderSettings(batch=16))('val')[
        'mean_patch'
    ]
    assert_encode_gives_what_an_evaluation_takes(own, data, both.values, ('s1', 's2'))
    with pytest.raises(InputError, match='stacks its sensors'):
        open_system(own, EncoderSettings(checkpoint=own, absent='bypass'))


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
