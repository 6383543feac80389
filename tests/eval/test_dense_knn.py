"""`dense_knn`: votes of tokens against plain NumPy, the draw of a bank, and a map without training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.dense.bank import Sample, labelled, overlaps
from fusmae_jax.eval.dense.config import DenseKnn, check
from fusmae_jax.eval.dense.features import Features
from fusmae_jax.eval.dense.knn import run_dense_knn, token_shares
from fusmae_jax.eval.knn import knn_scores, make_bank
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.input.label_maps import IGNORE
from tests.support.map_fixtures import archive
from tests.support.probe_fixtures import checkpoint
from tests.support.result_rows import rows_of

pytestmark = pytest.mark.usefixtures('one_device')


def by_hand(queries, bank, labels, k, temperature):
    """One query after the other, in float64."""
    shares = []
    for query in queries.astype(np.float64):
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosine, kind='stable')[:k]
        weights = np.exp(cosine[nearest] / temperature)
        shares.append(weights @ labels[nearest] / weights.sum())
    return np.array(shares)


@pytest.mark.parametrize('block', [7, 16, 50])
def test_votes_are_those_of_numpy_however_the_bank_is_cut(block):
    rng = np.random.default_rng(0)
    bank, labels = rng.normal(size=(50, 6)).astype(np.float32), rng.dirichlet(np.ones(3), 50)
    tokens = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    seen = np.ones((2, 3, 4), bool)
    seen[0, 1, 2], tokens[0, 1, 2] = False, 0
    scale = Scale(np.full(6, 0.1, np.float32), np.full(6, 2, np.float32))
    features = Features(jnp.asarray(tokens), jnp.asarray(seen))
    given = make_bank((bank - scale.mean) / scale.std, labels, block)
    shares = np.asarray(jax.jit(token_shares, static_argnums=(3, 4))(features, scale, given, 5, 0.3))
    wanted = by_hand((tokens[seen] - 0.1) / 2, (bank - 0.1) / 2, labels, 5, 0.3)
    np.testing.assert_allclose(shares[seen], wanted, atol=1e-5)
    # Nothing was seen there: what the bank has of each class.
    np.testing.assert_allclose(shares[0, 1, 2], labels.mean(axis=0), atol=1e-6)


def test_of_equally_near_ones_the_first_are_taken_in_any_block():
    bank, labels = np.tile(np.eye(2, dtype=np.float32), (9, 1)), np.eye(18)
    for block in (4, 18):
        features = Features(jnp.asarray([[[[2.0, 0.0]]]], jnp.float32), jnp.ones((1, 1, 1), bool))
        scale = Scale(np.zeros(2, np.float32), np.ones(2, np.float32))
        shares = token_shares(features, scale, make_bank(bank, labels, block), 3, 1.0)
        np.testing.assert_allclose(np.asarray(shares).ravel(), np.eye(18)[[0, 2, 4]].mean(axis=0), atol=1e-6)


def test_pixels_without_a_label_never_vote():
    rng = np.random.default_rng(1)
    stored = rng.integers(3, size=(2, 6, 9)).astype(np.uint8)
    stored[rng.random(stored.shape) < 0.4] = IGNORE
    stored[0, :3, :3] = IGNORE
    on_tokens = labelled(jnp.asarray(stored), 3, (2, 3))
    for record, row, column in np.ndindex(2, 2, 3):
        under = stored[record, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        counts = np.array([(under == c).sum() for c in range(3)])
        assert on_tokens.some[record, row, column] == (counts.sum() > 0)
        wanted = counts / max(counts.sum(), 1)
        np.testing.assert_allclose(on_tokens.shares[record, row, column], wanted, atol=1e-6)
    assert not on_tokens.some[0, 0, 0]


def test_a_pixel_on_the_border_of_two_tokens_counts_in_both_by_its_parts():
    parts = overlaps(3, 2)
    np.testing.assert_array_equal(parts, [[2, 1, 0], [0, 1, 2]])
    shares = labelled(jnp.asarray([[[0, 1, IGNORE]]], jnp.uint8), 2, (1, 2)).shares
    np.testing.assert_allclose(np.asarray(shares)[0, 0], [[2 / 3, 1 / 3], [0, 1]], atol=1e-6)


def test_a_bank_is_drawn_evenly_and_alike_from_any_batches():
    rng = np.random.default_rng(2)
    values, shares = rng.normal(size=(12, 5, 3)), rng.random((12, 5, 2))
    there = rng.random((12, 5)) < 0.8

    def draw(size, batch, seed=0):
        sample = Sample(size, seed)
        for start in range(0, 12, batch):
            part = np.s_[start : start + batch]
            sample.add(range(12)[part], values[part], shares[part], there[part])
        assert sample.offered == there.sum()
        return sample.drawn()

    whole = draw(100, 4)
    np.testing.assert_array_equal(whole[0], values[there])
    np.testing.assert_array_equal(whole[1], shares[there])
    for one, other in zip(draw(7, 1), draw(7, 12)):
        np.testing.assert_array_equal(one, other)
    where = {row.tobytes(): i for i, row in enumerate(values[there])}
    counts = np.zeros(len(where))
    for seed in range(300):
        numbers = [where[row.tobytes()] for row in draw(7, 12, seed)[0]]
        assert numbers == sorted(set(numbers))
        counts[numbers] += 1
    expected = 300 * 7 / len(where)
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_scores_of_images_are_those_of_numpy():
    rng = np.random.default_rng(3)
    bank, queries = rng.normal(size=(40, 6)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    labels = rng.integers(2, size=(40, 3))
    np.testing.assert_allclose(
        knn_scores(queries, bank, labels, 4, 0.2), by_hand(queries, bank, labels, 4, 0.2), atol=1e-5
    )


def settings(path, run, **changes):
    values = {
        'data': Task(str(path), labels='map', kind='segmentation', threads=1),
        'encoder': EncoderSettings(run, baselines=('prior',), modalities=(('s1',), ('s1', 's2')), batch=16),
        'intervals': Intervals('scene', 20),
        'bank': 200,
        'k': 8,
    }
    return DenseKnn(**values | changes)


def test_untrained_tokens_map_what_the_radar_shows(tmp_path, capsys):
    data = archive(tmp_path / 'maps')
    run = checkpoint(tmp_path / 'run', data, depth=1)
    assert run_dense_knn(settings(data, run), tmp_path) == 0
    rows = {(r.method, r.modalities, r.metric, r.averaging): r for r in rows_of(tmp_path, 'dense_knn')}
    for modalities in (('s1',), ('s1', 's2')):
        row = rows['dense_knn', modalities, 'iou', 'macro']
        assert row.estimate > 0.8 > 2 * rows['most frequent class', (), 'iou', 'macro'].estimate
        assert row.low <= row.estimate <= row.high and row.clusters == 4
    assert row.sweep['bank'] == (200.0,) and row.settled_on is None and not row.head_seeds
    assert 'iou_macro' in capsys.readouterr().out
    with pytest.raises(InputError, match='k=500 neighbours of 384 tokens'):
        run_dense_knn(settings(data, run, k=500, bank=1000), tmp_path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'k': 300}, 'k=300 neighbours in a bank of 200'),
        ({'encoder': EncoderSettings('run', ('bands',))}, "'bands' has no tokens"),
        ({'temperature': 0.0}, 'temperature=0.0 must be at least'),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        check(settings('x', 'run', **changes))
