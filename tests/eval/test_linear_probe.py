"""The vmapped sweep of heads and nearest neighbours, against their definitions; what settles a head."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.eval import linear_probe
from fusmae_jax.eval.knn import knn_means, knn_scores
from fusmae_jax.eval.linear_probe import Heads, Recipe

RATES, DECAYS, SEEDS = (1e-3, 1e-2), (0.0, 0.1), (0, 7)


def land_cover(records, width=24, classes=5, seed=0):
    """Features and multi-hot labels that a linear head can learn in part."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(0, 1.2, (width, classes)) / np.sqrt(width)
    features = rng.normal(0, 1, (records, width)).astype(np.float32)
    noise = rng.logistic(0, 0.5, (records, classes))
    return features, (features @ truth * 2 - 0.7 + noise > 0).astype(np.uint8)


@functools.partial(jax.jit, static_argnames='l2')
def one_step(head, state, x, y, rate, decay, l2):
    def objective(head):
        z = x @ head['kernel'] + head['bias']
        loss = jnp.mean(jnp.logaddexp(0, z) - y * z)
        return loss + (0.5 * decay * jnp.sum(head['kernel'] ** 2) if l2 else 0)

    mask = {'kernel': True, 'bias': False}
    optimizer = optax.adamw(rate, b1=0.9, b2=0.999, weight_decay=0.0 if l2 else decay, mask=mask)
    state = optimizer.init(head) if state is None else state
    updates, state = optimizer.update(jax.grad(objective)(head), state, head)
    return optax.apply_updates(head, updates), state


def by_hand(features, targets, order, rate, decay, seed, l2):
    """The same head in a plain loop with optax's own AdamW."""
    schedule = optax.cosine_decay_schedule(rate, len(order))
    shape = (features.shape[1], targets.shape[1])
    head = {'kernel': 0.01 * jax.random.normal(jax.random.key(seed), shape), 'bias': jnp.zeros(shape[1])}
    state = None
    for number, ids in enumerate(order):
        batch = features[ids], targets[ids].astype(np.float32)
        head, state = one_step(head, state, *batch, schedule(number), decay, l2)
    return head


@pytest.mark.parametrize('decay', ['decoupled', 'l2'])
def test_every_head_of_a_sweep_equals_one_trained_alone(decay):
    features, targets = land_cover(300)
    recipe = Recipe('multi_label', decay)
    swept = linear_probe.points(RATES, DECAYS, SEEDS)
    order = linear_probe.batch_order(300, 32, 6)
    heads = linear_probe.train(features, targets, order, swept, recipe)
    assert heads.kernel.shape == (24, 8, 5) and heads.bias.shape == (8, 5)
    for point, (rate, weight, seed) in enumerate(zip(*swept)):
        alone = by_hand(features, targets, order, rate, weight, int(seed), decay == 'l2')
        np.testing.assert_allclose(heads.kernel[:, point], alone['kernel'], atol=1e-5)
        np.testing.assert_allclose(heads.bias[point], alone['bias'], atol=1e-5)
    # They are different heads.
    kernels = np.moveaxis(np.asarray(heads.kernel), 1, 0).reshape(8, -1)
    assert min(np.abs(kernels[i] - kernels[j]).max() for i in range(8) for j in range(i)) > 5e-5


@pytest.mark.parametrize('l2', [0.003, 0.03])
def test_at_equal_l2_it_is_the_logistic_regression_of_scikit_learn(l2):
    features, targets = land_cover(500)
    test, truth = land_cover(400, seed=1)
    swept = linear_probe.points((0.05,), (l2,), (0,))
    order = linear_probe.batch_order(500, 500, 600)
    heads = linear_probe.train(features, targets, order, swept, Recipe('multi_label', 'l2'))
    ours = linear_probe.scores(heads, test, 0)
    # Ours is the mean over classes too, so one class has the penalty times their number.
    strength = 1 / (len(features) * targets.shape[1] * l2)
    models = [LogisticRegression(C=strength, tol=1e-8).fit(features, y) for y in targets.T]
    theirs = np.stack([model.decision_function(test) for model in models], axis=1)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    for averaging in ('micro', 'macro'):
        reached, wanted = (average_precision_score(truth, x, average=averaging) for x in (ours, theirs))
        assert abs(reached - wanted) < 5e-4 and wanted > 0.6


def test_the_penalty_matters_to_that_comparison():
    features, targets = land_cover(500)
    order = linear_probe.batch_order(500, 500, 600)
    swept = linear_probe.points((0.05,), (0.003, 0.03), (0,))
    heads = linear_probe.train(features, targets, order, swept, Recipe('multi_label', 'l2'))
    test, _ = land_cover(400, seed=1)
    assert np.abs(linear_probe.scores(heads, test, 0) - linear_probe.scores(heads, test, 1)).max() > 0.1


def test_batches_show_every_record_once_an_epoch_and_are_always_full():
    order = linear_probe.batch_order(100, 32, 8)
    assert order.shape == (25, 32) and order.dtype == np.int32
    stream = order.ravel().reshape(8, 100)
    assert (np.sort(stream, axis=1) == np.arange(100)).all()
    assert len({tuple(epoch) for epoch in stream.tolist()}) == 8
    np.testing.assert_array_equal(order, linear_probe.batch_order(100, 32, 8))
    assert linear_probe.batch_order(6, 128, 20).shape == (20, 6)
    assert linear_probe.batch_order(1000, 128, 0.01).shape == (1, 128)


def test_batch_norm_is_that_of_the_training_features():
    features = np.random.default_rng(0).normal(5, [1, 100, 0.01], (400, 3)).astype(np.float32)
    features = np.concatenate([features, np.full((400, 1), 3, np.float32)], axis=1)
    scaled = linear_probe.batch_norm(features)(features)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled[:, :2].std(axis=0), 1, atol=1e-4)
    # 1e-6 is added to the variance, so what does not vary stays 0.
    np.testing.assert_allclose(scaled[:, 2].std(), 0.01 / np.sqrt(0.01**2 + 1e-6), rtol=0.05)
    assert (scaled[:, 3] == 0).all()


def test_losses_by_hand(strict):
    z = jnp.array([[[2.0, -1.0, 0.5]]])
    y = jnp.array([[1.0, 0.0, 0.0]])
    sigmoid = 1 / (1 + np.exp(-np.asarray(z[0, 0])))
    soft_margin = -(np.log(sigmoid[0]) + np.log(1 - sigmoid[1]) + np.log(1 - sigmoid[2])) / 3
    assert float(linear_probe.loss(z, y, Recipe())[0]) == pytest.approx(soft_margin, rel=1e-6)
    log_softmax = np.asarray(z[0, 0]) - np.log(np.exp(np.asarray(z[0, 0])).sum())
    smooth = np.array([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    loss = linear_probe.loss(z, y, Recipe('single_label', label_smoothing=0.1))
    assert float(loss[0]) == pytest.approx(-smooth @ log_softmax, rel=1e-6)


def test_the_compiled_sweep_holds_no_scatter():
    features, targets = land_cover(64)
    swept = linear_probe.points(RATES, DECAYS, SEEDS)
    order = linear_probe.batch_order(64, 16, 2)
    for recipe in (Recipe(), Recipe('single_label', label_smoothing=0.1)):
        lowered = linear_probe._train.lower(features, targets.astype(np.float32), order, swept, recipe)
        assert 'scatter' not in lowered.as_text()


def fixed_heads():
    """Two settings x two seeds; the scores of head i are all i."""
    swept = linear_probe.points((0.1, 0.2), (0.0,), (3, 4))
    return Heads(jnp.zeros((1, 4, 1)), jnp.arange(4.0)[:, None]), swept


def test_a_setting_is_settled_by_the_mean_over_its_seeds():
    heads, swept = fixed_heads()
    values = {0: 0.1, 1: 0.9, 2: 0.6, 3: 0.6}
    settled = linear_probe.settle(heads, swept, np.ones((2, 1), np.float32), lambda z: values[int(z[0, 0])])
    assert (settled.learning_rate, settled.weight_decay) == (0.2, 0.0)
    assert settled.heads == {3: 2, 4: 3} and settled.value == pytest.approx(0.6) and settled.at_edge
    tied = linear_probe.settle(heads, swept, np.ones((2, 1), np.float32), lambda z: 0.5)
    assert tied.learning_rate == 0.1 and tied.heads == {3: 0, 4: 1}


def test_a_metric_that_is_not_defined_settles_nothing():
    heads, swept = fixed_heads()
    with pytest.raises(InputError, match='has the split no positive labels'):
        linear_probe.settle(heads, swept, np.ones((2, 1), np.float32), lambda z: float('nan'))


def test_a_head_that_diverged_is_out_and_the_others_are_settled():
    """Of the four heads of two rates the last is not finite: its rate is out, whatever the other seed."""
    heads, swept = fixed_heads()
    heads = heads._replace(bias=heads.bias.at[3].set(jnp.nan))
    ones = np.ones((2, 1), np.float32)
    settled = linear_probe.settle(heads, swept, ones, lambda z: float(z[0, 0]))
    assert settled.learning_rate == 0.1 and settled.heads == {3: 0, 4: 1} and settled.value == 0.5
    heads = heads._replace(bias=jnp.full((4, 1), jnp.inf))
    with pytest.raises(DivergedError, match=r'every learning rate of \(0\.1, 0\.2\); try lower'):
        linear_probe.settle(heads, swept, ones, lambda z: float(z[0, 0]))


def test_a_sweep_with_an_absurd_rate_ends_well():
    """Trained, not made up: the head at 1e38 has weights that no float32 holds."""
    x, y = land_cover(40)
    swept = linear_probe.points((1e-2, 1e38), (0.0,), (0,))
    heads = linear_probe.train(x, y, linear_probe.batch_order(40, 8, 2), swept, linear_probe.Recipe())
    assert not np.isfinite(linear_probe.scores(heads, x, 1)).all()

    def judge(logits):  # raises, as ours does, for a number that is none
        return float(average_precision_score(y.ravel(), logits.ravel()))

    settled = linear_probe.settle(heads, swept, x, judge)
    assert settled.learning_rate == 1e-2 and settled.value == judge(linear_probe.scores(heads, x, 0))


@pytest.mark.slow
def test_a_sweep_of_64_costs_at_most_half_of_64_single_runs():
    features, targets = land_cover(2700, width=768, classes=19)
    swept = linear_probe.points(tuple(np.geomspace(1e-4, 1e-1, 8)), (0.0, 0.01), (0, 1, 2, 3))
    order = linear_probe.batch_order(2700, 128, 4)
    one = linear_probe.Points(*(x[:1] for x in swept))

    def seconds(points, times):
        start = time.perf_counter()
        for _ in range(times):
            jax.block_until_ready(linear_probe.train(features, targets, order, points, Recipe()))
        return time.perf_counter() - start

    jax.config.update('jax_disable_most_optimizations', False)
    try:
        linear_probe._train.clear_cache()
        seconds(swept, 1), seconds(one, 1)  # each is compiled once
        together, alone = (min(seconds(*run) for _ in range(3)) for run in ((swept, 1), (one, 64)))
        assert linear_probe._train._cache_size() == 2
    finally:
        jax.config.update('jax_disable_most_optimizations', True)
        linear_probe._train.clear_cache()
    print(f'64 heads together {together:.2f} s, one by one {alone:.2f} s')
    assert together < 0.5 * alone


def expected(features, bank, labels, k, temperature):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, bank)]
    result = []
    for row in unit[0] @ unit[1].T:
        nearest = np.argsort(-row, kind='stable')[:k]
        weights = np.exp(row[nearest] / temperature)
        result.append(weights @ labels[nearest] / weights.sum())
    return np.array(result)


@pytest.fixture(scope='module')
def features_and_bank():
    rng = np.random.default_rng(0)
    bank, features = rng.normal(1, 1, (90, 12)), rng.normal(1, 1, (37, 12))
    return features.astype(np.float32), bank.astype(np.float32), (rng.random((90, 5)) < 0.3).astype(np.uint8)


@pytest.mark.parametrize(('k', 'temperature'), [(20, 0.07), (1, 0.07), (90, 1.0)])
def test_equals_the_definition_in_float64(features_and_bank, k, temperature):
    features, bank, labels = features_and_bank
    scores = knn_scores(features, bank, labels, k, temperature, queries=16)
    wide = expected(features.astype(np.float64), bank.astype(np.float64), labels, k, temperature)
    assert scores.shape == (37, 5) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, wide, atol=2e-6)


def test_neither_the_batch_nor_the_length_of_features_matters(features_and_bank):
    features, bank, labels = features_and_bank
    whole = knn_scores(features, bank, labels, queries=64)
    np.testing.assert_allclose(knn_scores(features, bank, labels, queries=5), whole, atol=1e-6)
    np.testing.assert_allclose(knn_scores(features * 1e4, bank * 1e-4, labels), whole, atol=1e-5)


def test_two_neighbours_by_hand():
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    scores = knn_scores(np.array([[3.0, 0.0]], np.float32), bank, labels, k=2, temperature=0.5)
    near = np.exp(1 / 0.5) / (np.exp(1 / 0.5) + 1)
    np.testing.assert_allclose(scores, [[near, 1 - near]], atol=1e-6)


def test_a_record_without_features_is_equally_far_from_all(features_and_bank):
    _, bank, labels = features_and_bank
    scores = knn_scores(np.zeros((1, 12), np.float32), bank, labels, k=10)
    np.testing.assert_allclose(scores[0], labels[:10].mean(axis=0), atol=1e-6)


def test_more_neighbours_than_records_is_an_error(features_and_bank):
    features, bank, labels = features_and_bank
    with pytest.raises(InputError, match='k=20 neighbours of 19 training records'):
        knn_scores(features, bank[:19], labels[:19])


def test_means_of_neighbours_that_lack_a_number_leave_them_out(features_and_bank):
    """Against the definition in float64, target by target."""
    features, bank, _ = features_and_bank
    rng = np.random.default_rng(5)
    targets = rng.normal([50, -3], [20, 0.1], (90, 2))
    targets[rng.random(targets.shape) < 0.6] = np.nan
    means = knn_means(features, bank, targets.astype(np.float32), k=6, temperature=0.2, queries=16)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.astype(np.float64), bank)]
    similarity = unit[0] @ unit[1].T
    expected = np.full((37, 2), np.nan)
    for i, row in enumerate(similarity):
        near = np.argsort(-row, kind='stable')[:6]
        for c in range(2):
            known = near[np.isfinite(targets[near, c])]
            if len(known):
                expected[i, c] = np.average(targets[known, c], weights=np.exp(row[known] / 0.2))
    assert np.isnan(expected).any() and np.isfinite(expected).any()
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    # Where nothing is missing it is the vote, of whatever is voted for.
    whole = np.where(np.isfinite(targets), targets, 7).astype(np.float32)
    np.testing.assert_allclose(knn_means(features, bank, whole), knn_scores(features, bank, whole), rtol=1e-5)


def test_numbers_that_follow_the_direction_are_met_by_neighbours():
    """Of records at every degree the weights of the nearest are symmetric: their mean is exact."""
    degrees = np.arange(181.0)
    angles = np.deg2rad(degrees)
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    targets = np.stack([3 * degrees, np.where(degrees % 3 == 0, degrees, np.nan)], axis=1)
    asked = np.array([30, 60, 99])
    means = knn_means(5 * bank[asked], bank, targets.astype(np.float32), k=9, temperature=0.01)
    np.testing.assert_allclose(means, np.stack([3 * asked, asked], axis=1), rtol=1e-3)


def test_a_far_neighbour_that_alone_has_the_number_gives_it_whole():
    """However cold the weights are; and where none has it there is no mean, not 0."""
    bank = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    targets = np.float32([[np.nan, np.nan], [np.nan, np.nan], [42, np.nan], [7, 1]])
    means = knn_means(bank[:1], bank, targets, k=3, temperature=1e-6)
    np.testing.assert_array_equal(means, [[42, np.nan]])
    with pytest.raises(InputError, match='k=5 neighbours of 4 training records'):
        knn_means(bank[:1], bank, targets, k=5)
