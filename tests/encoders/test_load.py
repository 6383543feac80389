"""Encoders side by side, and what a path names."""

import jax
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.encoders.load import SideBySide, load, load_one, several
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.models.fusmae import init_params
from tests.support.helpers import CONTRACT
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
