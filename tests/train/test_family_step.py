"""The compiled train step of the baselines: no scatter, and the same whatever the devices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.pictures.panels import Reconstructor
from fusmae_jax.train.setup import make_setup
from fusmae_jax.train.step import make_eval_step
from tests.support.helpers import fresh_state, weights
from tests.support.programs import GRID, ONE, STABLE, scatters
from tests.support.tiny import tiny_config, tiny_model

FAMILY = {
    'xae_multimae_dirichlet': (('xae', 'multimae'), 'dirichlet'),
    'xaed_modality': (('xae', 'xad'), 'modality'),
    'joint_modality': (('none', 'none'), 'modality'),
    'multimae_independent': (('none', 'multimae'), 'independent'),
    'stack': (('stack', 'none'), 'consistent'),
}
# One program with most of the parts is compiled by the slow tests; otherwise the lowered ones are looked at.
FULL, *OTHERS = FAMILY
# Small images that are not resampled: what is looked at is the model.
S2 = cfg.Modality(bands=('B02', 'B03', 'B04'), sensor='s2')
DATA = Contract(
    dataset='test',
    groups={
        's1': Group('s1', ('VV', 'VH'), (32, 32), 'float32', 'dB'),
        's2': Group('s2', S2.bands, (32, 32), 'uint16', 'DN', nodata=(0.0,)),
    },
)


def batch_of(size, seed):
    """Every third record has no radar image, and one no optical one."""
    rng = np.random.default_rng(seed)
    batch = {
        's1': rng.normal(-13, 5, (size, 32, 32, 2)).astype(np.float32),
        's2': rng.integers(1, 4000, (size, 32, 32, 3)).astype(np.uint16),
        POSITION: np.arange(size * seed, size * (seed + 1), dtype=np.uint32),
    }
    batch['s1'][::3], batch['s2'][1] = np.nan, 0
    return batch


def config(name, mesh=ONE, **changes):
    fusion, strategy = FAMILY[name]
    modalities = {'s1': cfg.Model().modalities['s1'], 's2': S2}
    model = tiny_model(*fusion, modalities=modalities, depth=2, scan=False)
    model = dataclasses.replace(model, decoder=cfg.Decoder(width=16, depth=1, heads=2))
    model = dataclasses.replace(model, decoder=cfg.Decoder(16, 1, 2, cls=fusion[1] == 'multimae'))
    values = {'masking': cfg.Masking(strategy), 'augment': cfg.Augment(crop=False)} | changes
    return tiny_config(model=model, parallel=cfg.Parallel(*mesh), **values)


def lower(name, mesh):
    setup = make_setup(config(name, mesh), DATA, 100, jax.devices()[: mesh[0] * mesh[1]])
    return setup, setup.lower()


@functools.cache
def program(name, mesh):
    """Setup, lowered and compiled step."""
    setup, lowered = lower(name, mesh)
    return setup, lowered, lowered.compile()


def losses(name, mesh, steps=4):
    """(quantity, step): the loss of each sensor, the whole, skipped, the share of s1 that counts."""
    setup, _, compiled = program(name, mesh)
    state, values = fresh_state(setup), []
    for step in range(steps):
        batch = jax.device_put(batch_of(8, step), batch_sharding(setup.mesh))
        state, metrics = compiled(state, batch)
        values.append([float(metrics[x]) for x in ('loss/s1', 'loss/s2', 'loss', 'skipped', 'valid/s1')])
    return np.array(values).T


@pytest.mark.slow  # test_step.py compiles the hardest one every time
@pytest.mark.parametrize('mesh', [ONE, GRID])
def test_no_scatter_in_the_compiled_step(mesh):
    _, lowered, compiled = program(FULL, mesh)
    assert scatters(lowered, compiled) == []


@pytest.mark.parametrize('name', [FULL, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_no_scatter_in_the_lowered_step(name):
    assert re.findall(STABLE, lower(name, ONE)[1].as_text()) == []


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    one, eight = (losses(FULL, mesh) for mesh in (ONE, GRID))
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    s1, s2, total, skipped, share = one
    np.testing.assert_allclose(s1 + s2, total, rtol=1e-6)
    assert not skipped.any() and (share > 0).all() and (share < 1).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
def test_of_the_others_too(name):
    assert [scatters(*program(name, mesh)[1:]) for mesh in (ONE, GRID)] == [[], []]
    np.testing.assert_allclose(losses(name, GRID), losses(name, ONE), rtol=1e-5)


def test_held_out_loss_and_pictures():
    """Rows that fill up the last batch do not count; a panel shows what was hidden of its sensor."""
    settings = config('joint_modality', loss=cfg.Loss(norm_pix=True))
    setup = make_setup(settings, DATA, 100, jax.devices()[:1])
    params = weights(settings.model)
    evaluate = make_eval_step(settings, DATA, setup.dtype, setup.mesh, total=2)
    batch = batch_of(4, 0)
    other = batch | {name: np.concatenate([batch[name][:2], batch[name][1::-1]]) for name in ('s1', 's2')}
    batch, other = (jax.tree.map(jnp.asarray, given) for given in (batch, other))
    first, again = (evaluate(params, given, jax.random.key(0)) for given in (batch, other))
    for name in first:
        np.testing.assert_allclose(first[name], again[name], rtol=1e-6)
        assert 0 < float(first[name][1]) <= 2 * 16 * settings.model.patch_dim(name)

    records = [{name: x[i] for name, x in batch.items() if name != POSITION} for i in range(4)]
    panels = Reconstructor(settings, DATA, setup.dtype, setup.mesh)(params, records, ('s1', 's2'))
    shown = {name: [int(panel.visible.sum()) for panel in items] for name, items in panels.items()}
    assert [a + b for a, b in zip(*shown.values())] == [8] * 4
    assert (shown['s1'][0], shown['s2'][1], shown['s1'][3]) == (0, 0, 0)  # the images that are not there
    for panel in (*panels['s1'], *panels['s2']):
        np.testing.assert_array_equal(panel.predicted[panel.visible], panel.target[panel.visible])
        assert np.isfinite(panel.predicted).all()
