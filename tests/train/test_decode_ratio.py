"""Decoding a share of the masked patches: which they are, what the loss is then of, and what it saves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.models.masking import num_decoded
from fusmae_jax.train.flops import forward, train_flops_per_image
from fusmae_jax.train.objective import error_sums, masked_inputs, reconstructions
from tests.support.helpers import CONTRACT, raw_batch, weights
from tests.support.tiny import smallest_model, tiny_config

# Of 16 patches 4 are visible and 12 masked, of which a quarter is decoded.
QUARTER = cfg.Masking(decode_ratio=0.25)


FLIPS = cfg.Augment(crop=False)


def one_sensor(masking, **changes):
    return tiny_config(model=dataclasses.replace(smallest_model(), **changes), masking=masking)


def masked(config, augment):
    inputs = jax.jit(masked_inputs(config, CONTRACT, augment))
    return inputs(batch(), jax.random.key(0))


def batch():
    return {name: jnp.asarray(x) for name, x in raw_batch(8).items() if name in ('s1', POSITION)}


def test_those_that_are_left_are_the_first_of_all_and_visible_ones_stay():
    some, all_of_them = (masked(one_sensor(masking), FLIPS) for masking in (QUARTER, cfg.Masking()))
    for name, order in all_of_them.order.items():
        np.testing.assert_array_equal(some.order[name], order[:, : 4 + 3])
    # The rest of an order is in random order, so that the first of them are a random choice.
    first = np.concatenate([np.asarray(x[:, 4:7]).ravel() for x in some.order.values()])
    assert len(set(first)) > 12


def test_a_loss_to_compare_is_of_every_masked_patch():
    without, full = (masked(one_sensor(m), None) for m in (QUARTER, cfg.Masking()))
    jax.tree.map(np.testing.assert_array_equal, without, full)


def test_the_predictions_that_are_made_are_the_same():
    """A decoder of depth 0 does not let tokens see each other, so what is left out changes nothing."""
    decoder = cfg.Decoder(width=16, depth=0, heads=2)
    results = []
    for masking in (QUARTER, cfg.Masking()):
        config = one_sensor(masking, decoder=decoder)
        results.append(predictions_and_sums(config))
    (some, few), (every, many) = results
    for name in some:
        assert some[name].shape[1] == 3
        np.testing.assert_allclose(some[name], every[name][:, :3], atol=1e-5)
        assert few[name][1] == pytest.approx(float(many[name][1]) / 4)


def predictions_and_sums(config):
    forward = reconstructions(config, CONTRACT, FLIPS, jnp.float32)

    @jax.jit
    def run(params):
        inputs, predictions = forward(params, batch(), jax.random.key(0))
        return predictions, error_sums(config, inputs, predictions)[0]

    return run(weights(config.model, 0))


def test_it_saves_what_decoders_cost():
    config, whole = tiny_config(masking=QUARTER), tiny_config()
    model, ratio = config.model, config.masking
    assert num_decoded(16, ratio) == 3 and num_decoded(16, cfg.Masking()) == 12
    assert num_decoded(16, cfg.Masking(decode_ratio=0.01)) == 1
    saved = forward(model, 4)['decoders'] - forward(model, 4, masked=3)['decoders']
    assert saved > 0
    difference = train_flops_per_image(whole) - train_flops_per_image(config)
    assert difference == pytest.approx(3 * saved)


def test_masks_whose_counts_vary_are_refused():
    with pytest.raises(InputError, match=r"decode_ratio=0.5 needs fixed counts.*'dirichlet'"):
        tiny_config(masking=cfg.Masking('dirichlet', decode_ratio=0.5))
