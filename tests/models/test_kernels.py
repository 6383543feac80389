"""Fused kernels against the plain operations: values, gradients, exact zeros, rows on several devices.

Without a GPU the kernels are interpreted, so these are their mathematics and not the code of a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fusmae_jax.errors import InputError
from fusmae_jax.models.attention import attend, attend_cudnn, implementation_for, split_heads
from fusmae_jax.models.kernels import attention, norm
from fusmae_jax.models.layers import NormSettings, normalise

KINDS = [jnp.float32, jnp.float64]


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def close(ours, theirs, dtype):
    tolerance = 1e-12 if dtype == jnp.float64 else 3e-6
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, float(jnp.abs(b).max())))


def with_gradients(function, arguments, gradient):
    """Result and gradients, as one program: each operation by itself would be a program too."""

    def run(arguments, gradient):
        result, pull = jax.vjp(function, *arguments)
        return result, pull(gradient)

    return jax.jit(run)(arguments, gradient)


# (queries, keys, heads, width of a head); None: as many keys as queries, in the same rows.
LENGTHS = [(99, None, 3, 64), (37, None, 2, 16), (12, 21, 2, 8), (18, 130, 1, 32)]


def attention_case(length, keys, heads, width, dtype):
    whole = heads * width
    queries = normal(0, 3, length, 3 * whole if keys is None else whole, dtype=dtype)
    context = None if keys is None else normal(1, 3, keys, 2 * whole, dtype=dtype)
    layout = attention.Layout(heads, width, *((whole, 2 * whole) if keys is None else (0, whole)))
    valid = jax.random.bernoulli(jax.random.key(2), 0.7, (3, keys or length))
    return queries, context, valid.at[0].set(True).at[2].set(False), layout


def plain_attention(queries, context, valid, layout):
    heads = split_heads(queries, queries if context is None else context, layout)
    return attend(*heads, valid, 'highest').reshape(*queries.shape[:2], -1)


@pytest.mark.parametrize(
    ('lengths', 'dtype'),
    [
        *((lengths, jnp.float64) for lengths in LENGTHS),
        (LENGTHS[0], jnp.float32),
        *(pytest.param(lengths, jnp.float32, marks=pytest.mark.slow) for lengths in LENGTHS[1:]),
    ],
)
def test_attention_is_that_of_plain_products(lengths, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        queries, context, valid, layout = attention_case(*lengths, dtype)
        gradient = normal(3, *queries.shape[:2], layout.heads * layout.head_width, dtype=dtype)
        fused, gradients = ours = with_gradients(
            lambda q, c: attention.fused_attention(q, c, valid, layout), (queries, context), gradient
        )
        plain = lambda q, c: plain_attention(q, c, valid, layout)  # noqa: E731
        close(ours, with_gradients(plain, (queries, context), gradient), dtype)
    # No sample without a valid key has anything but zeros, and an invalid key has no part in any other.
    assert not fused[2].any() and not any(g[2].any() for g in jax.tree.leaves(gradients))
    of_keys = jax.tree.leaves(gradients)[-1][..., layout.key :]
    assert not of_keys[~valid].any() and of_keys[valid].any(axis=-1).all()


def test_attention_by_hand_has_the_gradient_of_its_own_formula():
    """The backward pass is written out; here it is held against the derivative of eq. (5)."""
    with jax.enable_x64(True):
        query, key, value = (normal(i, 2, 5, 2, 4, dtype=jnp.float64) for i in range(3))
        valid = jnp.array([[True, False, True, True, False], [False] * 5])

        def formula(query, key, value):
            scores = jnp.einsum('bnhe,bmhe->bhnm', query, key) / 2
            powers = jnp.exp(scores) * valid[:, None, None]
            weights = powers / jnp.maximum(jnp.sum(powers, axis=-1, keepdims=True), 1e-30)
            return jnp.einsum('bhnm,bmhe->bnhe', weights, value)

        given = (query, key, value), normal(3, *query.shape, dtype=jnp.float64)
        ours = with_gradients(lambda *x: attend(*x, valid), *given)
        close(ours, with_gradients(formula, *given), jnp.float64)


@pytest.mark.parametrize('dtype', KINDS)
@pytest.mark.parametrize(
    ('rows', 'width', 'summed'), [((3, 7), 24, True), ((2, 9), 64, False), ((1, 1), 5, True)]
)
def test_sum_and_norm_are_those_of_plain_operations(rows, width, summed, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = 2 * normal(0, *rows, width, dtype=dtype) + 1
        branch = normal(1, *rows, width, dtype=dtype) if summed else None
        scale, bias = normal(2, width, dtype=dtype), normal(3, width, dtype=dtype)
        settings = NormSettings(1e-6, False, jnp.dtype(dtype), jnp.dtype(dtype))

        def plain(x, branch, scale, bias):
            total = x if branch is None else x + branch
            return total, normalise(total, scale, bias, settings)

        def fused(x, branch, scale, bias):
            return norm.fused_add_norm(x, branch, scale, bias, 1e-6, jnp.dtype(dtype))

        gradients = tuple(normal(4 + i, *x.shape, dtype=dtype) for i in range(2))
        given = (x, branch, scale, bias), gradients
        close(with_gradients(fused, *given), with_gradients(plain, *given), dtype)


def test_norm_by_hand_has_the_gradient_of_its_own_formula():
    def formula(x, scale, bias):
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
        return centred / deviation * scale[None] + bias[None]

    with jax.enable_x64(True):
        x, scale, bias = (normal(i, *s, dtype=jnp.float64) for i, s in enumerate([(6, 8), (8,), (8,)]))
        given = (x, scale, bias), normal(3, 6, 8, dtype=jnp.float64)
        theirs = with_gradients(formula, *given)
        for fast in (False, True):
            settings = NormSettings(1e-6, fast, x.dtype, x.dtype)
            close(with_gradients(lambda *a, s=settings: normalise(*a, s), *given), theirs, jnp.float64)


def test_a_narrow_sum_is_rounded_before_it_is_normalised():
    """As the backward pass reads it, and as plain operations have it."""
    x, branch = (normal(i, 2, 5, 24, dtype=jnp.bfloat16) for i in range(2))
    scale, bias = normal(2, 24), normal(3, 24)
    settings = NormSettings(1e-6, False, jnp.dtype(jnp.float32), jnp.dtype(jnp.float32))
    total, normed = norm.fused_add_norm(x, branch, scale, bias, 1e-6, jnp.dtype(jnp.float32))
    assert total.dtype == jnp.bfloat16
    np.testing.assert_array_equal(total, x + branch)
    np.testing.assert_allclose(normed, normalise(x + branch, scale, bias, settings), atol=3e-6)


@pytest.mark.parametrize(('length', 'keys'), [(7, 7), (6, 9)])
def test_what_surrounds_the_attention_of_cudnn(length, keys, monkeypatch):
    """Even lengths, the mask of keys, zeros where there is none; jax's own attention stands in."""
    given = []

    def instead(query, key, value, *, mask, implementation):
        given.append((query.shape[1], key.shape[1], mask.shape, implementation))
        return attention_of_jax(query, key, value, mask=mask)

    attention_of_jax = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
    query, key, value = (normal(i, 3, n, 2, 16) for i, n in enumerate((length, keys, keys)))
    valid = jax.random.bernoulli(jax.random.key(4), 0.6, (3, keys)).at[0].set(True).at[2].set(False)
    arguments = (query, key, value), normal(5, *query.shape)
    ours = with_gradients(lambda *x: attend_cudnn(*x, valid), *arguments)
    close(ours, with_gradients(lambda *x: attend(*x, valid, 'highest'), *arguments), jnp.float32)
    assert not ours[0][2].any()
    even = [n + n % 2 for n in (length, keys)]
    assert given[0] == (*even, (3, 1, *even), 'cudnn')


def test_each_device_works_on_its_own_rows():
    """The same numbers, and nothing sent but the gradients of what all rows share."""
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    rows, whole = (NamedSharding(mesh, PartitionSpec(*s)) for s in ([('data', 'fsdp')], []))
    x, scale, bias = normal(0, 8, 6, 48), normal(1, 48), normal(2, 48)
    valid = jnp.ones((8, 6), bool)
    layout = attention.Layout(2, 8, 16, 32)

    def loss(x, scale, bias):
        total, normed = norm.fused_add_norm(x, 2 * x, scale, bias, 1e-6, x.dtype)
        attended = attention.fused_attention(normed, None, valid, layout)
        return jnp.sum(jnp.sin(attended)) + jnp.sum(jnp.cos(total))

    expected = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, scale, bias)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), in_shardings=(rows, whole, whole))
    with jax.set_mesh(mesh):
        program = gradient.lower(x, scale, bias).compile()
    close(program(jax.device_put(x, rows), *jax.device_put((scale, bias), whole)), expected, jnp.float32)
    assert all(f' {kind}(' not in program.as_text() for kind in ('all-gather', 'all-to-all'))


def test_which_implementation_computes_attention():
    assert implementation_for('auto', jnp.bfloat16, 64, 99) == 'xla'  # of a CPU
    assert implementation_for('pallas', jnp.float32, 64, 99) == 'pallas'
    with pytest.raises(
        InputError, match=r'cudnn computes in bfloat16 on a GPU.*float32 on cpu.*attention=auto'
    ):
        implementation_for('cudnn', jnp.float32, 64, 99)
    with pytest.raises(InputError, match=r'up to 256 keys; found float32, heads of 64 and 257 keys'):
        implementation_for('pallas', jnp.float32, 64, 257)


def test_on_a_gpu_short_sequences_in_half_precision_are_fused(monkeypatch):
    for module in ('attention', 'kernels.attention'):
        monkeypatch.setattr(f'fusmae_jax.models.{module}.target_platform', lambda: 'gpu')
    monkeypatch.setattr('fusmae_jax.models.attention.has_cudnn', lambda: True)
    assert implementation_for('auto', jnp.bfloat16, 64, 256) == 'pallas'
    assert implementation_for('auto', jnp.bfloat16, 64, 393) == 'cudnn'  # all patches of two sensors
    assert implementation_for('auto', jnp.bfloat16, 24, 99) == 'cudnn'
    assert implementation_for('auto', jnp.bfloat16, 20, 99) == 'xla'
    assert implementation_for('auto', jnp.bfloat16, 256, 99) == 'xla'
    assert implementation_for('auto', jnp.float32, 64, 99) == 'xla'
    # A plan for a GPU that is not here, without its libraries.
    monkeypatch.setattr('fusmae_jax.models.attention.has_cudnn', lambda: False)
    assert implementation_for('auto', jnp.bfloat16, 64, 393) == 'xla'
    with pytest.raises(InputError, match=r'cuDNN is not installed here; set model\.attention=auto'):
        implementation_for('cudnn', jnp.bfloat16, 64, 393)
