import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.input.prepare import Patches
from fusmae_jax.train import losses
from tests.support.helpers import random_order, random_patches
from tests.support.tiny import tiny_model

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
    gradient = jax.grad(lambda p: loss(Patches(patches.values, valid), order, p, norm_pix)[0])(predictions)
    hidden = losses.masked_targets(Patches(patches.values, valid), order, VISIBLE).valid
    assert np.all((np.asarray(gradient) != 0) == np.asarray(hidden))


def test_sum_and_weight_of_parts_add_up(parts):
    patches, order = parts
    predictions = jax.random.normal(jax.random.key(5), (3, 12, patches.values.shape[2]))
    whole = loss(patches, order, predictions)
    single = [
        loss(
            Patches(patches.values[i : i + 1], patches.valid[i : i + 1]),
            order[i : i + 1],
            predictions[i : i + 1],
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(whole[0], sum(s[0] for s in single), rtol=1e-6)
    assert whole[1] == sum(s[1] for s in single) == 3 * 12 * patches.values.shape[2]


def test_norm_pix_uses_the_unbiased_variance_of_valid_numbers(parts):
    patches, order = parts
    valid = jax.random.bernoulli(jax.random.key(6), 0.7, patches.valid.shape)
    targets = losses.masked_targets(Patches(patches.values, valid), order, VISIBLE)
    ours = np.asarray(losses.normalise_patches(targets))
    for i, j in ((0, 0), (2, 7)):
        keep = np.asarray(targets.valid[i, j])
        values = np.asarray(targets.values[i, j], np.float64)[keep]
        expected = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(ours[i, j][keep], expected, atol=1e-5)
        assert np.all(ours[i, j][~keep] == 0)


def test_a_sensor_without_any_valid_pixel_adds_nothing_and_has_no_loss():
    sums = {'s1': (jnp.float32(0), jnp.float32(0)), 's2': (jnp.float32(6), jnp.float32(3))}
    total, means = losses.combine(sums, {'s1': 1.0, 's2': 0.5})
    assert (float(total), float(means['s2'])) == (1.0, 2.0) and np.isnan(means['s1'])
    weights = {'s1': 1.0, 's2': 1.0}
    gradient = jax.grad(lambda x: losses.combine({'s1': (0 * x, 0 * x), 's2': (x, 3 * x)}, weights)[0])
    assert np.isfinite(gradient(jnp.float32(6)))
