"""What a program sends, read from its text and held against programs whose traffic is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fusmae_jax.config.run import Parallel
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.plan.compiled import Traffic, of_program, read_program

ROWS, WIDTH = 16, 32
NUMBERS = ROWS * WIDTH  # of 4 bytes


def sent(body, out):
    """Collectives of a function of (ROWS, WIDTH) numbers that 8 devices share by rows."""
    mesh = make_mesh(Parallel())
    mapped = jax.shard_map(body, mesh=mesh, in_specs=P('data'), out_specs=out, check_vma=False)
    return of_program(jax.jit(mapped).lower(jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32)).compile())


def test_a_sum_over_devices():
    found = sent(lambda x: jax.lax.psum(x, 'data'), P())
    assert found.exact and found.kinds == {'all-reduce': Traffic(1, NUMBERS // 8 * 4)}


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

    found = sent(body, P('data'))
    assert found.exact and found.kinds['all-reduce'] == Traffic(times, times * NUMBERS // 8 * 4)


def test_a_loop_of_unknown_length_is_a_lower_bound():
    def body(x):
        return jax.lax.while_loop(
            lambda c: jnp.sum(c) < 100, functools.partial(jax.lax.psum, axis_name='data'), x
        )

    found = sent(body, P('data'))
    assert not found.exact and found.kinds['all-reduce'].calls == 1


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
    found = read_program(TPU)
    assert found.exact
    assert found.kinds == {
        'all-reduce': Traffic(11, 11 * (8 * 4 * 2 + 4 * 4)),
        'all-gather': Traffic(11, 11 * 32 * 4 * 2),
    }
