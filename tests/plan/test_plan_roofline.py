"""The roofline of a program: time by part, what is wasted, and batches that fill the chip."""

import jax
import jax.numpy as jnp
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.plan import parts, speed
from fusmae_jax.plan.batches import Batches
from fusmae_jax.plan.compiled import CompiledStep
from fusmae_jax.plan.cycles import estimated
from fusmae_jax.plan.gpus import GPUS, description, gpu_of
from fusmae_jax.plan.hlo import Frame, read
from fusmae_jax.plan.roofline import FILLS, SLICES, roofline
from fusmae_jax.plan.topology import CHIPS, Machine
from fusmae_jax.plan.waves import Linear, linears, lost, waves

H200 = GPUS['h200']
ENCODER = 'fusmae_jax/models/encoder.py'
# A step whose encoder has one product and a stack of results that is filled with zeros first.
STEP = """HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/fusmae_jax/train/step.py"
2 "/somewhere/fusmae_jax/models/encoder.py"
3 "/somewhere/flax/nnx/nn/linear.py"

FunctionNames
1 "make_step.<locals>.step"
2 "Encoder._after_block1"
3 "Linear.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=1}
2 {file_name_id=2 function_name_id=2 line=2 end_line=2 column=1 end_column=1}
3 {file_name_id=3 function_name_id=3 line=3 end_line=3 column=1 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%zeros (z: f32[]) -> f32[4,256,512] {
  %z = f32[] constant(0)
  ROOT %b = f32[4,256,512]{2,1,0} broadcast(%z), dimensions={}
}

%put (s: f32[4,256,512], x: f32[256,512], i: s32[]) -> f32[4,256,512] {
  %s = f32[4,256,512]{2,1,0} parameter(0)
  %x = f32[256,512]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %r = f32[1,256,512]{2,1,0} bitcast(%x)
  ROOT %u = f32[4,256,512]{2,1,0} dynamic-update-slice(%s, %r, %i, %i, %i)
}

%body (p: (s32[], f32[256,1024], f32[1024,512], f32[4,256,512])) -> (s32[], f32[4,256,512]) {
  %p = (s32[], f32[256,1024], f32[1024,512], f32[4,256,512]) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %t = f32[256,1024] get-tuple-element(%p), index=1
  %w = f32[1024,512] get-tuple-element(%p), index=2
  %k = f32[4,256,512] get-tuple-element(%p), index=3
  %product = f32[256,512]{1,0} dot(%t, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(step)/jvp()/while/body/dot_general" stack_frame_id=3}
  %kept = f32[4,256,512]{2,1,0} fusion(%k, %product, %n), kind=kLoop, calls=%put, \
metadata={op_name="jit(step)/jvp()/while/body/dynamic_update_slice" stack_frame_id=2}
  ROOT %o = (s32[], f32[4,256,512]) tuple(%n, %kept)
}

%more (q: s32[]) -> pred[] {
  %q = s32[] parameter(0)
  %four = s32[] constant(4)
  ROOT %less = pred[] compare(%q, %four), direction=LT
}

ENTRY %main (a: f32[256,1024], v: f32[1024,512]) -> f32[] {
  %a = f32[256,1024] parameter(0)
  %v = f32[1024,512] parameter(1)
  %zero = s32[] constant(0)
  %fill = f32[4,256,512]{2,1,0} fusion(), kind=kLoop, calls=%zeros
  %all = (s32[], f32[256,1024], f32[1024,512], f32[4,256,512]) tuple(%zero, %a, %v, %fill)
  %loop = (s32[], f32[4,256,512]) while(%all), condition=%more, body=%body, \
metadata={op_name="jit(step)/jvp()/while" stack_frame_id=2}
  %last = f32[4,256,512] get-tuple-element(%loop), index=1
  ROOT %norm = f32[] reduce(%last, %zero), dimensions={0,1,2}, to_apply=%more, \
metadata={op_name="jit(step)/reduce_sum" stack_frame_id=1}
}
"""
BYTES = 4 * 256 * 512  # of one result


@pytest.fixture(scope='module')
def model():
    return roofline(read(STEP), H200)


def test_each_kernel_is_as_slow_as_its_products_or_its_bytes(model):
    seconds = {k.kernel.instruction.name: k.share.seconds for k in model.kernels}
    flops = 2 * 256 * 1024 * 512
    # This product has more bytes than the chip can read while it multiplies.
    product_bytes = 4 * (256 * 1024 + 1024 * 512) + BYTES
    assert seconds['product'] == pytest.approx(4 * product_bytes / (0.85 * 4.8e12))
    assert model.total.flops == 4 * flops
    assert model.total.product_seconds == pytest.approx(4 * flops / (0.8 * 494.7e12))  # as tf32
    assert model.total.seconds == pytest.approx(sum(seconds.values()))
    assert model.total.kernels == 4 + 4 + 4 + 1 + 1  # the loop's comparison too


def test_parts_come_from_the_stack_frames(model):
    shares = model.by_place()
    blocks = {place.kind: share for place, share in shares.items() if place.part == parts.BLOCKS}
    assert set(blocks) >= {'other linears', SLICES, FILLS}
    assert blocks[FILLS].written == 4 * BYTES  # the compiler's zeros belong where they are used
    assert blocks[SLICES].traffic == 4 * (2 * BYTES + 4)
    assert shares[parts.Place(parts.OPTIMIZER, '')].kernels == 1


def test_what_is_wasted_can_be_asked_for(model):
    assert model.filled() == 4 * BYTES
    assert model.moved()['dynamic-update-slice'] == 4 * (2 * BYTES + 4)
    ((placed, product),) = model.wide_products()
    assert (placed.place, product.dtype) == (parts.Place(parts.BLOCKS, 'other linears'), 'f32')
    assert model.unknown() == []


MODELS = '/a/fusmae_jax/models/'


@pytest.mark.parametrize(
    ('stack', 'op_name', 'part', 'kind'),
    [
        ([('input/prepare.py', '_modality'), ('input/resample.py', 'resample')], '', 'prepare', ''),
        ([('models/masking.py', 'sample_order')], '', 'masks', ''),
        ([('models/encoder.py', 'Encoder.positions')], '', 'patches, positions', ''),
        ([('models/fusmae.py', '_take')], '', 'patches, positions', ''),
        (
            [('models/fusion.py', 'XAttnEncoder.__call__'), ('models/attention.py', 'attend')],
            '',
            'block 1',
            'attention core',
        ),
        (
            [('models/encoder.py', 'Encoder.__call__'), ('models/blocks.py', 'Block.__call__')],
            '',
            'block 1',
            'residual, rest',
        ),
        (
            [('models/encoder.py', 'Encoder._after_block1'), ('models/layers.py', 'gelu')],
            '',
            'encoder blocks',
            'GELU',
        ),
        (
            [('models/encoder.py', 'Encoder._after_block1'), ('models/layers.py', 'LayerNorm.__call__')],
            '',
            'encoder blocks',
            'LayerNorm',
        ),
        (
            [('models/encoder.py', 'Encoder._after_block1'), ('models/layers.py', 'layer_norm_backward')],
            '',
            'encoder blocks',
            'LayerNorm',
        ),
        (
            [
                ('models/decoder.py', 'Decoder.__call__'),
                ('models/layers.py', 'Mlp.__call__'),
                ('linear.py', 'Linear.__call__'),
            ],
            '',
            'decoders',
            'MLP linears',
        ),
        ([('models/multimae.py', 'MultiMaeDecoder.__call__')], '', 'decoders', 'residual, rest'),
        ([('models/fusion.py', 'XAttnDecoder.__call__')], '', 'decoders', 'residual, rest'),
        (
            [('train/objective.py', 'reconstruction.<locals>.loss')],
            'jit(step)/jvp()/mul',
            'no source line',
            '',
        ),
        ([('train/losses.py', 'squared_error')], '', 'loss', ''),
        ([('train/step.py', 'make_step.<locals>.step')], 'jit(step)/add', 'optimizer', ''),
        ([('train/step.py', 'make_step.<locals>.step')], 'jit(step)/jvp()/add', 'no source line', ''),
        # A scope's name goes before the stack.
        (
            [('models/masking.py', 'x')],
            'jit(step)/transpose(jvp(encoder_blocks))/mul',
            'encoder blocks',
            None,
        ),
    ],
)
def test_the_place_of_an_instruction(stack, op_name, part, kind):
    step = Frame('/a/fusmae_jax/train/step.py', 'make_step.<locals>.step')
    frames = (step, *(Frame(f'/a/fusmae_jax/{file}', function) for file, function in stack))
    where = parts.place(op_name, frames)
    assert where.part == part and kind in (None, where.kind)


def test_the_stack_of_a_real_program():
    """jax writes the frames that the parts are told by, backward pass included."""

    def resample(x):
        return jnp.sin(x) @ x

    text = jax.jit(jax.grad(lambda x: resample(x).sum())).lower(jnp.ones((4, 4))).compile().as_text()
    module = read(text)
    stacks = [module.stack(step.instruction) for step in module.walk(into_fusions=True)]
    assert any('resample' in frame.function for stack in stacks for frame in stack)
    assert any(frame.file == __file__ for stack in stacks for frame in stack)


def test_a_custom_derivative_is_named_by_a_scope_both_ways():
    """Its function is in no stack; the scope is in the path of forward and backward pass."""

    @jax.custom_vjp
    def curve(x):
        return jnp.tanh(x)

    curve.defvjp(lambda x: (curve(x), x), lambda x, g: (g * jnp.cos(x),))

    def loss(x):
        with jax.named_scope('decoders'), jax.named_scope('gelu'):
            return jnp.sum(curve(x))

    compiled = jax.jit(jax.value_and_grad(loss)).lower(jnp.ones((4, 4))).compile()
    where = {
        i.opcode: parts.place(i.op_name, ()) for i, *_ in read(compiled.as_text()).walk(into_fusions=True)
    }
    assert where['tanh'] == where['cosine'] == parts.Place(parts.DECODERS, 'GELU')


def test_waves_of_tiles():
    # 256 samples of 99 tokens are 198 tiles high, and 3 wide: 594 tiles in 5 waves of 132.
    product = [Linear(99.0, 768, 1.0)]
    assert lost(product, 256, 132) == pytest.approx(1 - 594 / 660)
    assert lost(product, 512, 132) == 0
    assert lost(product, 400, 132) == pytest.approx(1 - 99 * 400 / 128 * 3 / (8 * 132))
    # Twice as many operations weigh twice as much.
    half = Linear(99.0, 768, 2.0), Linear(64.0, 256 * 132, 1.0)
    assert lost(half, 256, 132) == pytest.approx(1 - 3 / (2 * 660 / 594 + 1))


def test_batches_that_fill_the_waves(model):
    assert linears(model, 256) == [Linear(1.0, 512, 4 * 2 * 256 * 1024 * 512)]
    assert linears(model, 100) == []  # the rows of no product are a multiple
    batches = Batches(cfg.Data(), 1)
    assert waves(model, batches, 256, None) is None  # 4 tiles for 132 cores
    small = model._replace(gpu=H200._replace(cores=3))
    better = waves(small, batches, 256, 400)
    assert better.lost == pytest.approx(1 - 4 / 6)
    # 384 rows are three tiles high; what lies near it above 400 does not fit.
    assert (384, 0.0) in better.better and all(size <= 400 for size, _ in better.better)


def test_a_description_holds_the_figures_of_the_chip():
    text = description(H200)
    assert 'core_count: 132' in text and 'memory_bandwidth: 4800000000000' in text
    assert 'major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES' in text
    assert text.count('{') == text.count('}')
    assert 'feature_extension: NONE' in description(GPUS['a100'])


def test_rates_by_type():
    assert H200.rate('bf16') == H200.rate('f16') == pytest.approx(791.5e12, rel=1e-3)
    assert H200.rate('f32') == pytest.approx(H200.rate('bf16') / 2)
    assert H200.rate('f32', exact=True) == pytest.approx(50e12, rel=0.01)
    assert H200.rate('f8e4m3fn') == pytest.approx(2 * H200.rate('bf16'), rel=1e-3)
    assert GPUS['a100'].rate('f8e4m3fn') == GPUS['a100'].rate('f32', exact=True)  # it has none
    assert gpu_of('NVIDIA H200') is H200 and gpu_of('NVIDIA L4') is gpu_of('cpu') is None


def test_the_lines_of_a_modelled_step():
    step = CompiledStep(256, 0, 0.0, None, None, read(STEP))
    fast = speed.speed(_machine('NVIDIA H200'), step, Batches(cfg.Data(), 1), None)
    text = '\n'.join(speed.lines(fast))
    assert fast.source == speed.MODELLED and fast.exact
    for part in ('a floor', 'nothing is measured', 'encoder blocks', 'zero-fills', 'optimizer', '4 products'):
        assert part in text
    numbers = speed.data(fast)
    assert numbers['parts'][parts.BLOCKS][FILLS]['written'] == 4 * BYTES
    assert numbers['float32_products'] == 4 and numbers['constants_written'] == 4 * BYTES


def _machine(kind, clock=None):
    class Device:
        device_kind, platform = kind, 'gpu'

    return Machine(kind, [Device()], 1, 1, 2**40, '', clock)


def test_a_chip_without_figures_has_no_speed():
    step = CompiledStep(256, 0, 0.0, None, None, read(STEP))
    assert speed.speed(_machine('NVIDIA L4'), step, Batches(cfg.Data(), 1), None) is None


def cycled():
    """The same step with the cycles that libtpu notes."""
    cycles = {'%product': 1000, '%kept': 100, '%fill': 40, '%norm': 7}
    out = []
    for line in STEP.splitlines():
        name = line.split(' = ')[0].replace('ROOT', '').strip()
        noted = (
            f', backend_config={{"window_config":{{"estimated_cycles":"{cycles[name]}"}}}}'
            if name in cycles
            else ''
        )
        out.append(line + noted)
    return read('\n'.join(out))


def test_cycles_of_a_tpu_program():
    estimate = estimated(cycled(), 1e3)
    assert estimate.total.seconds == pytest.approx(4 * 1.0 + 4 * 0.1 + 0.04 + 0.007) and estimate.exact
    assert estimate.places[parts.Place(parts.BLOCKS, 'other linears')].product_seconds == pytest.approx(4.0)
    assert estimate.places[parts.Place(parts.BLOCKS, SLICES)].seconds == pytest.approx(0.4)
    assert estimate.seconds['kept'] == pytest.approx(0.4)
    step = CompiledStep(256, 0, 0.0, None, None, cycled())
    fast = speed.speed(_machine('TPU v5 lite', CHIPS['v5e'].clock), step, Batches(cfg.Data(), 1), None)
    assert fast.source == speed.ESTIMATED and "libtpu's estimate" in speed.lines(fast)[0]


@pytest.mark.parametrize(
    ('name', 'units', 'side', 'peak'),
    [('v4', 8, 128, 275e12), ('v5e', 4, 128, 197e12), ('v5p', 8, 128, 459e12), ('v6e', 4, 256, 918e12)],
)
def test_clocks_give_the_peak_of_the_data_sheet(name, units, side, peak):
    assert units * 2 * side**2 * CHIPS[name].clock == pytest.approx(peak, rel=0.01)
