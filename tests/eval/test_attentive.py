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
from fusmae_jax.eval.attentive.config import AttentiveProbe
from fusmae_jax.eval.config import Intervals, Labels, Task
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
        found = jnp.argmax(heads.logits(head, values[half:], seen[half:]), axis=1)
        return jnp.mean(found == jnp.asarray(labels[half:]), dtype=jnp.float32)

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
