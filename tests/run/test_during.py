"""The held-out loss where sensors, sets or everything have nothing that could be measured."""

import math
import types

import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.run import validation as during
from tests.support.tiny import tiny_config


def validated(monkeypatch, losses, weights=None):
    """`losses` by prefix, as (squared error, weight) of s1 and s2."""
    parts = {
        name: cfg.MixturePart(path=name, val_split='val', weight=w) for name, w in (weights or {}).items()
    }
    config = tiny_config(data=cfg.Data(mixture=parts))

    def held(setup, source):
        return lambda params: {f'loss/{n}': during._quotient(*x) for n, x in zip(('s1', 's2'), source)}

    monkeypatch.setattr(during, '_Held', held)
    return during.Validation(types.SimpleNamespace(config=config), losses)({})


def test_of_two_sensors(monkeypatch):
    losses = validated(monkeypatch, {'': [(3.0, 2.0), (1.0, 4.0)]})
    assert losses == {'val/loss': 1.75, 'val/loss/s1': 1.5, 'val/loss/s2': 0.25}


@pytest.mark.parametrize('empty', ['s1', 's2', 'both'])
def test_a_sensor_without_a_valid_pixel_is_not_perfect(empty, monkeypatch, caplog):
    sums = [(0.0, 0.0) if empty in (name, 'both') else (1.0, 2.0) for name in ('s1', 's2')]
    losses = validated(monkeypatch, {'': sums})
    assert math.isnan(losses['val/loss'])
    assert [math.isnan(losses[f'val/loss/{name}']) for name in ('s1', 's2')] == [not w for _, w in sums]
    assert 'not measured' in caplog.text


def test_a_set_of_a_mixture_that_lacks_a_sensor_leaves_its_loss_to_the_others(monkeypatch):
    sums = {'a/': [(2.0, 1.0), (0.0, 0.0)], 'b/': [(4.0, 1.0), (3.0, 1.0)]}
    losses = validated(monkeypatch, sums, {'a': 3.0, 'b': 1.0})
    assert (losses['val/loss/s1'], losses['val/loss/s2'], losses['val/loss']) == (2.5, 3.0, 5.5)
    assert math.isnan(losses['val/a/loss']) and math.isnan(losses['val/a/loss/s2'])
    assert (losses['val/a/loss/s1'], losses['val/b/loss']) == (2.0, 7.0)


def test_predictions_that_are_not_finite_are_no_missing_measurement(monkeypatch):
    sums = {'a/': [(math.nan, 1.0), (1.0, 1.0)], 'b/': [(4.0, 1.0), (3.0, 1.0)]}
    assert validated(monkeypatch, sums, {'a': 1.0, 'b': 1.0})['val/loss'] == math.inf
