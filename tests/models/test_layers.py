import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax.config import run as cfg
from fusmae_jax.models.blocks import Block, run_stack, stack
from fusmae_jax.models.layers import Arithmetic, affine, float32_by_bits, linear
from fusmae_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize('rows', [(), (5,), (3, 4)])
def test_a_linear_layer_by_hand_has_the_gradients_that_jax_finds(rows):
    with jax.enable_x64(True):
        x, kernel, bias, gradient = (
            jax.random.normal(jax.random.key(i), shape, jnp.float64)
            for i, shape in enumerate([(*rows, 6), (6, 7), (7,), (*rows, 7)])
        )
        ours, pull = jax.vjp(lambda *a: affine(*a, 'highest'), x, kernel, bias)
        theirs, pull_plain = jax.vjp(lambda x, kernel, bias: x @ kernel + bias, x, kernel, bias)
        for a, b in zip((ours, *pull(gradient)), (theirs, *pull_plain(gradient)), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_the_gradient_of_a_kernel_needs_no_transposed_copy():
    x, kernel, gradient = (jnp.ones(shape) for shape in [(3, 5, 8), (8, 16), (3, 5, 16)])

    def of_kernel(x, kernel, gradient):
        return jax.vjp(lambda kernel: affine(x, kernel, None, 'default'), kernel)[1](gradient)

    program = jax.jit(of_kernel).lower(x, kernel, gradient).compile().as_text()
    assert ' dot(' in program and ' transpose(' not in program and ' copy(' not in program


def test_in_bfloat16_a_linear_layer_rounds_once_and_sums_the_gradient_of_its_bias_in_float32():
    x, kernel, gradient = (
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
        for i, shape in enumerate([(4096, 8), (8, 16), (4096, 16)])
    )
    bias = jax.random.normal(jax.random.key(3), (16,))
    y, pull = jax.jit(lambda *a: jax.vjp(lambda bias: affine(x, kernel, bias, 'default'), *a))(bias)
    exact = np.float64(x) @ np.float64(kernel) + np.float64(bias)
    assert y.dtype == jnp.bfloat16
    # Half a step of bfloat16, 2^-8 of the value, and little more: the sum itself is in float32.
    assert np.max(np.abs(np.float64(y) - exact) / np.abs(exact)) < 2**-8 * 1.01
    of_bias = pull(gradient)[0]
    assert of_bias.dtype == jnp.float32
    np.testing.assert_allclose(of_bias, np.sum(np.float64(gradient), axis=0), rtol=0, atol=1e-3)


def test_bfloat16_widened_by_its_bits_is_what_a_conversion_gives():
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
    np.testing.assert_array_equal(float32_by_bits(every), every.astype(jnp.float32))


def test_on_a_gpu_too_the_gradient_of_a_bias_is_summed_in_float32(monkeypatch):
    monkeypatch.setattr('fusmae_jax.models.layers.target_platform', lambda: 'gpu')
    x, kernel, gradient = (jnp.ones(shape, jnp.bfloat16) for shape in [(4096, 8), (8, 3), (4096, 3)])
    of_bias = jax.vjp(lambda bias: affine(x, kernel, bias, 'default'), jnp.zeros(3))[1](gradient)[0]
    # In bfloat16, adding 1 to 256 changes nothing.
    np.testing.assert_array_equal(of_bias, [4096.0] * 3)


def test_columns_of_a_linear_layer_are_those_of_the_whole():
    layer = linear(6, 9, Arithmetic.of(cfg.Model(), jnp.float32), rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(9.0)
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    np.testing.assert_allclose(layer(x, slice(3, 9)), layer(x)[..., 3:], rtol=0, atol=1e-6)


def test_blocks_cut_out_of_their_stack_first_are_the_same(monkeypatch):
    model = cfg.Model(size='custom', width=16, depth=3, heads=2, scan=False)
    blocks = stack(
        3, lambda rngs: Block(16, 2, 2.0, Arithmetic.of(model, jnp.float32), rngs=rngs), nnx.Rngs(0)
    )
    graph, params = nnx.split(blocks)
    x, valid = jax.random.normal(jax.random.key(0), (2, 5, 16)), jnp.ones((2, 5), bool)

    def results():
        run = lambda p: jnp.sum(run_stack(nnx.merge(graph, p), x, valid, model)[0] ** 2)  # noqa: E731
        return jax.jit(jax.value_and_grad(run))(params)

    plain = results()
    monkeypatch.setattr('fusmae_jax.models.blocks.target_platform', lambda: 'tpu')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), results(), plain)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_the_last_block_alone_is_the_same_with_stochastic_depth_and_divided_parameters(remat):
    """With keys that are not there, factors of the branches, and columns of kernels on four devices each."""
    model = cfg.Model(size='custom', width=32, depth=2, heads=2, scan=False, remat=remat)
    blocks = stack(
        2, lambda rngs: Block(32, 2, 2.0, Arithmetic.of(model, jnp.float32), rngs=rngs), nnx.Rngs(0)
    )
    graph, params = nnx.split(blocks)
    x, asked = jax.random.normal(jax.random.key(0), (8, 7, 32)), slice(2, 5)
    valid, paths = jnp.ones((8, 7), bool).at[1, 4:].set(False), jnp.linspace(0, 2, 32).reshape(2, 8, 2)

    def loss(params, x, only):
        tokens, _ = run_stack(nnx.merge(graph, params), x, valid, model, paths=paths, only=only)
        return jnp.sum(jnp.sin(tokens if only else tokens[:, asked]))

    def results(params, x, only):
        return jax.jit(jax.value_and_grad(functools.partial(loss, only=only), (0, 1)))(params, x)

    whole = results(params, x, None)
    mesh = make_mesh(cfg.Parallel(2, 4), jax.devices())
    kernels = NamedSharding(mesh, PartitionSpec(None, None, 'fsdp'))
    with jax.set_mesh(mesh):
        divided = jax.tree.map(lambda p: jax.device_put(p, kernels) if p.ndim == 3 else p, params)
        alone = results(
            divided, jax.device_put(x, NamedSharding(mesh, PartitionSpec(mesh.axis_names))), asked
        )
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())
