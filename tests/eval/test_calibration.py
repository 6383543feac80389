"""Calibration against its definitions, against scikit-learn, and a promise held on clusters never seen."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss

from fusmae_jax.errors import InputError
from fusmae_jax.eval import calibration
from fusmae_jax.eval.metrics import values

KINDS = ('multi_label', 'single_label')


def drawn(kind, records=4000, classes=5, temperature=1.0, seed=0):
    """Logits, and labels that follow their probabilities at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (records, classes))
    p = calibration.probabilities(logits, kind, temperature)
    if kind == 'multi_label':
        return logits, (rng.random(p.shape) < p).astype(np.uint8)
    picked = (p.cumsum(axis=1) < rng.random((records, 1))).sum(axis=1)
    return logits, (np.minimum(picked, classes - 1)[:, None] == np.arange(classes)).astype(np.uint8)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('true', [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(kind, true):
    logits, labels = drawn(kind, 20_000, temperature=true)
    assert calibration.fit_temperature(logits, labels, kind) == pytest.approx(true, rel=0.04)
    assert calibration.fit_temperature(logits / true, labels, kind) == pytest.approx(1.0, rel=0.04)


@pytest.mark.parametrize('kind', KINDS)
def test_at_its_temperature_the_split_is_least_surprising(kind):
    logits, labels = drawn(kind, temperature=2.0)
    best = calibration.fit_temperature(logits, labels, kind)
    least = calibration.surprise(logits, labels, kind, best).mean()
    for other in (best / 1.01, best * 1.01, 1.0):
        assert calibration.surprise(logits, labels, kind, other).mean() > least


@pytest.mark.parametrize('kind', KINDS)
def test_where_no_temperature_is_better_than_another_it_changes_nothing(kind):
    """Logits that are all equal, or so far apart that every temperature is sure: the search ends anywhere."""
    labels = np.eye(3, dtype=np.uint8)[[0, 1, 2, 0]]
    assert calibration.fit_temperature(np.where(labels, 1e9, -1e9), labels, kind) == 1
    assert calibration.fit_temperature(np.zeros((4, 3)), labels, kind) == 1


def test_a_temperature_at_the_end_of_the_range_is_said(caplog):
    logits, labels = drawn('single_label', 40)
    sure = np.where(np.eye(5)[logits.argmax(axis=1)], 1, 0)
    assert calibration.fit_temperature(logits, sure, 'single_label') < 0.021
    assert '40 validation entries do not settle it' in caplog.text
    caplog.clear()
    calibration.fit_temperature(logits, labels, 'single_label')
    assert not caplog.text


def test_surprise_is_the_log_loss():
    logits, labels = drawn('single_label', 300)
    p = calibration.probabilities(logits, 'single_label')
    expected = log_loss(labels.argmax(axis=1), p, labels=range(5))
    assert calibration.surprise(logits, labels, 'single_label').mean() == pytest.approx(expected, abs=1e-12)
    logits, labels = drawn('multi_label', 300)
    p = calibration.probabilities(logits, 'multi_label')
    expected = np.mean([log_loss(y, x, labels=(0, 1)) for y, x in zip(labels.T, p.T)])
    assert calibration.surprise(logits, labels, 'multi_label').mean() == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_by_hand():
    """Two bins: (0.5 + 0.2) / 2 against 1 of 2 right, and 0.9, 1.0 against 1 of 2: (0.3 + 0.9) / 4."""
    measure = calibration.Reliability(
        4, np.array([0.49, 0.21, 0.9, 1.0]), np.array([True, False, True, False]), np.zeros(4), 2, b''
    )
    assert values(measure)['ece'] == pytest.approx((0.3 + 0.9) / 4)
    assert (values(measure)['right/0'], values(measure)['right/1']) == (0.5, 0.5)
    low, high = calibration.filled(measure)
    assert (low.number, low.entries, high.number, high.entries) == (0, 2, 1, 2)
    np.testing.assert_allclose([low.confidence, high.confidence], [0.35, 0.95])


@pytest.mark.parametrize('kind', KINDS)
def test_the_error_falls_with_the_temperature_and_counts_what_a_resample_draws(kind):
    logits, labels = drawn(kind, temperature=3.0)
    before = calibration.reliability(logits, labels, kind)
    best = calibration.fit_temperature(logits, labels, kind)
    after = calibration.reliability(logits, labels, kind, best)
    assert values(after)['ece'] < 0.03 < 0.1 < values(before)['ece']
    groups = np.arange(len(labels)) % 7
    weighted = before.grouped(groups, 7)(np.array([0, 2, 0, 1, 0, 0, 0]))
    rows = np.concatenate([np.flatnonzero(groups == g) for g in (1, 1, 3)])
    repeated = values(calibration.reliability(logits[rows], labels[rows], kind))
    assert weighted == pytest.approx(repeated, abs=1e-12, nan_ok=True)


def test_with_one_record_a_cluster_the_threshold_is_the_usual_quantile():
    scores = np.random.default_rng(0).permutation(99) / 100
    for alpha in (0.05, 0.1, 0.25):
        rank = int(np.ceil((1 - alpha) * 100 - 1e-9))
        assert calibration.set_threshold(scores, np.arange(99), alpha) == np.sort(scores)[rank - 1]
    assert calibration.set_threshold(scores[:8], np.arange(8), 0.1) == np.inf  # 9 are needed
    assert calibration.set_threshold(scores[:9], np.arange(9), 0.1) == scores[:9].max()


def test_a_cluster_counts_once_however_many_records_it_has():
    """Nine small clusters that fit and a large one that does not: records alone would say 0.9."""
    scores = np.r_[np.linspace(0.1, 0.2, 27), np.full(500, 0.9)]
    clusters = np.r_[np.repeat(np.arange(9), 3), np.full(500, 9)]
    assert calibration.set_threshold(scores, clusters, 0.25) < 0.2
    assert calibration.set_threshold(scores, clusters, 0.1) == 0.9


def clustered(seed, kind, scenes, per_scene=20, classes=5):
    """Records of scenes with a shift of their own, which no record by itself tells."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(scenes), rng.integers(1, per_scene, scenes))
    hidden = rng.normal(0, 2, (scenes, classes))[scene] + rng.normal(0, 1, (len(scene), classes))
    logits = hidden + rng.normal(0, 2, (scenes, classes))[scene]
    p = calibration.probabilities(2 * hidden, kind)
    if kind == 'multi_label':
        return logits, (rng.random(p.shape) < p).astype(np.uint8), scene
    labels = p.argmax(axis=1)[:, None] == np.arange(classes)
    return logits, labels.astype(np.uint8), scene


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('alpha', [0.1, 0.3])
def test_sets_hold_their_promise_on_clusters_never_seen(kind, alpha):
    """One record of each of 2,000 new clusters: the hits are binomial with a share of 1 - alpha or more."""
    logits, labels, scene = clustered(0, kind, 2000)
    p = calibration.probabilities(logits, kind)
    q = calibration.set_threshold(calibration.misfit(p, labels), scene, alpha)
    logits, labels, scene = clustered(1, kind, 2000)
    sets = calibration.label_sets(calibration.probabilities(logits, kind), q)
    measured = calibration.coverage(sets, labels, scene)
    one = np.unique(scene, return_index=True)[1]
    low, high = stats.binom.interval(0.999, 2000, 1 - alpha)
    assert low <= measured.covered[one].sum() <= high
    # Every cluster the same; and not all sets hold every label, or the promise would be cheap.
    groups = np.unique(scene, return_inverse=True)[1]
    mean = measured.grouped(groups, 2000)(np.ones(2000, np.int64))
    assert mean == pytest.approx(values(measured), abs=1e-12)
    by_hand = np.mean([measured.covered[groups == g].mean() for g in range(2000)])
    assert mean['coverage'] == pytest.approx(by_hand, abs=1e-12)
    assert abs(mean['coverage'] - (1 - alpha)) < 0.03 and mean['set_size'] < 4.5


def test_a_set_holds_all_labels_of_a_record_or_it_does_not_cover():
    p = np.array([[0.9, 0.6, 0.1], [0.9, 0.2, 0.1], [0.3, 0.3, 0.3]])
    labels = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(calibration.misfit(p, labels), [0.4, 0.8, 0])
    sets = calibration.label_sets(p, 0.5)
    held = calibration.coverage(sets, labels, np.array(['a', 'a', 'b']))
    assert held.covered.tolist() == [True, False, True] and held.sizes.tolist() == [2, 1, 0]
    assert values(held) == {'coverage': 0.75, 'set_size': 0.75}  # the mean of a (0.5; 1.5) and b (1; 0)
    assert calibration.abstaining(sets, [True, False, True]).sum(axis=1).tolist() == [2, 3, 0]


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(InputError, match='finite'):
        calibration.fit_temperature(np.array([[np.nan, 0.0]]), np.array([[1, 0]]), 'single_label')
    with pytest.raises(InputError, match=r'alpha=1\.5'):
        calibration.set_threshold(np.ones(3), np.arange(3), 1.5)
    with pytest.raises(InputError, match='clusters'):
        calibration.set_threshold(np.ones(3), np.arange(4), 0.1)
