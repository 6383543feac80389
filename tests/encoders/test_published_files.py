"""Imported encoders on disk and as systems of an evaluation, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from fusmae_jax.encoders import store as published
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.features import Extractor
from fusmae_jax.interop.weights import published as importing
from fusmae_jax.interop.weights.published_kinds import Weights, check
from tests.support import published_states as theirs
from tests.support.probe_fixtures import archive
from tests.support.published_states import DINO, SAT, SATVIT, WIDTH


def test_what_is_written_is_what_is_read(tmp_path):
    settings, params, _ = importing.build(SAT, theirs.satvit(4, 8), 'own')
    about = {'kind': 'satvit', 'untouched': False}
    published.write(tmp_path / 'own', settings, importing._contract('satvit'), params, about)
    assert published.is_published(tmp_path / 'own') and not published.is_published(tmp_path)
    found = published.read(tmp_path / 'own')
    assert found.model.config == settings and type(found.model.config.model) is type(settings.model)
    jax.tree.map(np.testing.assert_array_equal, found.model.params, params)
    assert found.model.contract.products['s2'].level == 'L2A' and not found.untouched
    weights = tmp_path / 'own' / published.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match='cannot be read'):
        published.read(tmp_path / 'own')
    (tmp_path / 'own' / published.ABOUT).write_text('{"format": 1}')
    with pytest.raises(InputError, match='import the weights again'):
        published.read(tmp_path / 'own')


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
    images = {'s1': np.full((1, 24, 24, 2), -12.0)}
    with pytest.raises(InputError, match=r'DINO-MM.*inputs of their own'):
        system.model.encode(images, units={'s1': 'dB'})
    with pytest.raises(InputError, match='stacks its sensors'):
        open_system(own, EncoderSettings(checkpoint=own, absent='bypass'))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (Weights('satvit', 'x'), 'channels is empty: the weights of SatViT have 15 input channels'),
        (Weights('satvit', 'x', channels=('B02', 'VV', 'B02')), 'B02 stands there twice'),
        (Weights('satvit', 'x', channels=('VV', 'B02', 'VV', 'VV')), 'VV stands there 3 times'),
        (Weights('dino_mm', 'x', channels=('VV', 'B02', 'VV')), 'VV stands there twice'),
        (Weights('satvit', 'x', channels=('a', 'VV')), r'no band of s2 \(B01'),
        (Weights('imagenet_vit', 'x', channels=('B04',)), 'leave the list empty'),
        (Weights('imagenet_vit', 'x', pixel_mean=0.4), 'pixel_std must be positive'),
        (Weights('', 'x'), 'choose one of imagenet_vit'),
        (Weights('dino_mm'), 'give the weight file'),
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
