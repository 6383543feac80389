import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax import losses
from fusmae_jax.input.patchify import Patches
from tests.conftest import tiny_model
from tests.helpers import random_order, random_patches

pytestmark = pytest.mark.usefixtures('strict')
VISIBLE = 4


@pytest.fixture(scope='module')
def parts():
    model = tiny_model()
    return random_patches(model, 3)['s1'], random_order(model, 3)['s1']


def loss(patches, order, predictions, norm_pix=False):
    targets = losses.masked_targets(patches, order, VISIBLE)
    values = losses.normalise_patches(targets) if norm_pix else targets.values
    return losses.squared_error(predictions, values, targets.valid)


@pytest.mark.parametrize('norm_pix', [False, True])
def test_visible_and_invalid_pixels_change_no_bit(parts, norm_pix):
    patches, order = parts
    predictions = jax.random.normal(jax.random.key(5), (3, 12, patches.values.shape[2]))
    valid = jax.random.bernoulli(jax.random.key(6), 0.7, patches.valid.shape)
    visible = jnp.argsort(order, axis=1) < VISIBLE
    noise = 100 * jax.random.normal(jax.random.key(7), patches.values.shape)
    for ignored in (visible[..., None] & jnp.ones_like(valid), ~valid):
        changed = jnp.where(ignored, patches.values + noise, patches.values)
        a = loss(Patches(patches.values, valid), order, predictions, norm_pix)
        b = loss(Patches(changed, valid), order, predictions, norm_pix)
        assert a == b
    weights = {'s1': 1.0, 's2': 1.0}
    gradient = jax.grad(lambda x: losses.combine({'s1': (0 * x, 0 * x), 's2': (x, 3 * x)}, weights)[0])
    assert np.isfinite(gradient(jnp.float32(6)))
