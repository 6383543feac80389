"""Moments of image values, gathered piece by piece and merged afterwards.

Counts, means and squared deviations are merged pairwise (Chan, Golub and LeVeque 1979), which stays
accurate where a sum of squares would cancel; everything is float64.
"""

import numpy as np

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
        moments = Moments(bands)
        moments.count = valid.sum(axis=1)
        moments.invalid = valid.shape[1] - moments.count
        values = stored.astype(np.float64)
        if moments.invalid.any():
            moments.minimum = np.where(valid, values, np.inf).min(axis=1)
            moments.maximum = np.where(valid, values, -np.inf).max(axis=1)
            values = np.where(valid, values, 0.0)
        else:
            moments.minimum, moments.maximum = stored.min(axis=1), stored.max(axis=1)
        moments.outside = ranges.outside(image[None], group)[0]
        moments.mean = values.sum(axis=1) / np.maximum(moments.count, 1)
        values -= moments.mean[:, None]
        if moments.invalid.any():
            values *= valid
        moments.m2 = np.einsum('bn,bn->b', values, values)
        self.merge(moments)
        return int(moments.invalid.sum())

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
