"""Values that cannot be what was declared: refused where there is no doubt.

Every nth pixel is looked at, which is enough for medians. What only a set of tiles can show, such as an
offset left in or swapped polarisations, is not decided here.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.records import RecordError, validity
from fusmae_jax.input.contract import Group

LOOK = 24  # pixels along a side that are looked at
ENOUGH = 16  # valid pixels of a band below which nothing is concluded

_RAW = 'digital numbers of a product that is not calibrated? calibrate it first'
_TWICE = 'the offset is off already? set s2_offset=0'
# unit -> lowest and highest median of a band that can be, and what it is if it lies beyond.
RANGES = {
    'dB': (-60.0, 20.0, 'dB times a factor? set s1_scale, such as 0.01', 'linear or digital numbers?'),
    'linear': (0.0, 10.0, "dB? set s1_unit='dB'", _RAW),
    'amplitude': (0.0, 10.0, "dB? set s1_unit='dB'", _RAW),
    'DN': (-500.0, 40_000.0, _TWICE, 'wrapped below zero, or scaled? take the original product'),
    'reflectance': (-0.05, 4.0, _TWICE, "digital numbers? set s2_unit='DN'"),
}
SMALLEST_DN = 10.0  # no band but B10 stays below this everywhere


def check_values(file: Path, images: Mapping[str, np.ndarray], groups: Mapping[str, Group]) -> None:
    """Raises RecordError if the images of one sensor cannot be in the unit that their groups say."""
    lowest, highest, unit = np.inf, -np.inf, ''
    for name, image in images.items():
        group = groups[name]
        step = max(1, min(image.shape[:2]) // LOOK)
        some = image[::step, ::step].reshape(-1, image.shape[-1]).T
        valid = validity(some.T, group).T
        # Invalid pixels sort behind the valid ones.
        physical = np.sort(np.where(valid, some * group.scale + group.offset, np.inf), axis=1)
        for band, values, count in zip(group.bands, physical, valid.sum(axis=1)):
            if count < ENOUGH or band == 'B10':
                continue
            _check_median(file, band, float(values[(count - 1) // 2]), group)
            lowest, highest = min(lowest, values[0]), max(highest, values[count - 1])
            unit = group.unit
    if unit == 'dB' and lowest >= 0:
        raise RecordError(
            file,
            's1 unit',
            f'no negative value (from {lowest:.4g} to {highest:.4g}): not dB',
            "linear power or digital numbers? set s1_unit, or s1_nodata=(0.0,) if 0 fills the file's borders",
        )
    if unit == 'DN' and highest < SMALLEST_DN:
        raise RecordError(
            file,
            's2 unit',
            f'no value above {highest:.4g}: not DN',
            "reflectance? set s2_unit='reflectance', or s2_scale",
        )


def _check_median(file: Path, band: str, median: float, group: Group) -> None:
    low, high, below, above = RANGES[group.unit]
    if low <= median <= high:
        return
    raise RecordError(
        file,
        f'{group.modality} {band}',
        f'median {median:.4g} {group.unit} (scale {group.scale:g}, offset {group.offset:g}), possible are '
        f'{low:g} to {high:g}',
        below if median < low else above,
    )
