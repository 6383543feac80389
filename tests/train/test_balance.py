"""Errors weighed by learned variances: where they settle, what they weigh, and nothing without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.train import balance
from fusmae_jax.train.objective import Objective, reconstruction
from fusmae_jax.train.step import make_step
from tests.support.helpers import CONTRACT, raw_batch, weights
from tests.support.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures('strict', 'one_device')
UNCERTAIN = cfg.Loss(balance='uncertainty', balance_rate=0.05)


def test_a_log_variance_settles_at_the_logarithm_of_its_error():
    errors = {'s1': 0.5, 's2': 0.02, 'dem': np.nan}
    metrics = {f'loss/{name}': jnp.float32(x) for name, x in errors.items()}
    extra = balance.start(dict.fromkeys(errors, 1.0))
    moved = jax.jit(functools.partial(balance.step, rate=0.05))
    for _ in range(400):
        extra = moved(extra, metrics)
    log_variances = extra[balance.EXTRA]
    for name in ('s1', 's2'):
        np.testing.assert_allclose(log_variances[name], np.log(errors[name]), rtol=1e-4)
        # Each sensor then counts by its relative error: the weighted one is 1.
        weight = balance.weights(log_variances)[f'weight/{name}']
        np.testing.assert_allclose(weight * errors[name], 1, rtol=1e-3)
    assert log_variances['dem'] == 0
    for _ in range(3):
        extra = moved(extra, metrics | {'loss/s1': jnp.float32(1e9)})
    assert extra[balance.EXTRA]['s1'] == balance.LIMIT


def test_the_loss_is_least_where_it_settles_and_forgives_what_is_not_there():
    means = {'s1': jnp.float32(0.5), 's2': jnp.float32(np.nan)}

    def loss(s, error):
        log_variances = {'s1': s, 's2': jnp.float32(0.3)}
        return balance.weighted(means | {'s1': error}, log_variances, {'s1': 2.0, 's2': 1.0})

    gradient = jax.grad(loss, argnums=(0, 1))(jnp.log(means['s1']), means['s1'])
    np.testing.assert_allclose(gradient, (0, 4), atol=1e-6)
    np.testing.assert_allclose(loss(jnp.float32(0), means['s1']), 2 * 0.5 + 0.3, rtol=1e-6)


def test_a_sensor_weighs_as_its_variance_says():
    """Gradients are linear in the weights; at the start they are those of the plain loss."""
    config = tiny_config(model=tiny_model(depth=1), loss=UNCERTAIN)
    params, batch, key = weights(config.model), jax.device_put(raw_batch(2)), jax.random.key(0)
    balanced = reconstruction(config, CONTRACT, None, jnp.float32)

    @jax.jit
    def gradient(s1, s2):
        extra = {balance.EXTRA: {'s1': s1, 's2': s2}}
        grads, (metrics, _) = jax.grad(balanced.loss, has_aux=True)(params, extra, batch, key)
        return grads, metrics

    half, none = jnp.float32(np.log(2)), jnp.float32(0)
    whole, metrics = gradient(none, none)
    parts = [gradient(half, none)[0], gradient(none, half)[0]]
    for a, *both in zip(*(jax.tree.leaves(tree) for tree in (whole, *parts))):
        np.testing.assert_allclose(sum(both), 1.5 * a, rtol=2e-4, atol=1e-5 * np.abs(a).max())
    np.testing.assert_allclose(metrics['loss'], metrics['loss/s1'] + metrics['loss/s2'], rtol=1e-6)
    assert metrics['weight/s1'] == metrics['weight/s2'] == 1
    plain = reconstruction(tiny_config(), CONTRACT, None, jnp.float32)
    assert plain.shapes()[1] == {} and plain.settle({}, metrics) == ({}, metrics)


def toy(rate):
    """One number that is pulled to the mean of two sensors' numbers, over as many as are valid."""

    def loss(params, extra, batch, key, weights=None):
        means = {}
        for name in ('s1', 's2'):
            valid = batch[name] > 0
            count = jnp.sum(valid, dtype=jnp.float32) if weights is None else weights[name]
            means[name] = jnp.sum(jnp.where(valid, (params['x'] - batch[name]) ** 2, 0)) / count
        metrics = {f'loss/{name}': mean for name, mean in means.items()}
        total = balance.weighted(means, extra[balance.EXTRA], {'s1': 1.0, 's2': 1.0})
        return total, (metrics | {'loss': total}, extra)

    def count(batch, key):
        return {name: jnp.sum(batch[name] > 0, dtype=jnp.float32) for name in ('s1', 's2')}

    def settle(extra, metrics):
        return balance.step(extra, metrics, rate), metrics

    return Objective(lambda key: ({'x': jnp.zeros(())}, balance.start({'s1': 1, 's2': 1})), loss, (), count,
                     settle=settle)  # fmt: skip


def test_micro_batches_move_the_variances_as_a_whole_batch_does():
    rng = np.random.default_rng(0)
    values = rng.normal(2, 2, (2, 8)).astype(np.float32)
    values[0, :3] = -1  # not valid, all in the first micro-batch
    batch = {'s1': jnp.asarray(values[0]), 's2': jnp.asarray(values[1])}
    objective, optimizer = toy(0.1), optax.sgd(0.1)
    states = []
    for accumulation in (1, 4):
        params, extra = objective.init(jax.random.key(0))
        state = {
            'params': params,
            'extra': extra,
            'opt_state': optimizer.init(params),
            'step': jnp.zeros((), jnp.int32),
            'skips': {'total': jnp.zeros((), jnp.int32), 'in_row': jnp.zeros((), jnp.int32)},
        }
        step = jax.jit(make_step(objective, optimizer, jnp.zeros_like, 0, accumulation))
        for _ in range(3):
            state, _ = step(state, batch)
        states.append((state['params'], state['extra'][balance.EXTRA]))
    for one, other in zip(*map(jax.tree.leaves, states)):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert states[0][1]['s1'] != 0


def test_one_sensor_alone_has_nothing_to_be_balanced_against():
    alone = tiny_model('none', modalities={'s1': cfg.Model().modalities['s1']})
    with pytest.raises(InputError, match=r"loss\.balance='uncertainty'"):
        tiny_config(model=alone, loss=UNCERTAIN)
