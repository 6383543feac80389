"""Statistics of a data set: counts over its records, and the distribution of each image field.

Counts are gathered shard by shard and merged afterwards. Percentiles come from a histogram with a fixed bin
for every number that the type can hold, so that two histograms add up whatever they were taken from. Types of
8 and 16 bits have a bin for each value, and their percentiles are exact. All others are counted as float32 by
sign, exponent and the first 11 bits of the mantissa: a percentile is then within `RELATIVE_ERROR` of the true
one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusmae_jax import sensors
from fusmae_jax.input import label_maps, number_maps, units
from fusmae_jax.input.contract import Group, Statistics
from fusmae_jax.input.statistics import Moments

from .records import Record, Schema, validity


class Tally:
    """Everything that is counted over the records of a shard, a split or a data set."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.records = 0
        self.moments = {name: Moments(len(group.bands)) for name, group in schema.groups.items()}
        self.with_invalid = dict.fromkeys(schema.groups, 0)  # records with at least one invalid pixel
        self.labels = {name: np.zeros(len(classes), np.int64) for name, classes in schema.classes.items()}
        # Pixels of each class, and last those without one.
        self.maps = {name: np.zeros(len(about.classes) + 1, np.int64) for name, about in schema.maps.items()}

        # Of each number to predict: how many records have it, their sum, the least and the greatest.
        self.targets = {
            name: np.array([[0, 0, np.inf, -np.inf]] * len(about.names))
            for name, about in schema.targets.items()
        }
        # The same of the pixels of maps of numbers.
        self.number_maps = {name: np.array([[0, 0, np.inf, -np.inf]]) for name in schema.number_maps}

    def add(self, record: Record) -> None:
        """Counts one record."""
        self.records += 1
        for name, group in self.schema.groups.items():
            self.with_invalid[name] += self.moments[name].add(record[name], group) > 0
        for name, count in self.labels.items():
            count += record[name]
        for name, count in self.maps.items():
            pixels = label_maps.count(record[name], self.schema.maps[name])
            count[:-1] += pixels
            count[-1] += record[name].size - pixels.sum()

        for name, numbers in self.targets.items():
            values = np.atleast_1d(record[name]).astype(np.float64)
            one = np.stack([np.ones_like(values), values, values, values], axis=1)
            _join(numbers, np.where(np.isfinite(values)[:, None], one, (0, 0, np.inf, -np.inf)))
        for name, numbers in self.number_maps.items():
            there = number_maps.to_numbers(record[name], self.schema.number_maps[name])
            there = there[np.isfinite(there)].astype(np.float64)
            if there.size:
                _join(numbers, np.array([[there.size, there.sum(), there.min(), there.max()]]))

    def merge(self, other: 'Tally') -> None:
        """Counts the records of another tally."""
        self.records += other.records
        for name, moments in self.moments.items():
            moments.merge(other.moments[name])
            self.with_invalid[name] += other.with_invalid[name]
        for mine, others in ((self.labels, other.labels), (self.maps, other.maps)):
            for name, count in mine.items():
                count += others[name]

        for name, numbers in self.targets.items():
            _join(numbers, other.targets[name])
        for name, numbers in self.number_maps.items():
            _join(numbers, other.number_maps[name])

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; `from_json` restores them exactly."""
        return {
            'records': self.records,
            'moments': {
                name: {key: value.tolist() for key, value in vars(moments).items()}
                for name, moments in self.moments.items()
            },
            'with_invalid': self.with_invalid,
            'labels': {name: count.tolist() for name, count in self.labels.items()},
            'maps': {name: count.tolist() for name, count in self.maps.items()},
            # JSON has no infinity, which the extremes of nothing are.
            **({'targets': {n: _finite(x) for n, x in self.targets.items()}} if self.targets else {}),
            **(
                {'number_maps': {n: _finite(x) for n, x in self.number_maps.items()}}
                if self.number_maps
                else {}
            ),
        }

    @classmethod
    def from_json(cls, schema: Schema, values: Mapping[str, Any]) -> 'Tally':
        """A tally as `to_json` gave it."""
        tally = cls(schema)
        tally.records = values['records']
        for name, moments in tally.moments.items():
            for key, value in values['moments'][name].items():
                setattr(moments, key, np.asarray(value, getattr(moments, key).dtype))
        tally.with_invalid = dict(values['with_invalid'])
        tally.labels = {name: np.asarray(count, np.int64) for name, count in values['labels'].items()}
        # Shards that an earlier version converted have none.
        tally.maps |= {n: np.asarray(count, np.int64) for n, count in values.get('maps', {}).items()}
        for kept, kind in ((tally.targets, 'targets'), (tally.number_maps, 'number_maps')):
            for name, rows in values.get(kind, {}).items():
                none = (0, 0, np.inf, -np.inf)
                kept[name] = np.array([none if row is None else row for row in rows], np.float64)
        return tally


def _join(numbers: np.ndarray, others: np.ndarray) -> None:
    """Adds counts and sums (targets, 4), and takes the least and the greatest."""
    numbers[:, :2] += others[:, :2]
    numbers[:, 2] = np.minimum(numbers[:, 2], others[:, 2])
    numbers[:, 3] = np.maximum(numbers[:, 3], others[:, 3])


def _finite(numbers: np.ndarray) -> list[list[float] | None]:
    """The rows of a table of targets; None for one that no record has."""
    return [row.tolist() if row[0] else None for row in numbers]


PERCENTILES = (1, 50, 99)
RELATIVE_ERROR = 2.0**-12  # half a bin; 0.005 dB at -20 dB
_DROPPED = 12  # bits of a float32 that its bin leaves out

Transform = Callable[[np.ndarray], np.ndarray]


def is_exact(dtype: np.dtype) -> bool:
    """Whether the percentiles of a type are exact."""
    return dtype.itemsize <= 2


def _codes(values: np.ndarray) -> np.ndarray:
    """The bin of each value, in the order of the values; finite values only."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in 'ui' and size <= 2:
        return values.astype(np.int32) - np.iinfo(values.dtype).min
    # The bits of positive floats are in the order of their values; those of negative ones reversed.
    width, whole = (16, values) if size <= 2 else (32, values.astype(np.float32))
    bits = whole.view(f'uint{width}').astype(np.uint32)
    sign = np.uint32(1 << (width - 1))
    ordered = np.where(bits & sign, ~bits & np.uint32(2**width - 1), bits | sign)
    return (ordered >> np.uint32(_DROPPED if width == 32 else 0)).astype(np.int32)


def _centres(codes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The value in the middle of each bin, float64: the inverse of `_codes`."""
    if dtype.kind in 'ui' and dtype.itemsize <= 2:
        return (codes + np.iinfo(dtype).min).astype(np.float64)
    width, dropped = (16, 0) if dtype.itemsize <= 2 else (32, _DROPPED)
    ordered = (codes.astype(np.uint32) << np.uint32(dropped)) + np.uint32((1 << dropped) >> 1)
    sign = np.uint32(1 << (width - 1))
    bits = np.where(ordered & sign, ordered & ~sign, ~ordered & np.uint32(2**width - 1))
    return bits.astype(f'uint{width}').view(f'float{width}').astype(np.float64)


class Histogram:
    """How often each bin occurs among the valid pixels; one row a band."""

    def __init__(self, bands: int, dtype: np.dtype):
        self.dtype = dtype
        width = 8 * dtype.itemsize if is_exact(dtype) else 32 - _DROPPED
        self.counts = np.zeros((bands, 1 << width), np.int64)

    def add(self, pixels: np.ndarray, valid: np.ndarray) -> None:
        """Takes in pixels (n, bands) of which `valid` (n, bands) count."""
        bands, bins = self.counts.shape
        codes = _codes(np.where(valid, pixels, self.dtype.type(0))) + np.arange(bands, dtype=np.int32) * bins
        if not valid.all():
            codes = codes[valid]
        self.counts += np.bincount(codes.ravel(), minlength=bands * bins).reshape(bands, bins)

    def merge(self, other: 'Histogram') -> None:
        """Takes in the counts of other pixels."""
        self.counts += other.counts

    def percentile(self, band: int, percent: int, transform: Transform) -> float:
        """The smallest value that at least `percent` of the valid pixels do not exceed.

        Of the transformed values: NaN is not counted. 0 where no pixel is left.
        """
        codes = np.flatnonzero(self.counts[band])
        values, counts = transform(_centres(codes, self.dtype)), self.counts[band][codes]
        keep = np.isfinite(values)
        order = np.argsort(values[keep], kind='stable')
        values, below = values[keep][order], np.cumsum(counts[keep][order])
        if not values.size:
            return 0.0
        return float(values[np.searchsorted(100 * below, percent * below[-1])])


def sensor_unit(group: Group) -> str:
    """The unit that statistics of a model are in: that of the sensor where the field can be converted."""
    sensor = sensors.SENSORS.get(group.modality)
    wanted = sensor.unit if sensor else group.unit
    return wanted if units.convertible(group.unit, wanted) else group.unit


def decibel(group: Group) -> float:
    """What log10 of the physical values is multiplied with, or 0 where no logarithm is taken."""
    return units.LOGARITHMS.get((group.unit, sensor_unit(group)), 0.0)


def physical(group: Group) -> Transform:
    """From stored values to the unit of the field."""
    return lambda stored: stored.astype(np.float64) * group.scale + group.offset


def model(group: Group) -> Transform:
    """From stored values to `sensor_unit`; a power of 0 or less has no decibels and becomes NaN."""
    to_physical = physical(group)
    return lambda stored: units.convert(to_physical(stored), group.unit, sensor_unit(group))


class Distribution:
    """Moments and histogram of one image field."""

    def __init__(self, group: Group):
        self.group = group
        self.moments = Moments(len(group.bands))
        self.decibels = Moments(len(group.bands)) if decibel(group) else None
        self.histogram = Histogram(len(group.bands), np.dtype(group.dtype))

    def add(self, images: list[np.ndarray]) -> None:
        """Takes in images (rows, columns, bands) as they are stored."""
        for image in images:
            self.moments.add(image, self.group)
            if self.decibels:
                valid = validity(image, self.group)
                self.decibels.add(model(self.group)(np.where(valid, image, np.nan)), _PLAIN)
        pixels = np.concatenate([image.reshape(-1, image.shape[-1]) for image in images])
        self.histogram.add(pixels, validity(pixels, self.group))

    def merge(self, other: 'Distribution') -> None:
        """Takes in what was gathered of other records."""
        self.moments.merge(other.moments)
        self.histogram.merge(other.histogram)
        if self.decibels and other.decibels:
            self.decibels.merge(other.decibels)

    def stored(self) -> dict[str, Any]:
        """Statistics of the values as they are stored."""
        return self._view('as stored', self.moments.result(), lambda stored: stored)

    def physical(self) -> dict[str, Any]:
        """The same after scale and offset."""
        group = self.group
        result = _scaled(self.moments.result(), group.scale, group.offset)
        return self._view(group.unit, result, physical(group))

    def model(self) -> dict[str, Any]:
        """The same in the unit of the sensor: what `model.modalities.*.mean` and `.std` are in."""
        unit = sensor_unit(self.group)
        if self.decibels:
            return self._view(unit, self.decibels.result(), model(self.group))
        factor = units.SCALES.get((self.group.unit, unit), 1.0)
        result = _scaled(self.moments.result(), self.group.scale * factor, self.group.offset * factor)
        return self._view(unit, result, model(self.group))

    def _view(self, unit: str, result: Statistics, transform: Transform) -> dict[str, Any]:
        view: dict[str, Any] = {'unit': unit, **{key: list(value) for key, value in vars(result).items()}}
        for percent in PERCENTILES:
            view[f'p{percent}'] = [
                min(max(self.histogram.percentile(band, percent, transform), low), high)
                for band, (low, high) in enumerate(zip(result.minimum, result.maximum))
            ]
        return view


_PLAIN = Group()  # nothing but NaN and inf is invalid


def _scaled(result: Statistics, scale: float, offset: float) -> Statistics:
    """Statistics of `value * scale + offset`; bands without a valid pixel keep their zeros."""

    def line(values: tuple[float, ...], plus: float) -> tuple[float, ...]:
        return tuple(v * scale + plus if count else 0.0 for v, count in zip(values, result.valid))

    low, high = line(result.minimum, offset), line(result.maximum, offset)
    changes: Mapping[str, Any] = {
        'mean': line(result.mean, offset),
        'std': tuple(abs(v) for v in line(result.std, 0.0)),
        'minimum': low if scale > 0 else high,
        'maximum': high if scale > 0 else low,
    }
    return Statistics(**{**vars(result), **changes})
