"""The numbers of a patch in the order that a TPU cuts them in: the same loss, the same gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.input.prepare import patchify, patchify_columns
from fusmae_jax.train import objective, patch_order
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.tiny import tiny_config

MODELS = {
    'xae': {},
    'stack': {'fusion': cfg.Fusion(encoder='stack')},
    'multimae': {'fusion': cfg.Fusion(encoder='none', decoder='multimae')},
}


def test_both_cuts_hold_the_same_numbers():
    image = jnp.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    rows = patchify(image, 4).reshape(2, 6, 4, 4, 3)
    columns = patchify_columns(image, 4).reshape(2, 6, 4, 3, 4)
    np.testing.assert_array_equal(columns, rows.transpose(0, 1, 3, 4, 2))
    assert not np.array_equal(columns.ravel(), rows.ravel())


@pytest.mark.parametrize('name', MODELS)
def test_loss_and_gradients_are_those_of_the_models_order(name, monkeypatch):
    config = tiny_config(masking=cfg.Masking(), loss=cfg.Loss(norm_pix=name == 'stack'))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **MODELS[name]))
    goal = objective.reconstruction(config, CONTRACT, cfg.Augment(), jnp.float32)
    params, extra = goal.init(jax.random.key(0))
    # Biases begin at 0, and a wrong order of them would not be seen.
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    batch = {k: jnp.asarray(x) for k, x in raw_batch(4).items() if k in (*goal.fields, objective.POSITION)}

    def results(columns):
        monkeypatch.setattr(patch_order, 'columns_first', lambda: columns)
        run = jax.jit(jax.value_and_grad(lambda p: goal.loss(p, extra, batch, jax.random.key(1))[0]))
        return run(params)

    (loss, gradients), (same, those) = results(False), results(True)
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), those, gradients)


def test_parameters_of_another_order_are_seen(monkeypatch):
    """What the test above would miss if it could not fail."""
    config = tiny_config(masking=cfg.Masking())
    goal = objective.reconstruction(config, CONTRACT, cfg.Augment(), jnp.float32)
    params, extra = goal.init(jax.random.key(0))
    batch = {k: jnp.asarray(x) for k, x in raw_batch(4).items() if k in (*goal.fields, objective.POSITION)}

    def loss():
        return jax.jit(lambda p: goal.loss(p, extra, batch, jax.random.key(1))[0])(params)

    plain = loss()
    monkeypatch.setattr(patch_order, 'columns_first', lambda: True)
    monkeypatch.setattr(patch_order, 'for_columns', lambda params, model: params)
    assert abs(loss() - plain) > 1e-4
