import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.input.prepare import patchify, unpatchify
from fusmae_jax.models.layers import Arithmetic, linear

pytestmark = pytest.mark.usefixtures('strict')


@pytest.mark.parametrize('bands', [2, 12])
def test_patch_projection_equals_a_strided_convolution(bands):
    size, width = 8, 24
    image = jax.random.normal(jax.random.key(0), (3, 32, 40, bands))
    layer = linear(size * size * bands, width, Arithmetic(cfg.Numerics(), jnp.float32), rngs=nnx.Rngs(0))
    layer.bias[...] = jax.random.normal(jax.random.key(1), (width,))
    ours = layer(patchify(image, size))
    kernel = layer.kernel[...].reshape(size, size, bands, width)
    convolved = jax.lax.conv_general_dilated(
        image, kernel, (size, size), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision='highest'
    )
    expected = convolved.reshape(3, 20, width) + layer.bias[...][None, None]
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_patchify_is_row_major_channel_last_and_invertible():
    image = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[0, 1].reshape(2, 2, 3), image[0, :2, 2:4])
    np.testing.assert_array_equal(patches[0, 3].reshape(2, 2, 3), image[0, 2:, :2])
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 2), image)
