"""Calibration of maps: temperature and error over labelled pixels, against those of single records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from fusmae_jax.eval import calibration, metrics
from fusmae_jax.eval.dense.calibration import PixelReliability, drawn_pixels, pixel_sums, temperature
from fusmae_jax.input.label_maps import IGNORE

pytestmark = pytest.mark.usefixtures('one_device')
CLASSES, BINS = 3, 10


def maps(records=6, size=(5, 7), seed=0):
    """Logits that are three times too sure, and labels, a third of them missing."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (records, *size, CLASSES)).astype(np.float32)
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = IGNORE
    return 3 * logits, labels


def measured(logits, labels, t):
    sums, surprise = jax.jit(pixel_sums, static_argnums=3)(logits, labels, jnp.float32(t), BINS)
    return PixelReliability(np.asarray(sums, np.float64), np.asarray(surprise, np.float64))


@pytest.mark.parametrize('t', [1.0, 2.5])
def test_the_error_is_that_of_labelled_pixels_as_single_records(t):
    logits, labels = maps()
    there = labels != IGNORE
    hot = np.eye(CLASSES)[labels[there]]
    wanted = metrics.values(calibration.reliability(logits[there], hot, 'single_label', t, BINS))
    of_maps = metrics.values(measured(logits, labels, t))
    assert of_maps == pytest.approx(wanted, abs=2e-6, nan_ok=True) and of_maps['ece'] > 0.02


def test_a_scene_that_is_drawn_twice_counts_twice():
    logits, labels = maps()
    clusters = np.array([0, 0, 1, 1, 2, 2])
    weighted = measured(logits, labels, 1.0).grouped(clusters, 3)
    rows = np.array([0, 1, 0, 1, 4, 5])
    again = metrics.values(measured(logits[rows], labels[rows], 1.0))
    assert weighted(np.array([2, 0, 1])) == pytest.approx(again, abs=1e-9, nan_ok=True)
    assert np.isnan(weighted(np.zeros(3, int))['ece'])


def test_the_temperature_is_of_labelled_pixels_and_of_the_least_surprise():
    logits, labels = maps(40)
    draw = jax.jit(drawn_pixels, static_argnums=3)
    best = temperature(jax.device_get(draw(logits, labels, jnp.arange(40), 35)))
    there = labels != IGNORE
    x, y = logits[there].astype(np.float64), labels[there]
    surprise = [
        -log_softmax(x / t, axis=1)[np.arange(len(y)), y].mean() for t in (best, 0.95 * best, best / 0.95)
    ]
    assert surprise[0] < min(surprise[1:]) and best == pytest.approx(3, rel=0.15)
    few, some = jax.device_get(draw(logits, labels, jnp.arange(40), 9))
    assert few.shape == (40, 9, CLASSES) and (some != IGNORE).all()
    for record in range(40):  # each of them stands in its record, once
        pixels = {
            (*a.tolist(), b) for a, b in zip(logits[record][there[record]], labels[record][there[record]])
        }
        drawn = [(*a.tolist(), b) for a, b in zip(few[record], some[record])]
        assert set(drawn) <= pixels and len(set(drawn)) == 9
    # What is drawn of a record does not depend on its batch.
    np.testing.assert_array_equal(draw(logits[7:9], labels[7:9], jnp.arange(7, 9), 9)[0], few[7:9])
