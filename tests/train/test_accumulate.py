"""Micro-batches, meshes, rematerialisation and scan change how a step runs, never what it computes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.train.setup import make_setup
from fusmae_jax.train.step import make_gradient
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.tiny import tiny_config
from tests.train.test_step import scatters

ROWS, STEPS = 16, 20


def setup_of(mesh=(1, 1), accumulation=1, ema=0.0, fusion=('xae', 'xad'), masks='independent', **model):
    config = tiny_config(*fusion, parallel=cfg.Parallel(*mesh))
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **model),
        masking=dataclasses.replace(config.masking, strategy=masks),
        train=dataclasses.replace(config.train, batch_size=ROWS, accumulation=accumulation, ema=ema),
    )
    return make_setup(config, CONTRACT, 4 * ROWS, jax.devices()[: mesh[0] * mesh[1]])


@functools.cache
def batches(count):
    """Real-looking batches in which the number of valid pixels differs from row to row."""
    made = []
    for step in range(count):
        batch = raw_batch(ROWS, step)
        batch[POSITION] += np.uint32(ROWS * step)
        for row in range(ROWS):
            batch['s1'][row, : 7 * row] = np.nan
        made.append(batch)
    return made


def curve(setup, count=STEPS):
    compiled, state, losses = setup.lower().compile(), setup.init_state(), []
    for batch in batches(count):
        state, metrics = compiled(state, jax.device_put(batch, batch_sharding(setup.mesh)))
        losses.append(float(metrics['loss']))
    return np.array(losses), state, metrics


@functools.cache
def alone():
    return curve(setup_of())[0]


@pytest.mark.slow
def test_all_together_is_the_curve_of_one_device():
    setup = setup_of((2, 4), accumulation=2, remat='full', scan=False)
    np.testing.assert_allclose(curve(setup)[0], alone(), rtol=1e-5)
    assert alone()[-1] < alone()[0]


ALONE = {
    **{f'mesh {data}x{fsdp}': {'mesh': (data, fsdp)} for data, fsdp in ((8, 1), (4, 2), (2, 4), (1, 8))},
    'accumulation': {'mesh': (4, 2), 'accumulation': 2},
    'remat full': {'mesh': (4, 2), 'remat': 'full'},
    'remat dots': {'mesh': (4, 2), 'remat': 'dots'},
    'unrolled': {'mesh': (4, 2), 'scan': False},
}


@pytest.mark.slow
@pytest.mark.parametrize('how', ALONE)
def test_each_alone_is_the_curve_of_one_device(how):
    np.testing.assert_allclose(curve(setup_of(**ALONE[how]))[0], alone(), rtol=1e-5)


@pytest.mark.parametrize('masks', ['independent', pytest.param('dirichlet', marks=pytest.mark.slow)])
def test_loss_and_gradient_of_micro_batches_are_those_of_the_batch(masks):
    """Rows differ in their valid pixels, so that a mean of means would be another number."""
    small = cfg.Decoder(width=16, depth=1, heads=2)
    setup = setup_of(fusion=('xae', 'none'), masks=masks, depth=1, decoder=small)
    params, batch = setup.init_state()['params'], jax.device_put(batches(1)[0])

    def gradient(objective, count):
        make = jax.jit(make_gradient(objective, count))
        (loss, (metrics, _)), grads = make(params, {}, batch, jax.random.key(0))
        return {'loss': loss, 'loss/s1': metrics['loss/s1'], 'valid/s2': metrics['valid/s2']}, grads

    def naive(params, extra, batch, key, weights):
        return setup.objective.loss(params, extra, batch, key)

    expected, whole = gradient(setup.objective, 1)
    found, parts = gradient(setup.objective, 4)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)
    wrong, _ = gradient(setup.objective._replace(loss=naive), 4)
    assert abs(wrong['loss'] - expected['loss']) > 1e-4


@pytest.mark.slow
def test_no_scatter_and_no_full_rematerialisation(capfd):
    """On the mesh where XLA is most tempted to move whole activations: it would say so on stderr."""
    setup = setup_of((2, 4), accumulation=2, fusion=('xae', 'none'))
    lowered = setup.lower()
    compiled = lowered.compile()
    assert scatters(lowered, compiled) == []
    assert 'ematerialization' not in capfd.readouterr().err


@pytest.mark.slow
def test_recomputation_lowers_the_temporary_memory():
    def temporaries(remat):
        config = tiny_config('none')
        model = dataclasses.replace(config.model, width=64, depth=9, remat=remat)
        config = dataclasses.replace(config, model=model)
        compiled = make_setup(config, CONTRACT, 100, jax.devices()[:1]).lower().compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, dots, full = map(temporaries, ('none', 'dots', 'full'))
    assert full < dots < none and full < 0.7 * none


def test_average_of_the_weights():
    radar = {'s1': cfg.Model().modalities['s1']}
    setup = setup_of(ema=0.9, fusion=('none', 'none'), modalities=radar, depth=1)
    given = [{name: batch[name] for name in ('s1', POSITION)} for batch in batches(3)]
    compiled, state = setup.lower().compile(), setup.init_state()
    expected = jax.device_get(state['params'])
    for batch in given:
        state, _ = compiled(state, jax.device_put(batch, batch_sharding(setup.mesh)))
        expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * np.asarray(p), expected, state['params'])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, state['ema'])
    before = jax.device_get(state['ema'])
    state['params']['encoder']['cls'] *= np.nan
    state, metrics = compiled(state, jax.device_put(given[0], batch_sharding(setup.mesh)))
    assert metrics['skipped'] == 1
    jax.tree.map(np.testing.assert_array_equal, before, state['ema'])
    assert 'ema' not in setup_of().abstract_state()


def test_batches_that_cannot_be_cut_are_refused():
    with pytest.raises(InputError, match=r'batch_size=16 .* 8 devices x 4 micro-batches; .*: 32'):
        setup_of((4, 2), accumulation=4)
