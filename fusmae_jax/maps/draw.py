"""What is drawn of vectors: false colours, similarity, groups. Functions of arrays alone."""

import colorsys
from typing import NamedTuple

import numpy as np

from fusmae_jax.installed import need

STRETCH = (2.0, 98.0)  # percentiles of the sample that the darkest and the brightest colour stand for
# Of a scale from dark blue to yellow, evenly spaced.
_ANCHORS = np.array([[48, 18, 90], [44, 88, 140], [34, 140, 135], [110, 195, 85], [250, 230, 60]], np.float32)


class Components(NamedTuple):
    """The main components of a sample and how they are turned into colours."""

    mean: np.ndarray  # (width,)
    axes: np.ndarray  # (width, 3)
    low: np.ndarray  # (3,), of the scores
    high: np.ndarray  # (3,)
    explained: np.ndarray  # (3,), share of the variance

    def colours(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (..., width) as red, green, blue (..., 3) uint8, 1 to 255."""
        scores = (vectors - self.mean) @ self.axes
        part = (scores - self.low) / np.maximum(self.high - self.low, 1e-12)
        return (1 + np.rint(np.clip(part, 0, 1) * 254)).astype(np.uint8)


def components(sample: np.ndarray) -> Components:
    """The three main components of vectors (cells, width); signs are fixed, so that colours are."""
    mean = sample.mean(axis=0, dtype=np.float64)
    centred = sample - mean
    # Of the covariance and not of the sample: its size is that of a vector.
    values, vectors = np.linalg.eigh(centred.T @ centred / len(sample))
    axes = np.zeros((sample.shape[1], 3))
    axes[:, : min(3, len(values))] = vectors[:, ::-1][:, :3]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(3)]
    axes *= np.where(largest < 0, -1, 1)
    low, high = np.percentile(centred @ axes, STRETCH, axis=0)
    explained = np.zeros(3)
    explained[: min(3, len(values))] = values[::-1][:3] / max(values.sum(), 1e-30)
    return Components(mean, axes, low, high, explained)


def similarity(vectors: np.ndarray, query: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Cosines (...) float32 of vectors (..., width) and a query (width,), both seen from the mean.

    Vectors of a transformer share a large part, beside which all of them look alike.
    """
    a, b = vectors - mean, query - mean
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b)
    return ((a @ b) / np.maximum(lengths, 1e-12)).astype(np.float32)


def groups(sample: np.ndarray, count: int) -> np.ndarray:
    """Centres (count, width) of k-means on a sample, the largest group first; the same in every run."""
    need('eval', '--kmeans', 'sklearn')
    from sklearn.cluster import KMeans

    fitted = KMeans(count, n_init=4, random_state=0).fit(sample)
    sizes = np.bincount(fitted.labels_, minlength=count)
    return fitted.cluster_centers_[np.argsort(-sizes, kind='stable')]


def nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre nearest to each vector: (...) uint8, counted from 1."""
    distance = (centres**2).sum(axis=1) - 2 * vectors @ centres.T
    return (1 + distance.argmin(axis=-1)).astype(np.uint8)


def palette(count: int) -> dict[int, tuple[int, int, int, int]]:
    """Colours of groups 1 to `count`, and none for 0."""
    colours = {0: (0, 0, 0, 0)}
    for i in range(count):
        # Steps of the golden ratio: neighbours in the list are far apart on the circle.
        red, green, blue = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.75, 0.5)[i % 2], (0.85, 0.65, 1.0)[i % 3])
        colours[i + 1] = round(red * 255), round(green * 255), round(blue * 255), 255
    return colours


def ramp(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 (...) as colours (..., 3) uint8."""
    at = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
    low = np.minimum(at.astype(np.intp), len(_ANCHORS) - 2)
    part = (at - low)[..., None]
    return np.rint(_ANCHORS[low] * (1 - part) + _ANCHORS[low + 1] * part).astype(np.uint8)
