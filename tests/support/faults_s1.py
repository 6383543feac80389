"""Faults of Sentinel-1; see `faults.py`."""

from collections.abc import Callable

import numpy as np

from fusmae_jax.shipped.data.doctor.evidence import Declared, Evidence
from tests.support.faults import (
    SIDE,
    Images,
    along_border,
    border,
    each,
    fault,
    in_all,
    normalised,
    own_range,
    whole,
    with_split,
)


def _stored(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Images]:
    """Every band as `change` of its decibels, whatever the strength."""
    return each(lambda x, strength, rng: change(x.astype(np.float32)))


def _power(decibels: np.ndarray) -> np.ndarray:
    return 10 ** (decibels / 10)


def _numbers(decibels: np.ndarray) -> np.ndarray:
    """Digital numbers of a GRD product: amplitude times a calibration constant near 470."""
    return np.rint(np.sqrt(_power(decibels)) * 470).astype(np.uint16)


def _rounded_to_integers(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.int16)


def _eight_bit(decibels: np.ndarray) -> np.ndarray:
    return np.clip((decibels + 30) / 30 * 255, 0, 255).astype(np.uint8)


def _rounded(x: np.ndarray, step: float, rng: np.random.Generator) -> np.ndarray:
    return (np.rint(x.astype(np.float32) / step) * step).astype(np.float32)


def _swapped(image: Images, about: Declared, strength: float, rng: np.random.Generator) -> Images:
    return {'VV': image['VH'], 'VH': image['VV']}


def _doubled(image: Images, about: Declared, strength: float, rng: np.random.Generator) -> Images:
    return {'VV': image['VV'], 'VH': image['VV']}


def _infinite(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    result = x.copy()
    result[rng.random(x.shape) < share] = -np.inf
    return result


def _noise(x: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """What is left where a scene ends: next to no power."""
    result, columns = x.copy(), max(1, round(width * x.shape[1]))
    result[:, :columns] = rng.normal(-45, 4, (x.shape[0], columns))
    return result


def _orbits(evidence: Evidence, gap: float, rng: np.random.Generator) -> Evidence:
    """The share of descending passes of `test` lies `gap` above that of `train`, 45 %."""
    split = evidence.splits['test']
    hours = np.where(rng.random(split.records) < 0.45 + gap, 6.0, 18.0)
    return with_split(evidence, 'test', s1_hours=hours)


S1 = (
    whole('linear power for dB', ('s1.unit',), _stored(_power)),
    whole('amplitude for dB', ('s1.unit',), _stored(lambda x: np.sqrt(_power(x)))),
    whole('digital numbers for dB', ('s1.unit',), _stored(_numbers)),
    whole('dB times 100 in int16', ('s1.unit',), _stored(lambda x: _rounded_to_integers(x * 100))),
    whole('dB cast to integers', ('s1.integer',), _stored(lambda x: np.trunc(x).astype(np.int32))),
    in_all('dB rounded to a step', 's1.integer', _rounded, 'dB', (0.5, 0.2), (0.3, 0.12)),
    whole('dB wrapped into uint16', ('s1.unit',), _stored(lambda x: _rounded_to_integers(x).view(np.uint16))),
    whole(
        'dB times 100 wrapped into uint16',
        ('s1.unit',),
        _stored(lambda x: _rounded_to_integers(x * 100).view(np.uint16)),
    ),
    whole('dB scaled to 8 bits', ('s1.unit',), _stored(_eight_bit)),
    whole(
        'natural logarithm for dB', ('s1.level', 's1.ratio', 's1.unit'), _stored(lambda x: np.log(_power(x)))
    ),
    whole('S1 normalised before', ('s1.unit',), each(normalised)),
    whole('S1 scaled to its own range', ('s1.unit',), each(own_range)),
    whole('VV and VH swapped', ('s1.order',), _swapped),
    whole('VV stored twice', ('s1.duplicate',), _doubled),
    along_border('NaN along a border of S1', 's1.nan', lambda x, w, rng: border(x, w, np.nan)),
    in_all('infinite values in S1', 's1.inf', _infinite, 'of the pixels', (0.01, 0.0001), (0.007, 0.00005)),
    along_border('-9999 along a border of S1', 's1.fill', lambda x, w, rng: border(x, w, -9999)),
    along_border('zeros along a border of S1', 's1.zero', lambda x, w, rng: border(x, w, 0)),
    in_all('noisy border of S1', 's1.border', _noise, SIDE, (0.1, 0.02), (0.08, 0.012)),
    fault(
        'orbit mix differs between splits', 's1.orbit', _orbits, 'more descending', (0.4, 0.18), (0.35, 0.15)
    ),
)
