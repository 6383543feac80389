"""Parts of a plan: batches that a machine can share, micro-batches, and what a program sends."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fusmae_jax.config import run as cfg
from fusmae_jax.config.run import Parallel
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.mixture import check_rows, row_counts
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.plan import batches, command, compiled, remedies, report, topology
from fusmae_jax.plan.batches import Batches, batches_of
from fusmae_jax.plan.collectives import Traffic, of_module, of_program
from fusmae_jax.plan.hlo import read
from fusmae_jax.train.setup import make_setup
from tests.support.helpers import CONTRACT
from tests.support.tiny import tiny_config, tiny_model

DEVICES = 4


def mixture(*weights):
    return cfg.Data(mixture={name: cfg.MixturePart('not/here', weight=w) for name, w in zip('abc', weights)})


def small_config(**changes):
    """One sensor and a narrow decoder: little to compile."""
    model = tiny_model('none', 'none', modalities={'s1': cfg.Model().modalities['s1']}, depth=3)
    model = dataclasses.replace(model, decoder=cfg.Decoder(16, 1, 2))
    return tiny_config(model=model, augment=cfg.Augment(crop=False), **changes)


def small_setup(data, **train):
    config = small_config(data=data, train=cfg.Train(steps=10, **train))
    contract = Contract(dataset='a mixture', parts=dict.fromkeys(data.mixture, CONTRACT))
    return make_setup(config, contract if data.mixture else CONTRACT, 100, jax.devices()[:DEVICES])


@pytest.fixture(scope='module')
def here():
    """Four devices of this machine."""
    return topology.machine('local')._replace(devices=jax.devices()[:DEVICES])


def test_of_one_set_every_multiple_of_the_parts_can_be_split():
    batches = Batches(cfg.Data(), 4)
    assert [size for size in range(1, 13) if batches.splits(size)] == [4, 8, 12]
    assert batches.near(3) == batches.below(3) == 12
    assert batches.near(3, most=2) == 8
    assert batches.near(3, without={12}) == 16
    assert batches.near(1, most=0) == batches.below(0) == 0


def test_of_a_mixture_each_set_must_be_split():
    batches = Batches(mixture(3.0, 1.0), 8)
    assert [size for size in range(1, 100) if batches.splits(size)] == [32, 64, 96]
    assert batches.below(7) == 32 and batches.below(3) == 0
    assert batches.near(1) == 32 and batches.near(6) == 64 and batches.near(5) == 32
    assert batches.near(4, without={32}) == 64 and batches.near(4, most=3) == 0


@pytest.mark.parametrize('weights', [(269_695.0, 125_866.0), (3.0, 1.01), (1.0, 1.0, 1.5)])
def test_weights_that_only_rounding_makes_whole(weights):
    """What fits once need not fit twice as large, so each size is asked for by itself."""
    data = mixture(*weights)
    batches = Batches(data, DEVICES)
    sizes = [batches.near(rows) for rows in (1, 9, 40)] + [batches.below(rows) for rows in (30, 100)]
    for size in sizes:
        assert size > 0
        check_rows(row_counts(data, size), DEVICES)


def test_a_mixture_that_the_machine_cannot_split_is_planned_as_the_nearest(here):
    config = tiny_config(data=mixture(3.0, 1.0), train=cfg.Train(batch_size=20, steps=3))
    config, notes = command._settled(config, here)
    assert config.train.batch_size == 16
    assert 'batch_size=20' in notes[0] and '--config.train.batch_size=16' in notes[0]


def test_weights_without_any_batch_are_refused_in_words(here):
    config = small_config(data=mixture(1e6, 1.0), train=cfg.Train(batch_size=32, steps=10))
    with pytest.raises(InputError, match=r'data\.mixture: .* change the weights'):
        command.make_plan(config, here, examples=100)


def test_remedies_of_a_mixture_can_be_run():
    setup = small_setup(mixture(3.0, 1.0), batch_size=64)  # rows of a device: 12 and 4
    step = compiled.CompiledStep(64, 17_000, 1.0, compiled.Memory(0, 0, 17_000, 0), None)
    line = batches.MemoryLine(1000.0, 1000.0)
    # 8 micro-batches would leave half a row of the second set.
    assert remedies._accumulate(setup, step, line, 0.0).setting == 'train.accumulation=4'
    shrunk = remedies._shrink(setup, step, line, 12_000)  # room for 10 rows; 4 of each 3 + 1 can be shared
    assert shrunk.setting == 'train.batch_size=32' and shrunk.saves == 8000


def test_micro_batches_do_not_divide_the_batch_that_is_on_the_device():
    setup = small_setup(cfg.Data(), batch_size=64)
    rows, activation, state = 64 // DEVICES, 50_000, 10**6
    whole = compiled.batch_bytes(setup, 64)
    assert whole == rows * (120 * 120 * 2 * 4 + 4)  # two float32 bands, and the position of the record
    sums = compiled.bytes_on_device(setup.abstract_state()['params'])
    line = batches.MemoryLine(state, whole / rows + activation)
    step = compiled.CompiledStep(64, int(line.at(rows)), 1.0, None, None)
    remedy = remedies._accumulate(setup, step, line, state + whole + 2 * activation + sums + 1)
    assert remedy.setting == 'train.accumulation=8' and remedy.enough
    assert remedy.saves == pytest.approx(14 * activation - sums, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize('now', [1, 2])
def test_what_micro_batches_save_is_what_the_compiler_finds(now):
    setup, half = (small_setup(cfg.Data(), batch_size=size, accumulation=now) for size in (64, 32))
    step, other = (compiled.compile_step(s, s.config.train.batch_size, quick=True) for s in (setup, half))
    rows = batches_of(setup).rows
    line = batches.line_through((rows(32), other.total), (rows(64), step.total))
    remedy = remedies._accumulate(setup, step, line, compiled.batch_bytes(setup, 64) / 0.4)
    assert remedy.setting == 'train.accumulation=4'
    after = compiled.compile_step(small_setup(cfg.Data(), batch_size=64, accumulation=4), 64, quick=True)
    assert step.total - remedy.saves == pytest.approx(after.total, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(('mebibytes', 'fits'), [(1, False), (8, True)])
def test_the_plan_of_a_mixture_names_batches_that_a_run_accepts(here, mebibytes, fits):
    config = small_config(data=mixture(3.0, 1.0), train=cfg.Train(batch_size=32, steps=10))
    plan = command.make_plan(config, here._replace(memory=mebibytes * 2**20), examples=100)
    assert plan.fits == fits and len(plan.points) == 2
    splits = batches_of(plan.setup).splits
    assert all(splits(size) for size, _ in plan.points)
    assert plan.largest >= 32 and splits(plan.largest) if fits else plan.largest == 0
    assert ('all the sets' in '\n'.join(report.lines(plan))) != fits


ROWS, WIDTH = 16, 32
NUMBERS = ROWS * WIDTH  # of 4 bytes


def sent(body, out):
    """Collectives of a function of (ROWS, WIDTH) numbers that 8 devices share by rows."""
    mesh = make_mesh(Parallel())
    mapped = jax.shard_map(body, mesh=mesh, in_specs=P('data'), out_specs=out, check_vma=False)
    return of_program(jax.jit(mapped).lower(jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32)).compile())


def test_a_sum_over_devices():
    collectives = sent(lambda x: jax.lax.psum(x, 'data'), P())
    assert collectives.exact and collectives.kinds == {'all-reduce': Traffic(1, NUMBERS // 8 * 4)}


def test_gathering_counts_the_whole():
    assert sent(lambda x: jax.lax.all_gather(x, 'data', tiled=True), P()).kinds == {
        'all-gather': Traffic(1, NUMBERS * 4)
    }


def test_scattering_a_sum_counts_the_whole_too():
    def body(x):
        return jax.lax.psum_scatter(jnp.tile(x, (8, 1)), 'data', tiled=True)

    assert sent(body, P('data')).kinds['reduce-scatter'].bytes == NUMBERS * 4


@pytest.mark.parametrize('times', [3, 7])
def test_a_loop_sends_as_often_as_it_runs(times):
    def body(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(jax.lax.psum(c, 'data')), None), x, None, times)[0]

    collectives = sent(body, P('data'))
    assert collectives.exact and collectives.kinds['all-reduce'] == Traffic(times, times * NUMBERS // 8 * 4)


def test_a_loop_of_unknown_length_is_a_lower_bound():
    def body(x):
        return jax.lax.while_loop(
            lambda c: jnp.sum(c) < 100, functools.partial(jax.lax.psum, axis_name='data'), x
        )

    collectives = sent(body, P('data'))
    assert not collectives.exact and collectives.kinds['all-reduce'].calls == 1


def test_one_device_sends_nothing():
    assert of_program(jax.jit(jnp.sin).lower(jnp.ones(3)).compile()).kinds == {}


TPU = """HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  ROOT %s = f32[]{:T(128)} add(%a, %a)
}

%cond (p: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(11)
  %p = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT, metadata={op_name="while/cond/lt"}
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %sum = (bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, f32[4]{0:T(128)}) all-reduce(%x, %y), to_apply=%add.1
  %start = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%x), dimensions={0}
  %done = bf16[32,4]{1,0} all-gather-done(%start)
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %t = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) tuple(%c, %x)
  %w = (s32[]{:T(128)}, bf16[8,4]{1,0}) while(%t), condition=%cond, body=%body, metadata={op_name="while"}
}
"""


def test_the_text_of_a_tpu_program():
    """Loop lengths stand in the condition, layouts have brackets, asynchronous results repeat operands."""
    collectives = of_module(read(TPU))
    assert collectives.exact
    assert collectives.kinds == {
        'all-reduce': Traffic(11, 11 * (8 * 4 * 2 + 4 * 4)),
        'all-gather': Traffic(11, 11 * 32 * 4 * 2),
    }
