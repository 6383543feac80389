"""Statistics of a data set, gathered shard by shard and merged afterwards.

Counts, means and squared deviations are merged pairwise (Chan, Golub and LeVeque 1979), which stays
accurate where a sum of squares would cancel; everything is float64.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.records import Record, Schema
from fusmae_jax.input import ranges
from fusmae_jax.input.contract import Group, Statistics
from fusmae_jax.input.units import validity


class Moments:
    """Count, mean, spread and extremes of the valid pixels of one image group, one number a band."""

    def __init__(self, bands: int):
        self.count = np.zeros(bands, np.int64)
        self.invalid = np.zeros(bands, np.int64)
        self.mean = np.zeros(bands)
        self.m2 = np.zeros(bands)  # sum of squared deviations from the mean
        self.minimum = np.full(bands, np.inf)
        self.maximum = np.full(bands, -np.inf)
        self.outside = np.zeros(bands, np.int64)  # pixels that cannot be in the unit of the group

    def add(self, image: np.ndarray, group: Group) -> int:
        """Takes in one image (rows, columns, bands); returns its number of invalid pixels, all bands."""
        bands = image.shape[-1]
        # Bands first and contiguous, while the type is still narrow: sums along the short last axis would
        # take five times as long.
        stored = np.ascontiguousarray(image.reshape(-1, bands).T)
        valid = validity(stored, group)
        one = Moments(bands)
        one.count = valid.sum(axis=1)
        one.invalid = valid.shape[1] - one.count
        values = stored.astype(np.float64)
        if one.invalid.any():
            one.minimum = np.where(valid, values, np.inf).min(axis=1)
            one.maximum = np.where(valid, values, -np.inf).max(axis=1)
            values = np.where(valid, values, 0.0)
        else:
            one.minimum, one.maximum = stored.min(axis=1), stored.max(axis=1)
        one.outside = ranges.outside(image[None], group)[0]
        one.mean = values.sum(axis=1) / np.maximum(one.count, 1)
        values -= one.mean[:, None]
        if one.invalid.any():
            values *= valid
        one.m2 = np.einsum('bn,bn->b', values, values)
        self.merge(one)
        return int(one.invalid.sum())

    def merge(self, other: 'Moments') -> None:
        """Takes in the moments of other pixels of the same bands."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        self.mean = self.mean + delta * share
        self.m2 = self.m2 + other.m2 + delta**2 * self.count * share
        self.count, self.invalid = count, self.invalid + other.invalid
        self.outside = self.outside + other.outside
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)

    def result(self) -> Statistics:
        """The statistics as a contract holds them."""
        some = self.count > 0
        std = np.sqrt(self.m2 / np.maximum(self.count, 1))
        return Statistics(
            mean=tuple(self.mean.tolist()),
            std=tuple(std.tolist()),
            minimum=tuple(np.where(some, self.minimum, 0.0).tolist()),
            maximum=tuple(np.where(some, self.maximum, 0.0).tolist()),
            valid=tuple(self.count.tolist()),
            invalid=tuple(self.invalid.tolist()),
        )


class Tally:
    """Everything that is counted over the records of a shard, a split or a data set."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.records = 0
        self.moments = {name: Moments(len(group.bands)) for name, group in schema.groups.items()}
        self.with_invalid = dict.fromkeys(schema.groups, 0)  # records with at least one invalid pixel
        self.labels = {name: np.zeros(len(classes), np.int64) for name, classes in schema.classes.items()}

    def add(self, record: Record) -> None:
        """Counts one record."""
        self.records += 1
        for name, group in self.schema.groups.items():
            self.with_invalid[name] += self.moments[name].add(record[name], group) > 0
        for name, count in self.labels.items():
            count += record[name]

    def merge(self, other: 'Tally') -> None:
        """Counts the records of another tally."""
        self.records += other.records
        for name, moments in self.moments.items():
            moments.merge(other.moments[name])
            self.with_invalid[name] += other.with_invalid[name]
        for name, count in self.labels.items():
            count += other.labels[name]

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
        return tally
