"""The compiled train step: no scatter, donated, and the same whatever the devices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.train.optimizer import JOINED, KERNELS
from fusmae_jax.train.setup import make_setup
from fusmae_jax.train.step import abstract_batch, lower_step, make_gradient, make_step
from tests.support.helpers import CONTRACT, fresh_state, placed, raw_batch
from tests.support.programs import COMPILED, GRID, ONE, STABLE, on, scatters
from tests.support.tiny import tiny_config

EMA = 0.9
FAMILY = {'xae': ('xae', 'none'), 'xad': ('none', 'xad'), 'xaed': ('xae', 'xad')}


# The others are parts of the first one.
HARDEST_FIRST = [
    ('xaed', GRID),
    *(
        pytest.param(name, mesh, marks=pytest.mark.slow)
        for name in FAMILY
        for mesh in (ONE, GRID)
        if (name, mesh) != ('xaed', GRID)
    ),
]


@functools.cache
def _program(name, mesh):
    """Setup, lowered and compiled step; on one device with an average of the weights."""
    train = cfg.Train(batch_size=8, steps=60, ema=EMA if mesh == ONE else 0.0)
    config = tiny_config(*FAMILY[name], parallel=cfg.Parallel(*mesh), train=train)
    setup = make_setup(config, CONTRACT, 100, jax.devices()[: mesh[0] * mesh[1]])
    lowered = setup.lower()
    return setup, lowered, lowered.compile()


def program(name, mesh=ONE):
    return _program(name, mesh)  # the cache would tell (name) from (name, ONE)


@functools.cache
def _initial(name, mesh):
    return jax.device_get(fresh_state(program(name, mesh)[0]))


def fresh(name='xaed', mesh=ONE):
    return placed(_initial(name, mesh), program(name, mesh)[0])


def run(name, mesh, batches):
    setup, _, compiled = program(name, mesh)
    state, losses = fresh(name, mesh), []
    for batch in batches:
        state, metrics = compiled(state, on(setup, batch))
        losses.append(float(metrics['loss']))
    return losses, state


@pytest.mark.parametrize(('name', 'mesh'), HARDEST_FIRST)
def test_no_scatter_in_the_step(name, mesh):
    _, lowered, compiled = program(name, mesh)
    assert scatters(lowered, compiled) == []


@pytest.mark.slow
def test_one_gathered_token_would_be_found():
    """The same check on a twin of the step that gathers one row of something that has a gradient."""
    setup, _, _ = program('xaed')

    def loss(params, extra, batch, key):
        total, rest = setup.objective.loss(params, extra, batch, key)
        kernel = params['encoder']['patch']['s1']['kernel']
        rows = (batch[POSITION] % 4).astype(jnp.int32)[:, None]
        return total + jnp.sum(jnp.take_along_axis(kernel, rows, axis=0) ** 2), rest

    step = make_step(setup.objective._replace(loss=loss), setup.optimizer, setup.schedule, 0, ema=EMA)
    batch = abstract_batch(CONTRACT, setup.objective.fields, {'': 8}, setup.mesh)
    lowered = lower_step(step, setup.abstract_state(), batch, setup.mesh)
    assert re.findall(STABLE, lowered.as_text())
    assert re.findall(COMPILED, lowered.compile().as_text())


def test_the_whole_state_is_donated():
    setup, _, compiled = program('xaed')
    state = fresh()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= size
    compiled(state, on(setup, raw_batch(8)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_one_and_eight_devices_and_permuted_rows_agree():
    batches = [raw_batch(8, seed) for seed in range(5)]
    for step, batch in enumerate(batches):
        batch[POSITION] += np.uint32(8 * step)
    one, state = run('xaed', ONE, batches)
    eight, sharded = run('xaed', GRID, batches)
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    shuffled = [{k: v[[3, 7, 1, 0, 6, 2, 5, 4]] for k, v in batch.items()} for batch in batches]
    np.testing.assert_allclose(run('xaed', GRID, shuffled)[0], one, rtol=1e-5)
    assert one[-1] < one[0]
    for a, b in zip(jax.tree.leaves(state['params']), jax.tree.leaves(sharded['params'])):
        np.testing.assert_allclose(a, b, atol=1e-4)
    # A crop, flip or mask that followed the row instead of the position would change the loss.
    moved = [batch | {POSITION: batch[POSITION][::-1]} for batch in batches]
    assert abs(run('xaed', ONE, moved)[0][0] - one[0]) > 1e-4


def test_parameters_are_sharded_and_moments_follow():
    setup, _, _ = program('xaed', GRID)
    state = setup.abstract_state()
    kernel = state['params']['encoder']['blocks']['mlp']['up']['kernel']
    assert kernel.sharding.spec == PartitionSpec(None, None, 'fsdp')  # never the layer axis
    moments = state['opt_state'][1].inner_states
    moment = moments[KERNELS].inner_state.mu['encoder']['blocks']['mlp']['up']['kernel']
    assert moment.sharding == kernel.sharding
    joined = moments[JOINED].inner_state.nu  # one vector, whole on every device
    assert joined.ndim == 1 and joined.sharding.spec == PartitionSpec()
    assert state['params']['encoder']['cls'].sharding.spec == PartitionSpec()


def test_a_step_that_is_not_finite_changes_nothing_but_counters():
    setup, _, compiled = program('xaed')
    state = fresh()
    state['params']['decoders']['s1']['predict']['bias'] *= jnp.inf
    state['params']['decoders']['s1']['predict']['bias'] += jnp.inf
    before = jax.device_get(state)
    for count in (1, 2):
        state, metrics = compiled(state, on(setup, raw_batch(8)))
        assert (int(metrics['skipped']), int(metrics['skips_in_row'])) == (1, count)
    after = jax.device_get(state)
    assert (after['step'], after['skips']['total']) == (2, 2)
    for name in ('params', 'opt_state', 'ema'):
        for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name])):
            np.testing.assert_array_equal(a, b)
    state['params'] = fresh()['params']
    _, metrics = compiled(state, on(setup, raw_batch(8)))
    assert (int(metrics['skipped']), int(metrics['skips_in_row'])) == (0, 0)


def test_missing_images_do_not_stop_the_step():
    """Samples whose radar is all NaN and one whose 10 m bands are all nodata train like any other."""
    setup, _, compiled = program('xaed')
    batch = raw_batch(8)
    batch['s1'][:4] = np.nan
    batch['s2_10m'][6] = 0
    _, metrics = compiled(fresh(), on(setup, batch))
    assert int(metrics['skipped']) == 0 and np.isfinite(float(metrics['loss']))
    assert float(metrics['valid/s1']) == pytest.approx(0.5)


def test_the_learning_rate_in_the_metrics_is_the_one_applied():
    """Adam first moves what has a gradient by about the rate: not at all, then by a fifth of the peak."""
    setup, _, compiled = program('xaed')
    peak, warmup = setup.config.optimizer.learning_rate, setup.config.optimizer.warmup_steps
    state, params = fresh(), []
    for step in range(3):
        params.append(np.asarray(state['params']['decoders']['s2']['predict']['bias']))
        state, metrics = compiled(state, on(setup, raw_batch(8)))
        assert float(metrics['learning_rate']) == pytest.approx(peak * step / warmup)
    np.testing.assert_array_equal(params[0], params[1])
    moved = np.median(np.abs(params[2] - params[1]))
    assert 0.5 * peak / warmup < moved <= 1.01 * peak / warmup


def test_average_of_the_weights():
    setup, _, compiled = program('xaed')
    state = fresh()
    expected = jax.device_get(state['params'])
    for seed in range(3):
        state, _ = compiled(state, on(setup, raw_batch(8, seed)))
        expected = jax.tree.map(
            lambda e, p: EMA * e + (1 - EMA) * np.asarray(p), expected, jax.device_get(state['params'])
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, state['ema'])
    assert 'ema' not in program('xaed', GRID)[0].abstract_state()


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
    compiled, state, losses = setup.lower().compile(), fresh_state(setup), []
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
    sensors = cfg.Model().modalities
    few = dataclasses.replace(sensors['s2'], bands=sensors['s2'].bands[1:4])
    small = cfg.Decoder(width=16, depth=1, heads=2)
    # Two sensors where a mask is drawn over both; the other one is compiled twice as fast with one.
    both = {'s1': sensors['s1'], 's2': few}
    setup = setup_of(
        fusion=('none', 'none'),
        masks=masks,
        modalities=both if masks == 'dirichlet' else {'s1': sensors['s1']},
        depth=1,
        decoder=small,
    )
    params, batch = fresh_state(setup)['params'], jax.device_put(batches(1)[0])

    def gradient(count):
        make = jax.jit(make_gradient(setup.objective, count))
        (loss, (metrics, _)), grads = make(params, {}, batch, jax.random.key(0))
        return {'loss/all': loss} | metrics, grads

    (expected, whole), (split, parts) = gradient(1), gradient(4)
    for name, value in expected.items():
        np.testing.assert_allclose(split[name], value, rtol=2e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)
    loss = jax.jit(setup.objective.loss)
    quarters = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch) for i in range(4)]
    means = [loss(params, {}, quarter, jax.random.key(0))[0] for quarter in quarters]
    assert abs(np.mean(means) - expected['loss']) > 1e-4


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
    # Many visible tokens of one sensor and no decoder blocks, so that nothing else is large.
    plain = tiny_config('none')
    alone = {'s1': plain.model.modalities['s1']}
    small = cfg.Decoder(width=16, depth=0, heads=2)

    def temporaries(remat):
        model = dataclasses.replace(
            plain.model, width=64, depth=9, remat=remat, decoder=small, modalities=alone
        )
        masking = dataclasses.replace(plain.masking, ratio=0.25)
        train = dataclasses.replace(plain.train, batch_size=32)
        config = dataclasses.replace(plain, model=model, masking=masking, train=train)
        compiled = make_setup(config, CONTRACT, 100, jax.devices()[:1]).lower().compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, dots, full = map(temporaries, ('none', 'dots', 'full'))
    assert full < dots < none and full < 0.7 * none


def test_batches_that_cannot_be_cut_are_refused():
    with pytest.raises(InputError, match=r'batch_size=16 .* 8 devices x 4 micro-batches; .*: 32'):
        setup_of((4, 2), accumulation=4)
