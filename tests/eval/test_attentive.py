"""The attentive probe: what its queries can do that a mean cannot, and the command over an archive."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.errors import InputError
from fusmae_jax.eval.attentive import head as heads
from fusmae_jax.eval.attentive.command import run_attentive_probe
from fusmae_jax.eval.attentive.config import AttentiveProbe, check
from fusmae_jax.eval.attentive.prober import make_prober
from fusmae_jax.eval.config import Intervals, Labels, Task
from fusmae_jax.eval.dense.features import Features, Reader
from fusmae_jax.eval.task import read_task
from tests.support.probe_fixtures import CLASSES, SIZES, checkpoint
from tests.support.result_rows import rows_of

pytestmark = pytest.mark.usefixtures('one_device')


def tokens(records=64, count=9, width=8, seed=0):
    rng = np.random.default_rng(seed)
    seen = rng.random((records, count)) < 0.7
    seen[:, 0] = True
    values = np.where(seen[..., None], rng.normal(size=(records, count, width)), 0).astype(np.float32)
    return jnp.asarray(values), jnp.asarray(seen)


def test_queries_of_zero_are_the_mean_of_what_was_seen(strict):
    values, seen = tokens()
    head = heads.init(jax.random.key(0), 3, 8, 2)
    mean = np.asarray(values).sum(1) / np.asarray(seen).sum(1, keepdims=True)
    expected = np.concatenate([mean] * 3, axis=1) @ np.asarray(head['linear']['kernel'])
    np.testing.assert_allclose(heads.logits(head, values, seen), expected, rtol=1e-5, atol=1e-6)
    weights = np.asarray(heads.attention(head['query'] + 1, values, seen))
    np.testing.assert_allclose(weights.sum(2), 1, rtol=1e-6)
    assert not weights[~np.broadcast_to(np.asarray(seen)[:, None], weights.shape)].any()
    nothing = heads.logits(head | {'query': head['query'] + 1}, values * 0, seen & False)
    np.testing.assert_array_equal(nothing, np.tile(head['linear']['bias'], (len(values), 1)))


def test_what_is_not_seen_has_no_gradient_and_order_does_not_count(strict):
    values, seen = tokens()
    head = heads.init(jax.random.key(0), 2, 8, 3) | {'query': jax.random.normal(jax.random.key(1), (2, 8))}
    logits = jax.jit(heads.logits)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(heads.logits(head, x, seen) ** 2))(values))
    assert not gradient[~np.asarray(seen)].any() and gradient[np.asarray(seen)].any(axis=1).all()
    swap = np.random.default_rng(3).permutation(9)
    np.testing.assert_allclose(
        logits(head, values[:, swap], seen[:, swap]), logits(head, values, seen), rtol=1e-4, atol=1e-6
    )


def test_one_token_among_many_is_found():
    """A mark in one token says where the class is; the same numbers elsewhere are noise."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(512, 16, 8)).astype(np.float32)
    labels, at = rng.integers(2, size=512), rng.integers(16, size=512)
    values[:, :, 0] = 0
    values[np.arange(512), at, 0] = 4
    values[np.arange(512), at, 1] = 2 * labels - 1
    values, seen = jnp.asarray(values), jnp.ones((512, 16), bool)
    half, targets = 256, jax.nn.one_hot(labels, 2)

    @functools.partial(jax.jit, static_argnames='moving')
    def accuracy(moving):
        head, adam = heads.init(jax.random.key(0), 1, 8, 2), optax.adam(0.05)

        def loss(head):
            logits = heads.logits(head, values[:half], seen[:half])
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets[:half]))

        def step(carry, _):
            grads = jax.grad(loss)(carry[0])
            grads |= {} if moving else {'query': jnp.zeros_like(grads['query'])}
            moves, state = adam.update(grads, carry[1])
            return (optax.apply_updates(carry[0], moves), state), None

        (head, _), _ = jax.lax.scan(step, (head, adam.init(head)), None, 200)
        classes = jnp.argmax(heads.logits(head, values[half:], seen[half:]), axis=1)
        return jnp.mean(classes == jnp.asarray(labels[half:]), dtype=jnp.float32)

    assert accuracy(moving=True) > 0.95 > 0.8 > accuracy(moving=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, depth=1)


def settings(path, run, **changes):
    values = {
        'data': Task(path=str(path), labels='labels', threads=1),
        'encoder': EncoderSettings(run, ('prior',), modalities=(('s1', 's2'),), batch=32),
        'labels': Labels(fractions=(1.0,)),
        'intervals': Intervals('scene', 20),
        'learning_rates': (3e-2,),
        'head_seeds': (0, 1),
        'batch_size': 32,
        'queries': 2,
    }
    return AttentiveProbe(**values | changes)


def test_rows_and_heads_of_both_sensors(data, run, tmp_path):
    assert run_attentive_probe(settings(data, run), tmp_path) == 0
    rows = {r.system: r for r in rows_of(tmp_path, 'attentive') if (r.metric, r.averaging) == ('ap', 'micro')}
    probe, prior = rows['pretrain'], rows['train prior']
    assert (probe.method, probe.pooled, probe.runs) == ('attentive', 'attention of 2 queries', 2)
    assert (probe.records, probe.classes, probe.clusters) == (SIZES['test'], CLASSES, 7)
    assert probe.estimate > prior.estimate + 0.1 and probe.low <= probe.estimate <= probe.high
    assert probe.sweep['queries'] == (2.0,) and probe.settled_on == 'val, ap_micro'
    (file,) = (tmp_path / 'heads').iterdir()
    with np.load(file) as stored:
        assert stored['query'].shape == (2, 2, 32) and stored['linear/kernel'].shape == (2, 2 * 32, 3)
        assert stored['query'].any()


@pytest.fixture(scope='module')
def numbers(data):
    """Settings of a probe of `waves` and `albedo`, and their task."""
    config = settings(data, 'unused', data=Task(str(data), labels='amounts', kind='regression', threads=1))
    config = dataclasses.replace(config, epochs=10.0, learning_rates=(0.3,), batch_size=15, head_seeds=(0,))
    check(config)
    return config, read_task(config.data)


def means_of_bands(params, batch, keys):
    """Tokens of bands alone, without an encoder: those of both sensors, one below the other."""
    radar = jnp.nan_to_num(batch['s1'].astype(jnp.float32)) / 10
    optical = batch['s2_10m'].astype(jnp.float32)[..., :2] / 1000
    maps = [x.reshape(len(x), 2, 12, 2, 12, 2).mean((2, 4)) for x in (radar, optical)]
    values = jnp.concatenate(maps, axis=1)
    return Features(values, jnp.ones(values.shape[:3], bool))


def predictions(config, task):
    """Scores of the test split, the stored head and the value on the validation split."""
    reader = Reader(means_of_bands, ('s1', 's2_10m'), {}, 2, 1, None, 'bands')
    settled, scores, stored = make_prober(config, task, reader)(np.arange(SIZES['train']))
    return scores, stored, settled.value


def test_heads_of_standardised_numbers_say_them_in_units(numbers):
    """Of targets a y + b every head says a p + b, and its stored last layer does so by itself."""
    config, task = numbers
    scores, stored, value = predictions(config, task)
    assert value > 0.4  # the mean R2 of both
    known = np.isfinite(task.test.labels)
    for head in scores.values():
        error = np.where(known, head - task.test.labels, 0)
        spread = np.nanvar(task.test.labels, axis=0) * known.sum(axis=0)
        assert (1 - (error**2).sum(axis=0) / spread > 0.2).all()
    a, b = np.float32([0.01, 4000]), np.float32([5, -300])
    moved = [x._replace(labels=a * x.labels + b) for x in (task.train, task.val, task.test)]
    moved = task._replace(train=moved[0], val=moved[1], test=moved[2])
    others, other, same = predictions(config, moved)
    assert same == pytest.approx(value, abs=1e-3)
    for seed, head in scores.items():
        np.testing.assert_allclose((others[seed] - b) / a, head, rtol=2e-3)
    kernels = [x.reshape(-1, 2) for x in (other['linear/kernel'] / a, stored['linear/kernel'])]
    apart = np.linalg.norm(kernels[0] - kernels[1], axis=0)
    assert (apart < 0.01 * np.linalg.norm(kernels[1], axis=0)).all()
    np.testing.assert_allclose(other['linear/bias'], stored['linear/bias'] * a + b, rtol=2e-3)


@pytest.mark.slow
def test_numbers_make_rows_with_units(data, run, numbers, tmp_path):
    config, _ = numbers
    encoder = dataclasses.replace(config.encoder, checkpoint=run)
    config = dataclasses.replace(config, encoder=encoder)
    assert run_attentive_probe(config, tmp_path) == 0
    rows = {(row.system, row.metric, row.label): row for row in rows_of(tmp_path, 'attentive')}
    explained, prior = (rows[name, 'r2', 'waves'] for name in ('pretrain', 'train prior'))
    assert explained.estimate > prior.estimate + 0.2 and explained.low <= explained.estimate <= explained.high
    assert (explained.settled_on, explained.classes) == ('val, r2_macro', ('waves', 'albedo'))
    units = [rows['pretrain', 'rmse', name].unit for name in ('waves', 'albedo')]
    assert units == ['m', None] and rows['pretrain', 'mae', 'waves'].estimate < 15


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'baselines': ('bands',)}, "'bands' has no tokens"),
        ({'modalities': (('s3',),)}, "'s3' is not in the model"),
        ({'queries': 0}, 'queries=0 must be at least 1'),
    ],
)
def test_what_cannot_be_is_one_error(changes, message, data, run, tmp_path):
    config = settings(data, run)
    encoder = {name: value for name, value in changes.items() if name != 'queries'}
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **encoder))
    with pytest.raises(InputError, match=message):
        run_attentive_probe(dataclasses.replace(config, queries=changes.get('queries', 2)), tmp_path)
