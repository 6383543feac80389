"""Cluster bootstrap: equal to the naive one, paired, honest about clusters, and fast enough."""

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from fusmae_jax.errors import InputError
from fusmae_jax.eval.intervals import average, difference, intervals, resample, spread
from fusmae_jax.eval.metrics import means, multi_label, single_label, values

CLASSES = ['forest', 'water', 'urban', 'ice']
EXACT = {'rel': 0, 'abs': 1e-12}


def scenes(records=90, clusters=11, seed=0):
    """Logits with ties, multi-hot labels with one class in two scenes only, and the scene of each record."""
    rng = np.random.default_rng(seed)
    scene = rng.integers(clusters, size=records)
    labels = rng.random((records, 4)) < [0.5, 0.3, 0.2, 0.4]
    labels[:, 3] &= scene < 2
    scores = np.round(rng.normal(-0.5, 1, labels.shape) + labels, 1).astype(np.float32)
    return scores, labels, np.array([f'scene {k}' for k in scene])


def measured(scores, labels):
    return multi_label(scores, labels, CLASSES, threshold=0)


def resamples(clusters, replicates, seed):
    """The records of each resample, found the slow way."""
    names = np.unique(clusters)
    for i in range(replicates):
        drawn = np.random.default_rng([seed, i]).integers(len(names), size=len(names))
        yield np.concatenate([np.flatnonzero(clusters == names[k]) for k in drawn])


def test_equals_the_naive_bootstrap_of_scikit_learn_metrics():
    scores, labels, clusters = scenes()
    replicates = resample(measured(scores, labels), clusters, replicates=40, seed=7)
    rare = 0
    for i, rows in enumerate(resamples(clusters, 40, seed=7)):
        s, y = scores[rows], labels[rows]
        kept = np.flatnonzero(y.any(axis=0))
        rare += len(kept) < 4
        expected = {
            'ap_micro': average_precision_score(y, s, average='micro'),
            'ap_macro': average_precision_score(y[:, kept], s[:, kept], average='macro'),
            'f1_micro': f1_score(y, s > 0, average='micro'),
            'f1_macro': f1_score(y, s > 0, labels=kept, average='macro'),
        }
        expected |= {f'ap/{CLASSES[k]}': average_precision_score(y[:, k], s[:, k]) for k in kept}
        assert {name: replicates.values[name][i] for name in expected} == pytest.approx(expected, **EXACT)
    undefined = np.isnan(replicates.values['ap/ice'])
    assert 0 < undefined.sum() == rare < 40
    interval = intervals(replicates)['ap/ice']
    assert (interval.replicates, interval.undefined, interval.clusters) == (40, rare, 11)
    defined = replicates.values['ap/ice'][~undefined]
    assert interval[1:3] == pytest.approx(np.quantile(defined, [0.025, 0.975]), **EXACT)


def test_single_labels_equal_the_naive_bootstrap():
    scores, labels, clusters = scenes()
    truth = labels.argmax(axis=1)
    replicates = resample(single_label(scores, truth, CLASSES), clusters, replicates=20, seed=1)
    for i, rows in enumerate(resamples(clusters, 20, seed=1)):
        y, guess = truth[rows], scores[rows].argmax(axis=1)
        p, r, f, _ = precision_recall_fscore_support(y, guess, average='weighted', zero_division=0)
        expected = values(single_label(scores[rows], y, CLASSES))
        assert {name: replicates.values[name][i] for name in expected} == pytest.approx(expected, **EXACT)
        assert (expected['precision_weighted'], expected['f1_weighted']) == pytest.approx((p, f), **EXACT)
        assert expected['recall_weighted'] == pytest.approx(r, **EXACT)
        assert expected['top1'] == pytest.approx(np.mean(y == guess), **EXACT)


def test_the_estimate_is_that_of_the_split():
    scores, labels, clusters = scenes()
    measure = measured(scores, labels)
    each = intervals(resample(measure, clusters, replicates=30))
    assert {name: interval.estimate for name, interval in each.items()} == values(measure)
    assert all(i.low <= i.high and i.level == 0.95 for i in each.values())


def test_the_seed_decides_and_neither_threads_nor_the_order_of_records_do():
    scores, labels, clusters = scenes()
    measure = measured(scores, labels)
    first = intervals(resample(measure, clusters, replicates=20, threads=1))
    assert intervals(resample(measure, clusters, replicates=20, threads=3)) == first
    order = np.random.default_rng(0).permutation(len(clusters))
    assert (
        intervals(resample(measured(scores[order], labels[order]), clusters[order], replicates=20)) == first
    )
    assert intervals(resample(measure, clusters, replicates=20, seed=1))['ap_micro'] != first['ap_micro']


def test_numbers_and_bytes_name_clusters_too():
    scores, labels, clusters = scenes()
    measure, numbers = measured(scores, labels), np.unique(clusters, return_inverse=True)[1]
    expected = intervals(resample(measure, clusters, replicates=10))
    assert intervals(resample(measure, numbers, replicates=10)) == expected
    assert intervals(resample(measure, np.array(clusters, np.bytes_), replicates=10)) == expected


def test_means_are_ratios_of_sums_and_bootstrapped_alike():
    rng = np.random.default_rng(0)
    errors, tokens, regions = rng.random(50) * 9, rng.integers(0, 9, 50), rng.integers(6, size=50)
    replicates = resample(means({'error': errors}, tokens), regions, replicates=10)
    assert replicates.estimate['error'] == pytest.approx(errors.sum() / tokens.sum(), **EXACT)
    for i, rows in enumerate(resamples(regions, 10, seed=0)):
        assert replicates.values['error'][i] == pytest.approx(
            errors[rows].sum() / tokens[rows].sum(), **EXACT
        )
    assert np.isnan(values(means({'error': errors * 0}, tokens * 0))['error'])


def coverage(clustered, trials=100, regions=40, per_region=20):
    """How often the interval holds the true mean 0 of records that resemble their region."""
    held = 0
    for trial in range(trials):
        rng = np.random.default_rng([5, trial])
        region = np.repeat(np.arange(regions), per_region)
        x = rng.normal(size=regions)[region] + 0.5 * rng.normal(size=region.size)
        names = region if clustered else np.arange(region.size)
        of_trial = intervals(
            resample(means({'x': x}, np.ones_like(x)), names, replicates=120, seed=trial, threads=1)
        )
        held += of_trial['x'].low <= 0 <= of_trial['x'].high
    return held / trials


@pytest.mark.slow
def test_intervals_cover_when_clusters_are_drawn_and_not_when_records_are():
    assert 0.88 <= coverage(clustered=True) <= 0.99
    assert coverage(clustered=False) < 0.6


def test_a_paired_difference_is_taken_resample_by_resample():
    scores, labels, clusters = scenes()
    better = (scores + 0.4 * labels).astype(np.float32)
    first, second = measured(better, labels), measured(scores, labels)
    one, other = (resample(m, clusters, replicates=200) for m in (first, second))
    paired = intervals(difference(one, other))['ap_micro']
    apart = one.values['ap_micro'] - other.values['ap_micro']
    assert paired[1:3] == pytest.approx(np.quantile(apart, [0.025, 0.975]), **EXACT)
    assert paired.estimate == one.estimate['ap_micro'] - other.estimate['ap_micro'] > 0
    assert paired.low > 0
    # What both find hard cancels.
    alone = [intervals(r)['ap_micro'] for r in (one, other)]
    assert paired.high - paired.low < 0.7 * min(i.high - i.low for i in alone)
    same = intervals(difference(one, one))['ap_micro']
    assert same.estimate == same.low == same.high == 0


def test_other_resamples_are_not_paired():
    scores, labels, clusters = scenes()
    first = resample(measured(scores, labels), clusters, replicates=5)
    order = np.arange(len(clusters))[::-1]
    others = [
        resample(measured(scores, labels), clusters, replicates=5, seed=1),
        resample(measured(scores, labels), clusters, replicates=6),
        resample(measured(scores, labels), np.roll(clusters, 1), replicates=5),
        resample(measured(scores, ~labels), clusters, replicates=5),
        resample(measured(scores[order], labels[order]), clusters[order], replicates=5),
        resample(multi_label(scores, labels, CLASSES[::-1], threshold=0), clusters, replicates=5),
    ]
    for other in others:
        with pytest.raises(InputError, match='not evaluated on the same resamples'):
            difference(first, other)
        with pytest.raises(InputError, match='not evaluated on the same resamples'):
            average([first, other])
    # Another threshold, as of probabilities, asks the same question.
    difference(first, resample(multi_label(scores, labels, CLASSES, threshold=0.5), clusters, replicates=5))


def test_runs_of_one_system_are_averaged_resample_by_resample():
    scores, labels, clusters = scenes()
    rng = np.random.default_rng(2)
    runs = [
        resample(measured(scores + rng.normal(0, 0.3, scores.shape), labels), clusters, replicates=25)
        for _ in range(3)
    ]
    mean = average(runs)
    assert mean.estimate['ap_micro'] == pytest.approx(np.mean([r.estimate['ap_micro'] for r in runs]))
    each = np.mean([r.values['ap_micro'] for r in runs], axis=0)
    assert intervals(mean)['ap_micro'].high == pytest.approx(np.quantile(each, 0.975), **EXACT)
    assert intervals(difference(mean, average(runs)))['ap_micro'].high == 0
    with pytest.raises(InputError, match='no runs'):
        average([])


def test_mean_and_range_over_subsets_and_head_seeds():
    runs = {(subset, head): 0.6 + 0.01 * subset + 0.001 * head for subset in range(5) for head in range(3)}
    over_runs = spread(runs)
    assert over_runs.mean == pytest.approx(0.621, **EXACT)
    assert (over_runs.lowest, over_runs.highest, over_runs.runs) == (0.6, runs[4, 2], 15)
    assert spread({(0,): 0.5}).runs == 1


@pytest.mark.parametrize(
    ('runs', 'message'),
    [
        ({(0, 0): 0.5, (1, 1): 0.5}, r'without those of the seeds \[\(0, 1\), \(1, 0\)\]'),
        ({}, 'no runs'),
        ({(0, 0): 0.5, (0, 1): float('nan')}, r'seeds \(0, 1\) has nan'),
    ],
)
def test_runs_that_are_missing_are_named(runs, message):
    with pytest.raises(InputError, match=message):
        spread(runs)


@pytest.mark.parametrize(
    ('clusters', 'message'),
    [
        (['a', '', 'b', ''], '2 of 4 records have no name, the first is record 1'),
        ([b'a', b'a', b'a', b'a'], 'two clusters or more'),
        ([0.5, 1.5, 2.5, 3.5], 'names or whole numbers'),
        (['a', 'b'], 'one name for each of 4 records'),
    ],
)
def test_clusters_that_cannot_be_used_are_told(clusters, message):
    with pytest.raises(InputError, match=message):
        resample(means({'x': np.ones(4)}, np.ones(4)), clusters)


@pytest.mark.parametrize(
    ('sums', 'weights', 'message'),
    [
        ([1, np.inf], [1, 1], 'x: record 1 is not finite'),
        ([1, 1], [1, -2], 'record 1 has -2.0'),
        ([1, 1, 1], [1, 1], r'x: shape \(3,\)'),
        ([], [], 'one number for each record'),
    ],
)
def test_means_that_cannot_be_taken_are_told(sums, weights, message):
    with pytest.raises(InputError, match=message):
        means({'x': sums}, weights)


@pytest.mark.slow
def test_a_thousand_replicates_at_full_size_in_two_minutes(capsys):
    """The official test split of BigEarthNet-MM: 125,866 records x 19 classes of 125 scenes."""
    rng = np.random.default_rng(0)
    labels = rng.random((125_866, 19)) < np.linspace(0.42, 0.001, 19)
    scores = (rng.normal(size=labels.shape) + 1.5 * labels).astype(np.float32)
    clusters = rng.integers(125, size=len(labels))
    start = time.perf_counter()
    measure = multi_label(scores, labels, [f'class {k}' for k in range(19)], threshold=0)
    replicates = resample(measure, clusters, replicates=1000)
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f'\n1,000 replicates of {len(replicates.values)} metrics: {seconds:.1f} s')
        print(intervals(replicates)['ap_micro'], intervals(replicates)['ap_macro'])
    for i, rows in enumerate(resamples(clusters, 2, seed=0)):
        times = np.bincount(rows, minlength=len(labels))
        ap = average_precision_score(labels, scores, average='micro', sample_weight=times)
        assert replicates.values['ap_micro'][i] == pytest.approx(ap, **EXACT)
    assert seconds <= 120
