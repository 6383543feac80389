"""Summary of every band of every patch; the checks go back to pixels only where they must."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fusmae_jax.input import ranges

# What software writes where there is nothing, and no sensor ever measures; -9999 is -10000 as float16.
FILLS = (-9999.0, -10000.0, -32768.0)
HUGE = 1e6  # fills such as 1e20 and -3.4e38 lie beyond
WRAPPED = int(ranges.WRAPPED[0])  # 16-bit numbers from here on are negative ones, or saturation
SAMPLE = 1024  # pixels a band and patch that percentiles are taken from


@dataclasses.dataclass(frozen=True)
class Summary:
    """Arrays (patches, bands) of what is stored; `present` tells which bands a patch has.

    Percentiles, mean, standard deviation and extremes are of usable pixels: not NaN, inf, a fill, a declared
    nodata or 0 (that is "nothing here" in most archives, and rare where it is a measurement).
    """

    present: np.ndarray  # bool
    pixels: np.ndarray  # int
    nan: np.ndarray  # pixels, and so for the next ones
    inf: np.ndarray
    fill: np.ndarray  # FILLS, or beyond +-HUGE
    zero: np.ndarray
    usable: np.ndarray
    wrapped: np.ndarray  # WRAPPED..65534
    top: np.ndarray  # equal to the maximum
    bottom: np.ndarray  # equal to the minimum
    minimum: np.ndarray
    maximum: np.ndarray
    p01: np.ndarray
    p50: np.ndarray
    p99: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    whole: np.ndarray  # share of usable pixels that are whole numbers
    step: np.ndarray  # smallest distance between two values; 0 if that says nothing
    dtypes: tuple[str, ...]  # one a band, of the first patch that has it
    samples: tuple[tuple[np.ndarray, ...], ...]  # patch -> band -> usable pixels, sorted

    @property
    def patches(self) -> int:
        """How many patches were looked at."""
        return len(self.present)

    def pooled(self, band: int) -> np.ndarray:
        """Usable pixels of a band over all patches, up to SAMPLE of each."""
        return np.concatenate([patch[band] for patch in self.samples] or [np.empty(0)])


def summarise(
    images: Sequence[Mapping[str, np.ndarray]], bands: Sequence[str], nodata: Sequence[float]
) -> Summary:
    """The summary of images that map bands to arrays (rows, columns)."""
    rows = [[_one(image.get(band), nodata) for band in bands] for image in images]
    names = [f.name for f in dataclasses.fields(Summary) if f.name not in ('dtypes', 'samples')]
    columns = {
        name: np.array([[cell[name] for cell in row] for row in rows]).reshape(len(rows), len(bands))
        for name in names
    }
    columns['present'] = columns['present'].astype(bool)  # of no images at all NumPy makes float64
    dtypes = tuple(next((str(i[band].dtype) for i in images if band in i), '') for band in bands)
    return Summary(
        **columns, dtypes=dtypes, samples=tuple(tuple(cell['sample'] for cell in row) for row in rows)
    )


def usable(image: np.ndarray, nodata: Sequence[float] = ()) -> np.ndarray:
    """Which pixels are neither NaN, inf, a fill, nodata nor 0."""
    image = image.astype(np.float32) if image.dtype == np.float16 else image  # HUGE lies beyond float16
    valid = image != 0
    if image.dtype.kind == 'f':
        valid &= np.abs(image) < HUGE  # False for NaN and inf too
    if image.dtype.kind != 'u':
        for value in FILLS:
            valid &= image != value
    for value in nodata:
        valid &= image != value
    return valid


def _one(image: np.ndarray | None, nodata: Sequence[float]) -> dict:
    if image is None or not image.size:
        return _NOTHING
    inexact = image.dtype.kind == 'f'
    image = image.astype(np.float32) if image.dtype == np.float16 else image  # HUGE lies beyond float16
    valid = usable(image, nodata)
    nan = int(np.isnan(image).sum()) if inexact else 0
    inf = int(np.isinf(image).sum()) if inexact else 0
    zero = int((image == 0).sum())
    fill = 0
    if image.dtype.kind != 'u':
        fill = sum(int((image == value).sum()) for value in FILLS)
        fill += int((np.abs(image) >= HUGE).sum()) - inf if inexact else 0
    values = image[valid]
    counts = {
        'present': True,
        'pixels': image.size,
        'nan': nan,
        'inf': inf,
        'fill': fill,
        'zero': zero,
        'usable': values.size,
        'wrapped': int(((values >= WRAPPED) & (values < 2**16 - 1)).sum()),
    }
    return {**_NOTHING, **counts, **_numbers(values)} if values.size else {**_NOTHING, **counts}


def _numbers(values: np.ndarray) -> dict:
    exact = values.astype(np.float64)
    low, high = exact.min(), exact.max()
    # Every k-th pixel: neighbours say nearly the same. Sorted once, for percentiles and steps.
    sample = np.sort(exact[:: max(1, exact.size // SAMPLE)][: 2 * SAMPLE])
    p01, p50, p99 = (sample[round(share * (sample.size - 1))] for share in (0.01, 0.5, 0.99))
    return {
        'top': int((exact == high).sum()),
        'bottom': int((exact == low).sum()),
        'minimum': low,
        'maximum': high,
        'p01': p01,
        'p50': p50,
        'p99': p99,
        'mean': exact.mean(),
        'std': exact.std(),
        'whole': float((sample == np.rint(sample)).mean()),
        'step': _step(sample),
        'sample': sample.astype(np.float32),
    }


def _step(ordered: np.ndarray) -> float:
    """The smallest distance between different values, if values repeat so often that they must be rounded."""
    steps = np.diff(ordered)
    steps = steps[steps > 0]
    return float(steps.min()) if 0 < steps.size < ordered.size / 8 else 0.0


_NOTHING = {
    'present': False,
    **dict.fromkeys(('pixels', 'nan', 'inf', 'fill', 'zero', 'usable', 'wrapped', 'top', 'bottom'), 0),
    **dict.fromkeys(('minimum', 'maximum', 'p01', 'p50', 'p99', 'mean', 'std', 'whole', 'step'), np.nan),
    'sample': np.empty(0, np.float32),
}
