"""Stacked bands (SatViT): one token for all sensors, one mask, an error for each sensor."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import resolve
from fusmae_jax.input.prepare import Patches
from fusmae_jax.models import fusmae
from fusmae_jax.models.encoder import split_stack, stack_patches
from fusmae_jax.train import losses
from fusmae_jax.train.objective import Masked, error_sums
from tests.support.helpers import random_order, random_patches
from tests.support.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures('strict')
K = 4


@functools.cache
def make():
    model = resolve(tiny_model('stack', 'none', depth=2, scan=False))
    graphdef, rng = fusmae.graph(model), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: fusmae.init_params(model, key), jax.random.key(0))
    params = jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype('f'), shapes)
    encode = jax.jit(lambda params, patches: nnx.merge(graphdef, params).encode(patches))
    forward = jax.jit(lambda params, patches, order: nnx.merge(graphdef, params)(patches, order, K)[0])
    return model, params, encode, forward


def patches_and_order():
    model = make()[0]
    return random_patches(model, 2), dict.fromkeys(('s1', 's2'), random_order(model, 2)['s1'])


def test_one_projection_and_one_decoder_for_all_bands():
    model, params, _, forward = make()
    assert params['encoder']['patch']['stack']['kernel'].shape == (64 * 14, 32)
    assert list(params['decoders']) == ['stack']
    patches, order = patches_and_order()
    shapes = {name: x.shape for name, x in forward(params, patches, order).items()}
    assert shapes == {'s1': (2, 12, 128), 's2': (2, 12, 768)}
    stacked, there = stack_patches(model, patches)
    assert stacked.shape == (2, 16, 896) and there.all()
    for name, part in split_stack(model, stacked).items():
        np.testing.assert_array_equal(part, patches[name].values)


@pytest.mark.parametrize('given', ['s1', 's2'])
def test_a_sensor_that_is_not_there_is_its_mean(given):
    _, params, encode, _ = make()
    patches, _ = patches_and_order()
    other = 's2' if given == 's1' else 's1'
    alone = encode(params, {given: patches[given]})
    lost = Patches(patches[other].values, jnp.zeros_like(patches[other].valid))
    mean = Patches(jnp.zeros_like(lost.values), jnp.ones_like(lost.valid))
    assert list(alone.tokens) == [given]
    for partner in (lost, mean):
        both = encode(params, patches | {other: partner})
        np.testing.assert_array_equal(both.tokens['s1'], both.tokens['s2'])
        for a, b in (
            (both.tokens[given], alone.tokens[given]),
            (both.cls, alone.cls),
            (both.pooled, alone.pooled),
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert np.abs(alone.pooled - encode(params, patches).pooled).max() > 1e-3


def test_a_patch_counts_if_one_sensor_has_it():
    """s1 lacks the first three patches; s2 others in the first sample, and the same in the second."""
    _, params, encode, _ = make()
    patches, _ = patches_and_order()
    at, row = np.arange(16)[None, :, None], np.arange(2)[:, None, None]
    lost = {'s1': (at < 3) & (row >= 0), 's2': (at // 3 == 1 - row)}

    def run(fill):
        given = {
            n: Patches(jnp.where(lost[n], jnp.float32(fill), p.values), p.valid & ~lost[n])
            for n, p in patches.items()
        }
        return encode(params, given)

    one, two = run(0), run(9)
    np.testing.assert_array_equal(one.pooled, two.pooled)
    np.testing.assert_array_equal(one.cls, two.cls)
    np.testing.assert_allclose(one.pooled[0], np.mean(one.tokens['s1'][0], axis=0), atol=1e-6)
    np.testing.assert_allclose(one.pooled[1], np.mean(one.tokens['s1'][1, 3:], axis=0), atol=1e-6)


def test_all_sensors_of_a_place_are_hidden_together():
    _, params, _, forward = make()
    patches, order = patches_and_order()

    def total(values):
        given = {n: Patches(v, patches[n].valid) for n, v in values.items()}
        return sum(jnp.sum(p**2) for p in forward(params, given, order).values())

    gradient = jax.jit(jax.grad(total))({n: p.values for n, p in patches.items()})
    seen = np.asarray(jnp.argsort(order['s1'], axis=1) < K)
    for g in gradient.values():
        np.testing.assert_array_equal(np.abs(np.asarray(g)).max(axis=2) > 0, seen)


def test_the_loss_of_satvit():
    """Weights by bands give the mean over all numbers; norm_pix is over the bands of all sensors."""
    weights = {'s1': 2 / 14, 's2': 12 / 14}
    model = make()[0]
    modalities = {n: dataclasses.replace(m, loss_weight=weights[n]) for n, m in model.modalities.items()}
    config = tiny_config(
        model=dataclasses.replace(model, modalities=modalities),
        masking=cfg.Masking('consistent'),
        loss=cfg.Loss(norm_pix=True),
    )
    patches, order = patches_and_order()
    predictions = {
        n: jax.random.normal(jax.random.key(1), (2, 12, p.values.shape[2])) for n, p in patches.items()
    }
    sums, _ = error_sums(config, Masked(patches, order, K), predictions)
    total, _ = losses.combine(sums, weights)
    hidden = np.asarray(order['s1'])[:, K:, None]
    both = np.concatenate(
        [np.take_along_axis(np.asarray(p.values), hidden, 1) for p in patches.values()], axis=2
    )
    scaled = (both - both.mean(-1, keepdims=True)) / np.sqrt(both.var(-1, ddof=1, keepdims=True) + 1e-6)
    guess = np.concatenate([np.asarray(p) for p in predictions.values()], axis=2)
    assert float(total) == pytest.approx(((guess - scaled) ** 2).mean(), rel=1e-5)
