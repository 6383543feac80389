import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.eval.knn import knn_scores


def expected(features, bank, labels, k, temperature):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, bank)]
    result = []
    for row in unit[0] @ unit[1].T:
        nearest = np.argsort(-row, kind='stable')[:k]
        weights = np.exp(row[nearest] / temperature)
        result.append(weights @ labels[nearest] / weights.sum())
    return np.array(result)


@pytest.fixture(scope='module')
def data():
    rng = np.random.default_rng(0)
    bank, features = rng.normal(1, 1, (90, 12)), rng.normal(1, 1, (37, 12))
    return features.astype(np.float32), bank.astype(np.float32), (rng.random((90, 5)) < 0.3).astype(np.uint8)


@pytest.mark.parametrize(('k', 'temperature'), [(20, 0.07), (1, 0.07), (90, 1.0)])
def test_equals_the_definition_in_float64(data, k, temperature):
    features, bank, labels = data
    found = knn_scores(features, bank, labels, k, temperature, queries=16)
    wide = expected(features.astype(np.float64), bank.astype(np.float64), labels, k, temperature)
    assert found.shape == (37, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found, wide, atol=2e-6)


def test_neither_the_batch_nor_the_length_of_features_matters(data):
    features, bank, labels = data
    whole = knn_scores(features, bank, labels, queries=64)
    np.testing.assert_allclose(knn_scores(features, bank, labels, queries=5), whole, atol=1e-6)
    np.testing.assert_allclose(knn_scores(features * 1e4, bank * 1e-4, labels), whole, atol=1e-5)


def test_two_neighbours_by_hand():
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    found = knn_scores(np.array([[3.0, 0.0]], np.float32), bank, labels, k=2, temperature=0.5)
    near = np.exp(1 / 0.5) / (np.exp(1 / 0.5) + 1)
    np.testing.assert_allclose(found, [[near, 1 - near]], atol=1e-6)


def test_a_record_without_features_is_equally_far_from_all(data):
    _, bank, labels = data
    found = knn_scores(np.zeros((1, 12), np.float32), bank, labels, k=10)
    np.testing.assert_allclose(found[0], labels[:10].mean(axis=0), atol=1e-6)


def test_more_neighbours_than_records_is_an_error(data):
    features, bank, labels = data
    with pytest.raises(InputError, match='k=20 neighbours of 19 training records'):
        knn_scores(features, bank[:19], labels[:19])
