"""int8 embeddings: symmetric, one scale for each channel or each cell, and what they cost.

A stored value q stands for q * scale; with scales of channels -128 is kept for cells without data, of cells
the scale of those is NaN. Vectors are not normalised: their lengths carry information.
"""

import numpy as np

NODATA = -128
LIMIT = 127  # of the stored values, both ways
HEADROOM = 1.25  # on the largest value of a sample; the largest of all may lie beyond it
MOST_CLIPPED = 1e-4  # share of values; a sample that misses more than this was no sample of the whole


def scale_of(largest: np.ndarray, complete: bool) -> np.ndarray:
    """Scales (channels,) float32 from the largest absolute values seen, of all cells or of a sample."""
    room = 1.0 if complete else HEADROOM
    # A channel that is 0 everywhere can have any scale but 0.
    scale = np.where(largest > 0, largest * room / LIMIT, 1.0)
    return scale.astype(np.float32)


def by_cell(vectors: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (..., channels) as int8, and the scale (...) float32 of each, NaN where not `valid`."""
    with np.errstate(invalid='ignore'):
        largest = np.abs(vectors).max(axis=-1)
    scale = np.where(largest > 0, largest / LIMIT, 1).astype(np.float32)
    with np.errstate(invalid='ignore'):
        stored = np.rint(np.where(valid[..., None], vectors, 0) / scale[..., None])
    stored = np.clip(stored, -LIMIT, LIMIT).astype(np.int8)
    return stored, np.where(valid, scale, np.float32(np.nan))


class Report:
    """The cosine of vectors and of what they are read back as."""

    def __init__(self):
        self.cells = 0
        self._cosine_sum, self._cosine_least = 0.0, 1.0

    def add(self, given: np.ndarray, back: np.ndarray) -> None:
        """Takes in vectors (cells, channels) and what is read back."""
        if not len(given):
            return
        lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(back, axis=1)
        cosine = np.einsum('nd,nd->n', given, back)[lengths > 0] / lengths[lengths > 0]
        self.cells += cosine.size
        self._cosine_sum += float(cosine.sum(dtype=np.float64))
        self._cosine_least = min(self._cosine_least, float(cosine.min(initial=1.0)))

    def summary(self) -> dict[str, float | None]:
        """Mean and least; None without any."""
        return {
            'cosine_mean': self._cosine_sum / self.cells if self.cells else None,
            'cosine_min': self._cosine_least if self.cells else None,
        }


class Quantiser:
    """Turns vectors into int8, and keeps count of what is lost by it."""

    def __init__(self, scale: np.ndarray):
        self.scale = scale
        self.largest = np.zeros_like(scale)  # absolute value of each channel
        self.clipped = self.values = 0
        self._cosines = Report()

    def __call__(self, vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Vectors (..., channels) as int8; cells that are not valid become NODATA."""
        stored = np.full(vectors.shape, NODATA, np.int8)
        given = vectors[valid]
        self.largest = np.maximum(self.largest, np.abs(given).max(axis=0, initial=0))
        rounded = np.rint(given / self.scale)
        self.clipped += int((np.abs(rounded) > LIMIT).sum())
        self.values += rounded.size
        stored[valid] = np.clip(rounded, -LIMIT, LIMIT).astype(np.int8)
        self._cosines.add(given, stored[valid] * self.scale)
        return stored

    def report(self) -> dict[str, float | None]:
        """Share of values that were clipped, and the cosine of stored and given vectors; None without any."""
        share = self.clipped / self.values if self.values else None
        return {'clipped_share': share, **self._cosines.summary()}
