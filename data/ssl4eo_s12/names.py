"""Names of SSL4EO-S12 images, and which Sentinel-1 image goes with which Sentinel-2 image.

    S1B_IW_GRDH_1SDV_20201127T214646_20201127T214711_024455_02E80B_9A0E     Sentinel-1: start, end
    20201116T023001_20201116T022955_T51TXH                                 Sentinel-2: start, ..., tile

The four images of a location lie in the order of their names. For Sentinel-2 that is by date. For
Sentinel-1 it is not: all of S1A come before all of S1B, so equal indices may show different seasons.
Version 1.1 was published with its Sentinel-1 images in that order and with dates (`time_`) that were sorted
apart from them. Hence dates are read from names, and images are paired by date.
"""

import datetime
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..records import RecordError

_S1 = re.compile(r'S1[A-D]_IW_GRDH_1SDV_(\d{8}T\d{6})_\d{8}T\d{6}_\d{6}_[0-9A-F]{6}_[0-9A-F]{4}')
_S2 = re.compile(r'(\d{8}T\d{6})_\d{8}T\d{6}_T(\d{2}[A-Z]{3})')
# Days between the images of a pair. Both were drawn from one window of a month for each season, and seasons
# follow each other after 59 days at the least.
MOST_DAYS = 58


class ImageName(NamedTuple):
    """What the name of an image says."""

    time: int  # Unix seconds, UTC
    tile: str  # MGRS tile; '' for Sentinel-1


def parse_name(name: str) -> ImageName:
    """Parses the name of a Sentinel-1 or Sentinel-2 image; raises ValueError for any other name."""
    if match := _S1.fullmatch(name):
        return ImageName(_seconds(match[1]), '')
    if match := _S2.fullmatch(name):
        return ImageName(_seconds(match[1]), match[2])
    raise ValueError(f'{name!r} is not the name of an SSL4EO-S12 image')


def _seconds(stamp: str) -> int:
    moment = datetime.datetime.strptime(stamp, '%Y%m%dT%H%M%S').replace(tzinfo=datetime.UTC)
    return int(moment.timestamp())


class Pair(NamedTuple):
    """The two images of one time stamp: their places in the lists of names, and what names say."""

    s1: int
    s2: int
    fields: dict[str, Any]


def pair(
    file: object, location: str, s1: Sequence[str], s2: Sequence[str], index: int, s2_file: object = None
) -> Pair:
    """The `index`-th pair of a location, by date.

    Args:
      file: where the names stand, for the error.
      location: the name of the location.
      s1: names of its Sentinel-1 images, in any order.
      s2: names of its Sentinel-2 images.
      index: which pair.
      s2_file: where the names of Sentinel-2 stand, if elsewhere.

    Raises:
      RecordError: other names, not equally many of both sensors, two images of a sensor with one time, or a
        pair that lies further apart than a season allows.
    """
    s1_times, s2_times = _times(file, location, s1), _times(s2_file or file, location, s2)
    if len(s1) != len(s2):
        raise _error(file, location, f'{len(s1)} images of Sentinel-1, {len(s2)} of Sentinel-2')
    i, j = (sorted(range(len(times)), key=times.__getitem__)[index] for times in (s1_times, s2_times))
    days = abs(s1_times[i] - s2_times[j]) / 86_400
    if days > MOST_DAYS:
        raise _error(file, location, f'{s1[i]} and {s2[j]} lie {days:.0f} days apart')
    fields = {
        'sample_id': f'{location}_{index}',
        'scene': location,
        'time_index': np.uint8(index),
        's1_name': s1[i],
        's2_name': s2[j],
        's1_time': s1_times[i],
        's2_time': s2_times[j],
        'tile': parse_name(s2[j]).tile,
    }
    return Pair(i, j, fields)


def _times(file: object, location: str, names: Sequence[str]) -> list[int]:
    try:
        times = [parse_name(name).time for name in names]
    except ValueError as error:
        raise _error(file, location, str(error)) from error
    if len(set(times)) < len(times):
        raise _error(file, location, 'two images of a sensor have the same time')
    return times


def _error(file: object, location: str, message: str) -> RecordError:
    return RecordError(file, f'dates of location {location}', message, 'download it again, or leave it out')


def check_decibel(file: object, image: np.ndarray) -> None:
    """Raises RecordError for Sentinel-1 that is not in dB: there, most of any scene is negative."""
    if (image < 0).any():
        return
    values = image[np.isfinite(image) & (image != 0)]
    if values.size:
        raise RecordError(
            file,
            's1 (VV, VH)',
            f'no negative value (from {values.min():.4g} to {values.max():.4g}): not dB',
            'linear power or digital numbers? Convert with 10 log10(power), or download the original',
        )
