import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.models.blocks import Block, run_stack, stack
from fusmae_jax.models.layers import Arithmetic, product


@pytest.mark.parametrize('rows', [(), (5,), (3, 4)])
def test_a_product_by_hand_has_the_gradients_that_jax_finds(rows):
    with jax.enable_x64(True):
        x, kernel, gradient = (
            jax.random.normal(jax.random.key(i), shape, jnp.float64)
            for i, shape in enumerate([(*rows, 6), (6, 7), (*rows, 7)])
        )
        ours, pull = jax.vjp(lambda *a: product(*a, 'highest'), x, kernel)
        theirs, pull_plain = jax.vjp(lambda x, kernel: x @ kernel, x, kernel)
        for a, b in zip((ours, *pull(gradient)), (theirs, *pull_plain(gradient)), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_the_gradient_of_a_kernel_needs_no_transposed_copy():
    x, kernel, gradient = (jnp.ones(shape) for shape in [(3, 5, 8), (8, 16), (3, 5, 16)])

    def of_kernel(x, kernel, gradient):
        return jax.vjp(lambda kernel: product(x, kernel, 'default'), kernel)[1](gradient)

    program = jax.jit(of_kernel).lower(x, kernel, gradient).compile().as_text()
    assert ' dot(' in program and ' transpose(' not in program and ' copy(' not in program


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
