import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.models.layers import product


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
