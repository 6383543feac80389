"""Fresh parameters of every kind and tables of positions, against the formulas of their sources."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import resolve
from fusmae_jax.interop.weights.rules import flatten
from fusmae_jax.models import dino, fusmae, heads
from fusmae_jax.models.positions import sincos_2d
from tests.support.dino_helpers import tiny
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures('strict')

# Projections side by side in one kernel, each drawn as if it stood alone (MultiMAE).
PARTS = {'qkv': 3, 'kv': 2}
# trunc_normal_(std=.02) of timm, normal_(std=.02) of MAE, which are the same.
SMALL = r'encoder/(cls|position_table)|decoders/[^/]+/modality/[^/]+/bias'


@functools.cache
def fresh(encoder, decoder):
    sizes = {'size': 'custom', 'width': 256, 'depth': 2, 'heads': 4, 'positions': 'learned'}
    model = tiny_model(encoder, decoder, **sizes)
    model = dataclasses.replace(model, decoder=cfg.Decoder(256, 1, 4))
    return flatten(jax.jit(functools.partial(fusmae.init_params, resolve(model)))(jax.random.key(0)))


def check_kernel(path, x):
    fan_in, fan_out = x.shape[-2:]
    limit = (6 / (fan_in + fan_out / PARTS.get(path.split('/')[-2], 1))) ** 0.5
    assert np.abs(x).max() <= limit, path
    np.testing.assert_allclose([x.std(), np.abs(x).max()], [limit / 3**0.5, limit], rtol=0.02, err_msg=path)


def check_small_normal(path, x):
    """Nothing is cut at two deviations: of 256 numbers a dozen lie beyond."""
    np.testing.assert_allclose(x.std(), 0.02, rtol=4 / (2 * x.size) ** 0.5, err_msg=path)
    assert 0.01 < (np.abs(x) > 0.04).mean() < 0.1, path


@pytest.mark.parametrize(
    ('encoder', 'decoder'), [('xae', 'multimae'), pytest.param('none', 'xad', marks=pytest.mark.slow)]
)
def test_every_parameter_starts_as_its_source_has_it(encoder, decoder):
    small = SMALL if decoder == 'multimae' else f'{SMALL}|decoders/[^/]+/mask_token'
    seen = set()
    for path, x in fresh(encoder, decoder).items():
        if path.endswith('kernel'):
            check_kernel(path, x)
        elif re.fullmatch(small, path):
            check_small_normal(path, x)
        elif path.endswith('scale'):
            assert (x == 1).all(), path
        else:  # MultiMAE's mask token among them
            assert path.endswith(('bias', 'mask_token')) and not x.any(), path
        seen.add(path.split('/')[-1])
    assert seen == {'kernel', 'bias', 'scale', 'cls', 'position_table', 'mask_token'}


def test_no_two_parameters_start_alike():
    """Kernels of one shape, and the layers of a stacked one, are drawn with keys of their own."""
    drawn = [x for path, x in fresh('xae', 'multimae').items() if path.endswith('kernel')]
    layers = [layer.ravel() for x in drawn for layer in (x if x.ndim == 3 else x[None])]
    firsts = {tuple(layer[:4].tolist()) for layer in layers}
    assert len(firsts) == len(layers)


def check_uniform(path, x, limit):
    assert np.abs(x).max() <= limit, path
    # Of 32 numbers, the smallest of these arrays, to four standard errors of the deviation of a uniform.
    np.testing.assert_allclose(x.std(), limit / 3**0.5, rtol=4 * (0.2 / x.size) ** 0.5, err_msg=path)


@pytest.mark.slow
def test_dino_mm_starts_as_its_code_does():
    config = tiny()
    for path, x in flatten(dino.init_params(config.model, config.dino, jax.random.key(3))).items():
        if path.startswith('backbone/patch/stack/'):
            check_uniform(path, np.asarray(x), (14 * 4 * 4) ** -0.5)
        elif path == 'head/last/kernel':
            check_uniform(path, np.asarray(x), x.shape[0] ** -0.5)
        elif path.endswith(('kernel', 'cls', 'position_table')):
            np.testing.assert_allclose(x.std(), 0.02, rtol=4 / (2 * x.size) ** 0.5, err_msg=path)
        else:
            assert (x == (1 if path.endswith('scale') else 0)).all(), path


def test_a_fresh_head_is_small_and_has_no_bias():
    head = heads.init_head(jax.random.key(2), 300, 40)
    np.testing.assert_allclose(np.std(head['kernel']), 0.01, rtol=0.03)
    assert not np.asarray(head['bias']).any()


@pytest.mark.parametrize('grid', [(3, 3), (2, 5)])
def test_every_entry_follows_the_formula_row_half_first(grid):
    width = 16
    table = sincos_2d(grid, width)
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = table[row * grid[1] + column]
            for i in range(quarter):
                w = 10000 ** (-i / quarter)
                assert token[i] == pytest.approx(math.sin(row * w), abs=1e-15)
                assert token[quarter + i] == pytest.approx(math.cos(row * w), abs=1e-15)
                assert token[2 * quarter + i] == pytest.approx(math.sin(column * w), abs=1e-15)
                assert token[3 * quarter + i] == pytest.approx(math.cos(column * w), abs=1e-15)


def test_positions_are_distinct_and_width_is_checked():
    assert len(np.unique(sincos_2d((14, 14), 64).round(9), axis=0)) == 196
    with pytest.raises(ValueError, match='multiple of 4'):
        sincos_2d((2, 2), 6)
