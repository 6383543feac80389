"""Faults of Sentinel-1; see `faults.py`."""

import numpy as np

from data.doctor.evidence import Declared, Evidence
from tests.support.faults import (
    SIDE,
    Fault,
    Images,
    Strengths,
    border,
    each,
    normalised,
    on_images,
    own_range,
    whole,
    with_split,
)


def _linear(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return (10 ** (x.astype(np.float32) / 10)).astype(np.float32)


def _amplitude(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.sqrt(_linear(x, strength, rng))


def _numbers(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Digital numbers of a GRD product: amplitude times a calibration constant near 470."""
    return np.rint(_amplitude(x, strength, rng) * 470).astype(np.uint16)


def _hundred(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.rint(x.astype(np.float32) * 100).astype(np.int16)


def _integers(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.trunc(x.astype(np.float32)).astype(np.int32)


def _rounded(x: np.ndarray, step: float, rng: np.random.Generator) -> np.ndarray:
    return (np.rint(x.astype(np.float32) / step) * step).astype(np.float32)


def _wrapped(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.rint(x.astype(np.float32)).astype(np.int16).view(np.uint16)


def _wrapped_hundred(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return _hundred(x, strength, rng).view(np.uint16)


def _logarithm(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.log(_linear(x, strength, rng))


def _eight_bit(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip((x.astype(np.float32) + 30) / 30 * 255, 0, 255).astype(np.uint8)


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
    whole('linear power for dB', ('s1.unit',), 's1', each(_linear)),
    whole('amplitude for dB', ('s1.unit',), 's1', each(_amplitude)),
    whole('digital numbers for dB', ('s1.unit',), 's1', each(_numbers)),
    whole('dB times 100 in int16', ('s1.unit',), 's1', each(_hundred)),
    whole('dB cast to integers', ('s1.integer',), 's1', each(_integers)),
    Fault(
        'dB rounded to a step',
        ('s1.integer',),
        on_images('s1', each(_rounded), by_share=False),
        'dB',
        developed=Strengths(0.5, 0.2),
        judged=Strengths(0.3, 0.12),
    ),
    whole('dB wrapped into uint16', ('s1.unit',), 's1', each(_wrapped)),
    whole('dB times 100 wrapped into uint16', ('s1.unit',), 's1', each(_wrapped_hundred)),
    whole('dB scaled to 8 bits', ('s1.unit',), 's1', each(_eight_bit)),
    whole('natural logarithm for dB', ('s1.level', 's1.ratio', 's1.unit'), 's1', each(_logarithm)),
    whole('S1 normalised before', ('s1.unit',), 's1', each(normalised)),
    whole('S1 scaled to its own range', ('s1.unit',), 's1', each(own_range)),
    whole('VV and VH swapped', ('s1.order',), 's1', _swapped),
    whole('VV stored twice', ('s1.duplicate',), 's1', _doubled),
    Fault(
        'NaN along a border of S1',
        ('s1.nan',),
        on_images('s1', each(lambda x, w, rng: border(x, w, np.nan)), by_share=False),
        SIDE,
        developed=Strengths(0.1, 0.01),
        judged=Strengths(0.08, 0.015),
    ),
    Fault(
        'infinite values in S1',
        ('s1.inf',),
        on_images('s1', each(_infinite), by_share=False),
        'of the pixels',
        developed=Strengths(0.01, 0.0001),
        judged=Strengths(0.007, 0.00005),
    ),
    Fault(
        '-9999 along a border of S1',
        ('s1.fill',),
        on_images('s1', each(lambda x, w, rng: border(x, w, -9999)), by_share=False),
        SIDE,
        developed=Strengths(0.1, 0.01),
        judged=Strengths(0.08, 0.015),
    ),
    Fault(
        'zeros along a border of S1',
        ('s1.zero',),
        on_images('s1', each(lambda x, w, rng: border(x, w, 0)), by_share=False),
        SIDE,
        developed=Strengths(0.1, 0.01),
        judged=Strengths(0.08, 0.015),
    ),
    Fault(
        'noisy border of S1',
        ('s1.border',),
        on_images('s1', each(_noise), by_share=False),
        SIDE,
        developed=Strengths(0.1, 0.02),
        judged=Strengths(0.08, 0.012),
    ),
    Fault(
        'orbit mix differs between splits',
        ('s1.orbit',),
        _orbits,
        'more descending',
        developed=Strengths(0.4, 0.18),
        judged=Strengths(0.35, 0.15),
    ),
)
