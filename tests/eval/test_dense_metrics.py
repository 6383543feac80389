"""Metrics of maps: equal to scikit-learn's over all labelled pixels, whatever is ignored or empty."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense.metrics import regression, segmentation
from fusmae_jax.eval.intervals import difference, intervals, resample
from fusmae_jax.eval.metrics import values

IGNORE, CLOSE = 255, {'rel': 1e-12, 'abs': 1e-12}


def maps(seed, classes=5, records=12, empty=()):
    """Truth with ignored pixels, and predictions that are often right; classes in `empty` have no truth."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([c for c in range(classes) if c not in empty], (records, 9, 7))
    guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(classes, size=truth.shape))
    return np.where(rng.random(truth.shape) < 0.2, IGNORE, truth), guess


def confusion(truth, guess, classes=5):
    counts = np.zeros((len(truth), classes, classes), int)
    for record, (t, p) in enumerate(zip(truth, guess)):
        for row, column in zip(t.ravel(), p.ravel()):
            if row != IGNORE:
                counts[record, row, column] += 1
    return counts


@pytest.mark.parametrize('empty', [(), (2,), (0, 4)])
def test_they_are_those_of_scikit_learn(empty):
    for seed in range(5):
        truth, guess = maps(seed, empty=empty)
        names = tuple('abcde')
        measure = segmentation(confusion(truth, guess), names)
        metrics, kept = values(measure), truth != IGNORE
        t, p, there = truth[kept], guess[kept], [c for c in range(5) if c not in empty]
        assert measure.empty == tuple(names[c] for c in empty)
        for metric, function in (('iou', sklearn.jaccard_score), ('f1', sklearn.f1_score)):
            each = function(t, p, labels=range(5), average=None, zero_division=0)
            for c in there:
                assert metrics[f'{metric}/{names[c]}'] == pytest.approx(each[c], **CLOSE)
            assert all(np.isnan(metrics[f'{metric}/{names[c]}']) for c in empty)
            mean = function(t, p, labels=there, average='macro')
            assert metrics[f'{metric}_macro'] == pytest.approx(mean, **CLOSE)
        assert metrics['accuracy'] == pytest.approx(sklearn.accuracy_score(t, p), **CLOSE)


def test_a_resample_is_the_metric_of_copies_of_its_clusters():
    truth, guess = maps(3)
    clusters = np.arange(12) // 3
    weighted = segmentation(confusion(truth, guess), 'abcde').grouped(clusters, 4)
    resampled = weighted(np.array([2, 0, 1, 1]))
    rows = np.concatenate([np.flatnonzero(clusters == c) for c in (0, 0, 2, 3)])
    copied = values(segmentation(confusion(truth[rows], guess[rows]), 'abcde'))
    assert resampled == pytest.approx(copied, **CLOSE)


def test_intervals_and_paired_differences_take_them_as_any_other():
    truth, guess = maps(4)
    clusters = np.arange(12) // 3
    first, second = (
        resample(segmentation(confusion(truth, p), 'abcde'), clusters, 50) for p in (guess, truth % 5)
    )
    change = intervals(difference(second, first))['iou_macro']
    assert 0 < change.low <= change.estimate <= change.high and change.clusters == 4
    other = resample(segmentation(confusion((truth + 1) % 5, guess), 'abcde'), clusters, 50)
    with pytest.raises(InputError, match='not evaluated on the same resamples'):
        difference(first, other)


def test_regression_is_that_of_scikit_learn_with_missing_truth():
    rng = np.random.default_rng(0)
    truth = 1e4 + rng.normal(size=(8, 5, 5))
    guess = truth + rng.normal(0, 0.5, truth.shape)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    there, measure = np.isfinite(truth), regression(guess, truth)
    metrics = values(measure)
    assert metrics['rmse'] == pytest.approx(
        sklearn.mean_squared_error(truth[there], guess[there]) ** 0.5, **CLOSE
    )
    assert metrics['r2'] == pytest.approx(sklearn.r2_score(truth[there], guess[there]), **CLOSE)
    part = measure.grouped(np.arange(8) // 4, 2)(np.array([1, 0]))
    half = there[:4]
    assert part['r2'] == pytest.approx(sklearn.r2_score(truth[:4][half], guess[:4][half]), **CLOSE)


@pytest.mark.parametrize(
    ('counts', 'message'),
    [
        (np.ones((2, 3, 2)), 'shape'),
        (np.full((2, 2, 2), np.nan), 'diverged'),
        (np.full((2, 2, 2), -1), 'whole numbers from 0'),
        (np.zeros((2, 2, 2)), 'no record has a labelled pixel'),
    ],
)
def test_what_cannot_be_measured_is_one_error(counts, message):
    with pytest.raises(InputError, match=message):
        segmentation(counts, 'ab')
