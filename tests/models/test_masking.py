import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fusmae_jax.config import run as cfg
from fusmae_jax.models.masking import num_visible, sample_order

pytestmark = pytest.mark.usefixtures('strict')
SENSORS = ('s1', 's2')


def valid(batch, n):
    return dict.fromkeys(SENSORS, jnp.ones((batch, n), bool))


@pytest.mark.parametrize('strategy', ['independent', 'consistent'])
def test_masks_are_permutations_with_exact_counts(strategy):
    order = sample_order(jax.random.split(jax.random.key(0), 50), valid(50, 196), cfg.Masking(strategy))
    assert num_visible(196, cfg.Masking()) == 49
    for name in SENSORS:
        np.testing.assert_array_equal(np.sort(order[name], axis=1), np.tile(np.arange(196), (50, 1)))
    equal = (order['s1'] == order['s2']).all(axis=1)
    assert equal.all() if strategy == 'consistent' else not equal.any()


def test_visible_patches_are_uniform():
    """Chi-square over 10,000 draws: every patch is visible equally often, alone and in pairs."""
    n, k, draws = 16, 4, 10_000
    order = sample_order(jax.random.split(jax.random.key(1), draws), valid(draws, n), cfg.Masking())
    for name in SENSORS:
        seen = np.asarray(order[name][:, :k])
        counts = np.bincount(seen.ravel(), minlength=n)
        # Draws without replacement vary less than a multinomial: by (n - k) / (n - 1).
        statistic = ((counts - draws * k / n) ** 2 / (draws * k / n)).sum() * (n - 1) / (n - k)
        assert stats.chi2.sf(statistic, n - 1) > 1e-3
        first_two = np.bincount(seen[:, 0] * n + seen[:, 1], minlength=n * n).reshape(n, n)
        assert np.trace(first_two) == 0
        off = first_two[~np.eye(n, dtype=bool)]
        assert stats.chisquare(off).pvalue > 1e-3
    both = np.bincount(np.asarray(order['s1'][:, 0] * n + order['s2'][:, 0]), minlength=n * n)
    assert stats.chisquare(both).pvalue > 1e-3  # the sensors do not know of each other


@pytest.mark.parametrize('strategy', ['independent', 'consistent'])
def test_invalid_patches_rank_last(strategy):
    mask = valid(20, 16)
    mask['s1'] = mask['s1'].at[:, :14].set(False)
    order = sample_order(jax.random.split(jax.random.key(2), 20), mask, cfg.Masking(strategy))
    assert (np.sort(order['s1'][:, :2], axis=1) == [14, 15]).all()
    if strategy == 'consistent':
        np.testing.assert_array_equal(order['s1'], order['s2'])


def test_a_mask_follows_its_key_alone():
    keys = jax.random.split(jax.random.key(3), 6)
    order = sample_order(keys, valid(6, 16), cfg.Masking())
    again = sample_order(keys[::-1], valid(6, 16), cfg.Masking())
    np.testing.assert_array_equal(order['s2'], again['s2'][::-1])
