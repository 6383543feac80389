import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fusmae_jax.config import run as cfg
from fusmae_jax.config.run import JOINT
from fusmae_jax.models.masking import (
    Slots,
    hidden_patches,
    num_slots,
    num_visible,
    sample_order,
    sample_slots,
    slots_by_modality,
)

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


N, K = 196, 98
DRAWS = 2000


def draw(strategy, names=('s1', 's2'), n=N, count=K, draws=DRAWS, valid=None, seed=0, **settings):
    valid = valid or dict.fromkeys(names, jnp.ones((draws, n), bool))
    masking = cfg.Masking(strategy, **settings)
    keys = jax.random.split(jax.random.key(seed), len(next(iter(valid.values()))))
    return jax.jit(lambda keys, valid: sample_slots(keys, valid, masking, count))(keys, valid)


def counts(slots, names=('s1', 's2')):
    return {name: np.asarray(part.sum(axis=1)) for name, part in slots_by_modality(slots, names).items()}


@pytest.mark.parametrize('strategy', JOINT)
def test_exactly_k_different_patches(strategy):
    assert num_slots(N, 2, cfg.Masking(strategy)) == K
    slots = draw(strategy)
    assert slots.position.shape == (DRAWS, K) and np.asarray(slots.valid).all()
    place = np.sort(np.asarray(slots.sensor * N + slots.position), axis=1)
    assert (np.diff(place, axis=1) > 0).all() and place.max() < 2 * N
    hidden = hidden_patches(slots, ('s1', 's2'), N)
    for name, count in counts(slots).items():
        np.testing.assert_array_equal(np.asarray(hidden[name]).sum(axis=1), N - count)


@pytest.mark.slow
def test_dirichlet_shares_have_their_distribution():
    """With concentration 1 and two sensors every count from 0 to K is as likely; a larger one is even."""
    flat = counts(draw('dirichlet'))['s1']
    assert (
        stats.kstest((flat + 0.5 * np.random.default_rng(0).uniform(-1, 1, DRAWS)) / K, 'uniform').pvalue
        > 1e-3
    )
    assert counts(draw('dirichlet', concentration=50.0))['s1'].std() < 6 < flat.std()
    three = counts(draw('dirichlet', names=('a', 'b', 'c')), ('a', 'b', 'c'))
    for share in three.values():  # a marginal of Dirichlet(1, 1, 1) is Beta(1, 2)
        assert stats.kstest(share / K + np.random.default_rng(0).uniform(-0.5, 0.5, DRAWS) / K,
                            stats.beta(1, 2).cdf).pvalue > 1e-3  # fmt: skip


def test_drawn_from_one_urn_the_counts_are_hypergeometric():
    """98 of 392 patches of two sensors: 49 +- 4.3 of each."""
    radar = counts(draw('joint_uniform', draws=8000))['s1']
    law = stats.hypergeom(2 * N, N, K)
    assert (law.mean(), round(law.std(), 1)) == (49, 4.3)
    edges = np.arange(38, 61, 2)  # the tails together, so that every bin expects a hundred or so
    bins = np.diff(law.cdf(edges), prepend=0, append=1)
    assert (
        stats.chisquare(np.bincount(np.searchsorted(edges, radar), minlength=12), bins * 8000).pvalue > 1e-3
    )
    three = counts(draw('joint_uniform', ('a', 'b', 'c'), count=147), ('a', 'b', 'c'))
    for n in three.values():
        assert abs(n.mean() - 49) < 0.5 and abs(n.std() - stats.hypergeom(3 * N, N, 147).std()) < 0.4


def test_drawn_from_one_urn_every_set_of_patches_is_as_likely():
    """All 70 sets of four of the eight patches of two sensors; and of three of the five valid ones."""
    slots = draw('joint_uniform', n=4, count=4, draws=14000)
    place = np.sort(np.asarray(slots.sensor * 4 + slots.position), axis=1)
    _, seen = np.unique(place, axis=0, return_counts=True)
    assert len(seen) == 70 and stats.chisquare(seen).pvalue > 1e-3
    # The order within the sequence says nothing of the sensor.
    assert stats.binomtest(int((np.asarray(slots.sensor)[:, 0] == 0).sum()), 14000).pvalue > 1e-3
    valid = {'s1': jnp.arange(4) < 1, 's2': jnp.arange(4) >= 0}
    valid = {name: jnp.broadcast_to(v, (10000, 4)) for name, v in valid.items()}
    slots = draw('joint_uniform', valid=valid, count=3)
    place = np.sort(np.asarray(slots.sensor * 4 + slots.position), axis=1)
    _, seen = np.unique(place, axis=0, return_counts=True)
    assert np.asarray(slots.valid).all() and len(seen) == 10 and stats.chisquare(seen).pvalue > 1e-3


def test_a_modality_is_hidden_as_often_as_asked():
    of_sensor = counts(draw('modality', hide=0.4))
    assert set(of_sensor['s1']) == {0, K // 2, K}
    for n in of_sensor.values():
        assert stats.binomtest(int((n == 0).sum()), DRAWS, 0.2).pvalue > 1e-3
    assert (counts(draw('modality', hide=0.0))['s1'] == K // 2).all()
    alone = counts(draw('modality', hide=1.0, names=('a', 'b', 'c')), ('a', 'b', 'c'))
    table = np.stack(list(alone.values()))
    assert (np.sort(table, axis=0) == [[0], [K // 2], [K // 2]]).all()


def test_patches_of_a_sensor_are_uniform():
    slots = draw('dirichlet', n=16, count=8, draws=8000)
    of_optical = slots_by_modality(slots, ('s1', 's2'))['s2']
    seen = np.bincount(np.asarray(slots.position)[np.asarray(of_optical)], minlength=16)
    assert stats.chisquare(seen).pvalue > 1e-3
    first = np.asarray(slots.sensor * 16 + slots.position)[:, 0]  # no slot is special
    assert stats.chisquare(np.bincount(first, minlength=32)).pvalue > 1e-3


@pytest.mark.parametrize('strategy', JOINT)
def test_invalid_patches_rank_last_and_left_over_slots_are_invalid(strategy):
    rows = 400
    s1 = jnp.arange(16)[None] < jnp.array([3, 0, 16, 0])[jnp.arange(rows) % 4][:, None]
    s2 = jnp.arange(16)[None] >= jnp.array([14, 13, 16, 16])[jnp.arange(rows) % 4][:, None]
    slots = draw(strategy, valid={'s1': s1, 's2': s2}, count=8, hide=0.5)
    by_sensor, there = slots_by_modality(slots, ('s1', 's2')), {'s1': s1, 's2': s2}
    hidden = hidden_patches(slots, ('s1', 's2'), 16)
    for name in by_sensor:
        assert not np.asarray(~hidden[name] & ~there[name]).any()
    total = np.asarray(slots.valid).sum(axis=1)
    assert (total[1::4] == 3).all() and (total[2::4] == 8).all() and (total[3::4] == 0).all()
    # Three of s1 and two of s2: all five fit, unless one sensor is hidden.
    assert set(total[::4]) == ({2, 3, 5} if strategy == 'modality' else {5})


def test_slots_follow_their_key_alone():
    keys = jax.random.split(jax.random.key(3), 6)
    valid = dict.fromkeys(('s2', 's1'), jnp.ones((6, 16), bool))
    one = sample_slots(keys, valid, cfg.Masking('dirichlet'), 8)
    two = sample_slots(keys[::-1], dict(sorted(valid.items())), cfg.Masking('dirichlet'), 8)
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b[::-1])


def test_slots_are_read_by_the_sorted_names():
    slots = Slots(jnp.array([[0, 1, 1]]), jnp.array([[2, 0, 1]]), jnp.array([[True, True, False]]))
    parts = slots_by_modality(slots, ('s2', 's1'))
    assert parts['s1'].tolist() == [[True, False, False]] and parts['s2'].tolist() == [[False, True, False]]
    hidden = hidden_patches(slots, ('s2', 's1'), 3)
    assert hidden['s1'].tolist() == [[True, True, False]] and hidden['s2'].tolist() == [[False, True, True]]
