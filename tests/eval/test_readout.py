"""What a head and the nearest neighbours make of records without a valid pixel."""

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.eval import readout
from fusmae_jax.eval.evaluation_config import Knn, LinearProbe
from fusmae_jax.eval.features import Features
from fusmae_jax.eval.readout import Variant

WIDTH, CLASSES = 6, 3
HEADS = LinearProbe(learning_rates=(1e-2, 1e-1), head_seeds=(0, 1), epochs=6.0, batch_size=16)


def features(records, seed, lost=()):
    """Far from 0 and of different spread; `lost` rows are as an extractor leaves them."""
    rng = np.random.default_rng(seed)
    values = rng.normal([40, -30, 3, 8, 0, 5], [1, 2, 0.1, 5, 1, 0.5], (records, WIDTH)).astype(np.float32)
    valid = np.ones(records, bool)
    values[list(lost)], valid[list(lost)] = 0, False
    return Features(values, valid)


def variant(norm=True, lost=(2, 5, 30), test_lost=(0, 7)):
    return Variant(
        'mean_patch', norm, features(60, 0, lost), features(20, 1, (3,)), features(12, 2, test_lost)
    )


def labels(records, seed=3):
    return (np.random.default_rng(seed).random((records, CLASSES)) < 0.4).astype(np.uint8)


def probe(given, positions=None):
    positions = np.arange(60) if positions is None else positions
    return readout.probe(HEADS, given, positions, labels(60)[positions], lambda z: -float(np.abs(z).max()))


def test_the_statistics_are_of_the_labelled_records_with_a_valid_pixel():
    positions = np.arange(40)
    stored = probe(variant(), positions).heads
    seen = variant().train.values[np.setdiff1d(positions, [2, 5, 30])].astype(np.float64)
    np.testing.assert_allclose(stored['mean'], seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stored['std'], np.sqrt(seen.var(axis=0) + 1e-6), rtol=1e-6)


@pytest.mark.parametrize('norm', [True, False])
def test_a_record_without_a_valid_pixel_is_given_the_bias(norm):
    outcome = probe(variant(norm))
    for seed, scores in outcome.scores.items():
        bias = outcome.heads['bias'][list(outcome.heads['seed']).index(seed)]
        np.testing.assert_array_equal(scores[[0, 7]], np.stack([bias, bias]))
        assert (np.abs(scores[1:7] - bias).max(axis=1) > 1e-3).all()


def test_the_validation_split_is_scaled_alike():
    given, seen = variant(), []

    def judge(logits):
        seen.append(logits)
        return 0.0

    outcome = readout.probe(HEADS, given, np.arange(60), labels(60), judge)
    np.testing.assert_array_equal(seen[0][3], outcome.heads['bias'][0])
    assert np.abs(seen[0] - seen[0][3]).max() > 1e-3


def test_the_sweep_is_settled_on_what_the_stored_heads_give_on_validation():
    given, judged = variant(), []
    outcome = readout.probe(
        HEADS, given, np.arange(60), labels(60), lambda z: judged.append(z) or -float(len(judged))
    )
    heads, seen = outcome.heads, given.val.valid
    normed = (given.val.values.astype(np.float64) - heads['mean']) / heads['std']
    # The first of the points that are tried is the best, so its heads are the stored ones, one for each seed.
    for kernel, bias, scores in zip(np.moveaxis(heads['kernel'], 1, 0), heads['bias'], judged):
        np.testing.assert_allclose(scores[seen], (normed @ kernel + bias)[seen], rtol=1e-4, atol=1e-4)


def test_the_head_learns_from_zeros_where_nothing_was_seen():
    given = variant(lost=range(30, 60))
    scale = readout.fit_scale(given.train)
    rows = readout.scaled(given.train, scale)
    assert (rows[30:] == 0).all()
    np.testing.assert_allclose(rows[:30].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(rows[:30].std(axis=0), 1, atol=1e-3)
    np.testing.assert_array_equal(readout.scaled(given.train, None), given.train.values)


def test_neighbours_of_standardised_features_agree():
    config = Knn(standardise=True, k=4)
    given, truth = variant(), labels(60)
    found = readout.neighbours(config, given, np.arange(60), truth).scores[0]
    # Equally far from all, as without a scale: the first ones are taken.
    np.testing.assert_allclose(found[[0, 7]], np.tile(truth[:4].mean(axis=0), (2, 1)), atol=1e-6)
    plain = readout.neighbours(config, variant(norm=False), np.arange(60), truth).scores[0]
    np.testing.assert_allclose(found[[0, 7]], plain[[0, 7]], atol=1e-6)
    # What the lost training records are does not move the others.
    keep = np.setdiff1d(np.arange(60), [2, 5, 30])
    less = readout.neighbours(config, given, keep, truth[keep]).scores[0]
    np.testing.assert_allclose(np.delete(found, [0, 7], axis=0), np.delete(less, [0, 7], axis=0), atol=1e-6)


@pytest.mark.parametrize(('method', 'config'), [(readout.probe, HEADS), (readout.neighbours, Knn(k=4))])
def test_statistics_of_nothing_are_refused(method, config):
    positions = np.array([2, 5, 30, 31])
    lost = variant(lost=positions)
    with pytest.raises(InputError, match='none of 4 labelled training records has a valid pixel'):
        method(config, lost, positions, labels(4), lambda z: 0.0)
    plain = lost._replace(norm=False)  # the head can still learn how frequent the classes are
    found = method(config, plain, positions, labels(4), lambda z: 0.0)
    assert all(np.isfinite(scores).all() for scores in found.scores.values())
