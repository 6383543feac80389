"""Kernels of a GPU program: what each multiplies, reads and writes, from texts of optimised HLO."""

import pytest

from fusmae_jax.plan.hlo import read
from fusmae_jax.plan.kernels import FILL, kernels


def program(*lines: str, computations: str = '') -> str:
    body = '\n'.join(f'  {line}' for line in lines)
    return f'HloModule jit_step\n\n{computations}\nENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}\n'


def fusion(name: str, *lines: str) -> str:
    body = '\n'.join(f'  {line}' for line in lines)
    return f'%{name} (p: f32[]) -> f32[] {{\n{body}\n}}\n\n'


def only(text: str):
    (kernel,) = kernels(read(text))
    return kernel


LINEAR = """(bf16[64,32]{1,0}, s8[4194304]{0}) custom-call(%a, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},\
"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}}}"""


def test_a_library_product_counts_operands_and_result_and_no_scratch_space():
    kernel = only(
        program('%a = bf16[64,16] parameter(0)', '%w = bf16[16,32] parameter(1)', f'ROOT %g = {LINEAR}')
    )
    (product,) = kernel.products
    assert product.flops == kernel.flops == 2 * 64 * 16 * 32
    assert (product.dtype, product.exact, product.rows, product.columns) == ('bf16', False, 64, 32)
    assert (kernel.read, kernel.written) == (2 * (64 * 16 + 16 * 32), 2 * 64 * 32)
    assert not product.batched and not product.sums_rows


def test_float32_products_are_exact_only_where_that_is_asked_for():
    def product(precision):
        text = LINEAR.replace('DEFAULT', precision)
        return only(
            program('%a = f32[64,16] parameter(0)', '%w = f32[16,32] parameter(1)', f'ROOT %g = {text}')
        ).products[0]

    assert product('DEFAULT').dtype == 'f32' and not product('DEFAULT').exact
    assert product('HIGHEST').exact


def test_a_gradient_of_weights_sums_over_the_tokens():
    text = LINEAR.replace('"lhs_contracting_dimensions":["1"]', '"lhs_contracting_dimensions":["0"]')
    kernel = only(
        program('%a = bf16[16,64] parameter(0)', '%w = bf16[16,32] parameter(1)', f'ROOT %g = {text}')
    )
    assert kernel.products[0].sums_rows and kernel.flops == 2 * 64 * 16 * 32


BATCHED = """f32[6,8,4]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, \
rhs_batch_dims={0}, rhs_contracting_dims={2}, operand_precision={highest,highest}"""


@pytest.mark.parametrize('fused', [False, True])
def test_a_batched_dot_alone_and_in_a_fusion(fused):
    parameters = ('%a = f32[6,8,5]{2,1,0} parameter(0)', '%b = f32[6,4,5]{2,1,0} parameter(1)')
    inside = fusion('f', *parameters, f'ROOT %d = {BATCHED}') if fused else ''
    root = 'f32[6,8,4] fusion(%a, %b), kind=kCustom, calls=%f' if fused else BATCHED
    kernel = only(program(*parameters, f'ROOT %k = {root}', computations=inside))
    (product,) = kernel.products
    assert product.flops == 2 * 6 * 8 * 4 * 5 and product.batched and product.exact
    assert (product.rows, product.columns) == (8, 4)
    assert (kernel.read, kernel.written) == (4 * (6 * 8 * 5 + 6 * 4 * 5), 4 * 6 * 8 * 4)


def test_an_update_in_place_counts_only_the_slice():
    inside = fusion(
        'f',
        '%stack = f32[11,100]{1,0} parameter(0)',
        '%new = f32[100]{0} parameter(1)',
        '%i = s32[] parameter(2)',
        '%row = f32[1,100]{1,0} bitcast(%new)',
        'ROOT %u = f32[11,100]{1,0} dynamic-update-slice(%stack, %row, %i, %i)',
    )
    lines = (
        '%stack = f32[11,100]{1,0} parameter(0)',
        '%new = f32[100]{0} parameter(1)',
        '%i = s32[] parameter(2)',
        'ROOT %k = f32[11,100]{1,0} fusion(%stack, %new, %i), kind=kLoop, calls=%f',
    )
    kernel = only(program(*lines, computations=inside))
    assert (kernel.read, kernel.written) == (400 + 4, 400)
    assert kernel.hero == 'dynamic-update-slice'


def test_of_a_slice_only_what_it_touches_is_read():
    inside = fusion(
        'f',
        '%stack = f32[11,100]{1,0} parameter(0)',
        '%i = s32[] parameter(1)',
        '%row = f32[1,100]{1,0} dynamic-slice(%stack, %i, %i), dynamic_slice_sizes={1,100}',
        'ROOT %c = bf16[1,100]{1,0} convert(%row)',
    )
    lines = (
        '%stack = f32[11,100]{1,0} parameter(0)',
        '%i = s32[] parameter(1)',
        'ROOT %k = bf16[1,100]{1,0} fusion(%stack, %i), kind=kLoop, calls=%f',
    )
    kernel = only(program(*lines, computations=inside))
    assert (kernel.read, kernel.written) == (400 + 4, 200)
    assert kernel.hero == 'dynamic-slice'


def test_what_is_read_whole_beside_a_slice_counts_whole():
    inside = fusion(
        'f',
        '%x = f32[11,100]{1,0} parameter(0)',
        '%part = f32[1,100]{1,0} slice(%x), slice={[0:1],[0:100]}',
        '%exp = f32[11,100]{1,0} exponential(%x)',
        'ROOT %t = (f32[1,100]{1,0}, f32[11,100]{1,0}) tuple(%part, %exp)',
    )
    lines = ('%x = f32[11,100]{1,0} parameter(0)', 'ROOT %k = f32[] fusion(%x), kind=kLoop, calls=%f')
    kernel = only(program(*lines, computations=inside))
    assert (kernel.read, kernel.written) == (4400, 4800)


@pytest.mark.parametrize('between', ['', 'copy', 'transpose'])
def test_a_constant_all_over_a_buffer_is_a_fill(between):
    end = f'\n  ROOT %c = f32[4,25]{{1,0}} {between}(%b)' if between else ''
    inside = fusion(
        'f', '%z = f32[] constant(0)', f'%b = f32[4,25]{{1,0}} broadcast(%z), dimensions={{}}{end}'
    )
    inside = inside if between else inside.replace('%b =', 'ROOT %b =')
    kernel = only(program('ROOT %k = f32[4,25]{1,0} fusion(), kind=kLoop, calls=%f', computations=inside))
    assert kernel.hero == FILL and (kernel.read, kernel.written) == (0, 400)


def test_a_fill_is_told_from_a_broadcast_of_data():
    inside = fusion('f', '%z = f32[] parameter(0)', 'ROOT %b = f32[4,25]{1,0} broadcast(%z), dimensions={}')
    for outside, hero in (('constant(0)', FILL), ('parameter(0)', 'broadcast')):
        lines = (f'%z = f32[] {outside}', 'ROOT %k = f32[4,25]{1,0} fusion(%z), kind=kLoop, calls=%f')
        assert only(program(*lines, computations=inside)).hero == hero


def test_loops_multiply_and_asynchronous_operations_count_once():
    inside = (
        fusion('body', '%p = f32[8]{0} parameter(0)', 'ROOT %n = f32[8]{0} negate(%p)')
        + fusion('cond', '%q = f32[8]{0} parameter(0)', 'ROOT %t = pred[] constant(true)')
        + fusion('later', '%r = f32[8]{0} parameter(0)', 'ROOT %s = f32[8]{0} sine(%r)')
    )
    text = program(
        '%x = f32[8]{0} parameter(0)',
        '%w = f32[8]{0} while(%x), condition=%cond, body=%body, '
        'backend_config={"known_trip_count":{"n":"11"}}',
        '%a = ((f32[8]{0}), f32[8]{0}, s32[]) async-start(%w), calls=%later',
        '%d = f32[8]{0} async-done(%a)',
        '%c = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%d)',
        'ROOT %e = f32[8]{0} copy-done(%c)',
        computations=inside,
    )
    counted = {k.instruction.name: (k.times, k.traffic) for k in kernels(read(text))}
    assert counted == {'n': (11, 64), 's': (1, 64), 'c': (1, 64)}


SCORES = (
    '"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","3","8","10"],"tuple_shapes":[]}'
)


@pytest.mark.parametrize(('suffix', 'products'), [('', 2), ('Backward', 5)])
def test_attention_of_cudnn_is_counted_from_its_shapes(suffix, products):
    text = program(
        '%q = bf16[2,8,3,16]{3,2,1,0} parameter(0)',
        '%k = bf16[2,10,3,16]{3,2,1,0} parameter(1)',
        'ROOT %o = (bf16[2,8,3,16]{3,2,1,0}, u8[64]{0}) custom-call(%q, %k, %k), '
        f'custom_call_target="__cudnn$fmhaScaleBiasSoftmax{suffix}", '
        f'backend_config={{"cudnn_fmha_backend_config":{{{SCORES}}}}}',
    )
    kernel = only(text)
    assert kernel.flops == products * 2 * (2 * 3 * 8 * 10) * 16
    assert kernel.written == 2 * (2 * 8 * 3 * 16) and not kernel.unknown


def triton(shapes, out, name, alias=''):
    names = ', '.join(f'%p{i}' for i in range(len(shapes)))
    return only(
        program(
            *(f'%p{i} = {shape} parameter({i})' for i, shape in enumerate(shapes)),
            f'ROOT %call = {out} custom-call({names}), custom_call_target="__gpu$xla.gpu.triton"{alias}, '
            f'metadata={{op_name="jit(step)/{name}/pallas_call"}}, backend_config={{ir = "\\00attention"}}',
        )
    )


QKV, OUT, MASK = 'bf16[2,8,144]{2,1,0}', 'bf16[2,8,48]{2,1,0}', 's8[2,8]{1,0}'


def test_a_fused_kernel_of_queries_keys_and_values_side_by_side():
    kernel = triton([QKV, MASK], OUT, 'attention_forward')
    assert kernel.flops == 4 * (2 * 8 * 48) * 8
    assert kernel.traffic == 2 * 2 * 8 * (144 + 48) + 16
    kernel = triton([QKV, MASK, OUT], QKV, 'transpose(jvp(attention_forward))/attention_backward')
    assert kernel.flops == 10 * (2 * 8 * 48) * 8


def test_a_fused_kernel_of_separate_keys():
    query, keys = 'bf16[2,8,3,16]{3,2,1,0}', 'bf16[2,10,3,16]{3,2,1,0}'
    kernel = triton([query, keys, keys], query, 'attention_forward')
    assert kernel.flops == 4 * (2 * 8 * 48) * 10


def test_kernels_that_nobody_knows_say_so():
    kernel = triton([QKV], OUT, 'something_else')
    assert kernel.flops == 0 and kernel.unknown


def test_a_buffer_that_is_given_back_is_written_once():
    alias = ', output_to_operand_aliasing={{}: (1, {})}'
    kernel = triton([QKV, OUT], OUT, 'something_else', alias)
    assert (kernel.read, kernel.written) == (2 * 2 * 8 * 144, 2 * 2 * 8 * 48)
