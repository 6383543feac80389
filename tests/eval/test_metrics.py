"""Metrics: by hand, against scikit-learn, and where nothing can be said."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from fusmae_jax.errors import InputError
from fusmae_jax.eval.metrics import evaluate, multi_label, single_label, train_prior, values

EXACT = {'rel': 0, 'abs': 1e-12}
# BigEarthNet v2: records of each class in the train and the test split, and of all.
TRAIN, TEST = 237_871, 119_825
COUNTS = {
    'Arable land': (88_236, 50_052),
    'Mixed forest': (78_791, 44_284),
    'Coniferous forest': (76_344, 39_043),
    'Transitional woodland, shrub': (64_198, 40_523),
    'Broad-leaved forest': (64_164, 36_377),
    'Land principally occupied by agriculture': (60_127, 29_846),
    'Complex cultivation patterns': (51_034, 22_078),
    'Pastures': (42_968, 26_722),
    'Urban fabric': (33_626, 12_824),
    'Inland waters': (30_466, 16_846),
    'Marine waters': (35_914, 11_854),
    'Agro-forestry areas': (15_082, 9_942),
    'Permanent crops': (15_190, 5_710),
    'Inland wetlands': (11_344, 4_519),
    'Moors, heathland and sclerophyllous vegetation': (6_329, 3_759),
    'Natural grassland': (6_984, 2_211),
    'Industrial or commercial units': (6_398, 2_018),
    'Coastal wetlands': (670, 117),
    'Beaches, dunes, sands': (738, 152),
}


def many(records=300, classes=6, seed=0, digits=1):
    """Multi-hot labels and logits with many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.random((records, classes)) < np.linspace(0.5, 0.05, classes)
    scores = np.round(rng.normal(-0.5, 1, labels.shape) + labels, digits).astype(np.float32)
    return scores, labels.astype(np.uint8), [f'class {k}' for k in range(classes)]


def binary(scores, labels):
    return evaluate(multi_label(np.c_[scores], np.c_[labels], ['water'], threshold=0)).values


@pytest.mark.parametrize(
    ('scores', 'labels', 'expected'),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 1], (1 + 2 / 3 + 3 / 4) / 3),  # two records share one threshold
        ([0.9, 0.5, 0.5, 0.5], [0, 1, 1, 0], 2 / 4),
        ([0.2, 0.2, 0.2, 0.2], [0, 1, 0, 0], 1 / 4),  # all tied: the prevalence
        ([0.4, 0.3, 0.2, 0.1], [0, 0, 0, 1], 1 / 4),
        ([0.4, 0.3, 0.2, 0.1], [1, 1, 1, 1], 1.0),  # no negative
        ([0.3], [1], 1.0),
        ([np.inf, 1.0, -np.inf, 0.0], [1, 0, 1, 0], (1 + 2 / 4) / 2),
    ],
)
def test_average_precision_by_hand(scores, labels, expected):
    metrics = binary(scores, labels)
    assert metrics['ap_micro'] == pytest.approx(expected, **EXACT)
    assert metrics['ap_macro'] == metrics['ap/water'] == metrics['ap_micro']  # one class


def test_micro_ranks_all_classes_together_and_macro_each_alone():
    scores, labels = [[4, 1], [3, 2]], [[1, 0], [0, 1]]
    metrics = evaluate(multi_label(scores, labels, ['a', 'b'], threshold=0)).values
    assert metrics['ap/a'] == metrics['ap/b'] == metrics['ap_macro'] == 1
    assert metrics['ap_micro'] == pytest.approx((1 + 2 / 3) / 2, **EXACT)  # in order: a, not a, b, not b


def test_f1_by_hand_and_a_score_on_the_threshold_does_not_predict():
    scores = [[1, 0], [1, -1], [-1, 1], [1, 0]]
    labels = [[1, 1], [0, 0], [1, 1], [1, 0]]
    metrics = evaluate(multi_label(scores, labels, ['a', 'b'], threshold=0)).values
    # a: 2 hits, 3 predicted, 3 actual. b: 1 hit, 1 predicted, 2 actual.
    assert metrics['f1_macro'] == pytest.approx((4 / 6 + 2 / 3) / 2, **EXACT)
    assert metrics['f1_micro'] == pytest.approx(6 / 9, **EXACT)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('digits', [0, 1, 9])
def test_multi_label_metrics_equal_scikit_learn(seed, digits):
    scores, labels, classes = many(seed=seed, digits=digits)
    metrics = evaluate(multi_label(scores, labels, classes, threshold=0.25)).values
    each = sklearn.average_precision_score(labels, scores, average=None)
    assert [metrics[f'ap/{name}'] for name in classes] == pytest.approx(each, **EXACT)
    for averaging in ('micro', 'macro'):
        ap = sklearn.average_precision_score(labels, scores, average=averaging)
        f1 = sklearn.f1_score(labels, scores > 0.25, average=averaging)
        assert metrics[f'ap_{averaging}'] == pytest.approx(ap, **EXACT)
        assert metrics[f'f1_{averaging}'] == pytest.approx(f1, **EXACT)


def test_a_record_that_counts_twice_equals_one_that_stands_there_twice():
    scores, labels, classes = many(records=60)
    times = np.random.default_rng(3).integers(0, 4, 60)
    weighted = multi_label(scores, labels, classes, threshold=0).grouped(np.arange(60), 60)
    again = multi_label(scores.repeat(times, 0), labels.repeat(times, 0), classes, threshold=0)
    assert weighted(times) == pytest.approx(values(again), **EXACT)


def test_classes_without_positives_are_left_out_of_macro_and_counted():
    scores, labels, classes = many()
    labels[:, 2] = 0
    result = evaluate(multi_label(scores, labels, classes, threshold=0))
    assert result.without_positives == ('class 2',)
    assert result.positives['class 2'] == 0 and result.positives['class 0'] == labels[:, 0].sum()
    assert result.records == 300
    assert np.isnan(result.values['ap/class 2'])
    kept = [0, 1, 3, 4, 5]
    expected = sklearn.average_precision_score(labels[:, kept], scores[:, kept], average='macro')
    assert result.values['ap_macro'] == pytest.approx(expected, **EXACT)
    expected = sklearn.f1_score(labels, scores > 0, labels=kept, average='macro')
    assert result.values['f1_macro'] == pytest.approx(expected, **EXACT)


def test_without_any_positive_nothing_is_defined():
    scores, labels, classes = many()
    result = evaluate(multi_label(scores, labels * 0, classes, threshold=0))
    assert result.without_positives == tuple(classes)
    assert all(np.isnan(value) for value in result.values.values())


def test_scores_tie_as_float32():
    close = np.float64([1 / 3 + 1e-12, 1 / 3, 0.1])
    metrics = binary(close, [1, 0, 0])
    assert metrics['ap_micro'] == 1 / 2  # as float64 the positive would rank first, and score 1
    assert binary([1e300, 1e299, 0], [1, 0, 0])['ap_micro'] == 1 / 2  # both beyond float32
    assert binary(np.float16([1, 0.5, 0]), [1, 0, 0])['ap_micro'] == 1


def test_single_label_metrics_by_hand():
    scores = [[3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3], [3, 0, 2, 1]]
    metrics = evaluate(single_label(scores, [0, 1, 0, 3], list('abcd'))).values
    # Predicted a, a, d, a. a: 1 hit of 3 predicted, 2 actual; b and d: no hit, 1 actual each.
    assert metrics == pytest.approx(
        {
            'top1': 1 / 4,
            'top3': 3 / 4,  # the third record's class comes last
            'precision_weighted': 2 / 4 * 1 / 3,
            'recall_weighted': 1 / 4,
            'f1_weighted': 2 / 4 * 2 / 5,
        },
        **EXACT,
    )


def ranked(records=400, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, records, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    scores = rng.normal(0, 1, (records, classes)) + 1.5 * (labels[:, None] == np.arange(classes))
    return scores.astype(np.float32), labels, [f'class {k}' for k in range(classes)]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('records', [30, 400])  # few: some classes are absent
@pytest.mark.filterwarnings('ignore:.*ill-defined')
def test_single_label_metrics_equal_scikit_learn(seed, records):
    scores, labels, classes = ranked(records, seed=seed)
    metrics = evaluate(single_label(scores, labels, classes)).values
    predicted, numbers = scores.argmax(axis=1), range(len(classes))
    p, r, f, _ = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=numbers, average='weighted', zero_division=0
    )
    assert metrics['precision_weighted'] == pytest.approx(p, **EXACT)
    assert metrics['recall_weighted'] == pytest.approx(r, **EXACT)
    assert metrics['f1_weighted'] == pytest.approx(f, **EXACT)
    assert metrics['top1'] == pytest.approx(sklearn.accuracy_score(labels, predicted), **EXACT)
    assert metrics['recall_weighted'] == pytest.approx(metrics['top1'], **EXACT)
    top3 = sklearn.top_k_accuracy_score(labels, scores, k=3, labels=numbers)
    assert metrics['top3'] == pytest.approx(top3, **EXACT)


def test_of_tied_scores_the_first_class_ranks_higher():
    metrics = evaluate(single_label(np.ones((4, 4)), [0, 1, 2, 3], list('abcd'))).values
    assert metrics['top1'] == metrics['recall_weighted'] == 1 / 4
    assert metrics['top3'] == 3 / 4


def test_with_three_classes_or_fewer_top3_says_nothing():
    scores, labels, classes = ranked(classes=3)
    assert evaluate(single_label(scores, labels, classes)).values['top3'] == 1
    only = evaluate(single_label([[0.1], [-5]], [0, 0], ['a']))
    assert set(only.values.values()) == {1.0}


@pytest.mark.parametrize('records', range(2, 40))
def test_a_perfect_score_is_one_whatever_the_shares_of_the_classes_round_to(records):
    """The shares of 9 records in 7 classes add up to more than 1."""
    labels = np.arange(records) % 7
    metrics = evaluate(single_label(np.eye(7)[labels], labels, list('abcdefg'))).values
    assert all(1 - 1e-9 < x <= 1 for x in metrics.values())


def test_absent_classes_of_single_labels_are_counted():
    result = evaluate(single_label([[1, 0, 0], [0, 1, 0]], [0, 1], ['a', 'b', 'c']))
    assert result.without_positives == ('c',)
    assert result.values['precision_weighted'] == 1


@pytest.fixture(scope='module')
def published():
    """Labels with as many records of each class as the test split of BigEarthNet v2 has."""
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(TEST) < test for _, test in COUNTS.values()], axis=1)
    assert labels.sum(axis=0).tolist() == [test for _, test in COUNTS.values()]
    return labels


def test_the_train_prior_on_published_prevalences(published):
    train = np.stack([np.arange(TRAIN) < count for count, _ in COUNTS.values()], axis=1)
    scores = train_prior(train, TEST)
    assert scores.shape == (TEST, 19) and scores.dtype == np.float32
    assert (scores[0] == scores[-1]).all()
    metrics = evaluate(multi_label(scores, published, list(COUNTS), threshold=0.5)).values
    assert metrics['ap_micro'] == pytest.approx(0.3402, abs=5e-5)
    prevalences = [test / TEST for _, test in COUNTS.values()]
    assert metrics['ap_macro'] == pytest.approx(np.mean(prevalences), **EXACT)
    # From the counts alone: classes by falling train count, each one threshold.
    tests = np.array([test for _, test in sorted(COUNTS.values(), reverse=True)])
    precision = tests.cumsum() / (TEST * np.arange(1, 20))
    assert metrics['ap_micro'] == pytest.approx((tests * precision).sum() / tests.sum(), **EXACT)
    assert metrics['f1_micro'] == 0  # no class has half of the training records


def test_random_and_constant_scores_on_published_prevalences(published):
    random = np.random.default_rng(1).random(published.shape, np.float32)
    metrics = evaluate(multi_label(random, published, list(COUNTS), threshold=0.5)).values
    assert metrics['ap_micro'] == pytest.approx(0.1576, abs=5e-4)
    constant = evaluate(multi_label(np.zeros_like(random), published, list(COUNTS), threshold=0.5)).values
    assert constant['ap_micro'] == pytest.approx(0.1576, abs=5e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'scores': [[0.1, np.nan], [1, 2]]}, r"record S2A_1, class 'b': NaN \(1 in all\)"),
        ({'labels': [[0, 1], [0, 2]]}, r"record S2A_2, class 'b': 2; they must be 0 or 1"),
        ({'labels': [[0, 1, 0], [0, 1, 0]]}, r'shape \(2, 3\), but the scores have \(2, 2\)'),
        ({'classes': ['a', 'b', 'c']}, r'shape \(2, 2\), expected \(records, 3\)'),
        ({'classes': ['a', 'a']}, 'has a name twice'),
        ({'names': [b'S2A_1']}, '1 for 2 records'),
        ({'scores': np.zeros((0, 2)), 'labels': np.zeros((0, 2)), 'names': None}, 'is the split empty'),
    ],
)
def test_bad_multi_label_input_is_named(change, message):
    given = {
        'scores': [[0.1, 0.2], [1, 2]],
        'labels': [[0, 1], [0, 1]],
        'classes': ['a', 'b'],
        'names': [b'S2A_1', b'S2A_2'],
    }
    with pytest.raises(InputError, match=message):
        multi_label(**(given | change), threshold=0)


@pytest.mark.parametrize(
    ('scores', 'labels', 'message'),
    [
        ([[0.1, 0.2], [1, 2]], [0, 2], r'record 1: 2 is no class; they go from 0 to 1'),
        ([[0.1, 0.2], [1, 2]], [0, -1], 'record 1: -1 is no class'),
        ([[0.1, 0.2], [1, 2]], [[0, 1]], r'shape \(1, 2\)'),
        ([[0.1, 0.2], [np.nan, 2]], [0, 1], "record 1, class 'a': NaN"),
    ],
)
def test_bad_single_label_input_is_named(scores, labels, message):
    with pytest.raises(InputError, match=message):
        single_label(scores, labels, ['a', 'b'])


def test_a_prior_needs_training_records():
    with pytest.raises(InputError, match='there must be records'):
        train_prior(np.zeros((0, 19)), 5)
