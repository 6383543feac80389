"""Names and times of BigEarthNet-MM patches, with their quirks.

    S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48      Sentinel-1: time, MGRS tile, cell H_V
    S2A_MSIL2A_20170613T101031_87_48                  Sentinel-2: time, cell H_V, no tile
    S2B_MSIL2A_20170924T93020_69_24                   the hour lost its leading zero (69,866 names)
    S2B_MSIL2A_20180204T94161_57_38                   ... and 13,599 of those have 60 seconds or more

The times in the JSON files are the reliable ones; a name is read for its tile and cell.
"""

import datetime
import re
from typing import NamedTuple

_S1 = re.compile(r'S1[AB]_IW_GRDH_1SDV_(\d{8}T\d{5,6})_(\d{1,2}[A-Z]{3})_(\d+)_(\d+)')
_S2 = re.compile(r'S2[AB]_MSIL2A_(\d{8}T\d{5,6})_(\d+)_(\d+)')
_STAMP = re.compile(r'(\d{4})(\d{2})(\d{2})T(\d{1,2})(\d{2})(\d{2})')
_TEXT = re.compile(r'(\d{4})-(\d{2})-(\d{2})[T ](\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.\d+)?Z?')


class PatchName(NamedTuple):
    """What the name of a patch says."""

    time: int  # Unix seconds, UTC
    tile: str  # MGRS tile; '' in Sentinel-2 names
    cell: tuple[int, int]  # H (column) and V (row) within the Sentinel-2 tile


def parse_name(name: str) -> PatchName:
    """Parses the name of a Sentinel-1 or Sentinel-2 patch; raises ValueError for any other name."""
    if match := _S1.fullmatch(name):
        stamp, tile, h, v = match.groups()
        return PatchName(parse_time(stamp), tile, (int(h), int(v)))
    if match := _S2.fullmatch(name):
        stamp, h, v = match.groups()
        return PatchName(parse_time(stamp), '', (int(h), int(v)))
    raise ValueError(f'{name!r} is not the name of a BigEarthNet-MM patch')


def is_s2_name(text: str) -> bool:
    """Whether a text has the form of the name of a Sentinel-2 patch; quicker than parsing it."""
    return _S2.fullmatch(text) is not None


def parse_time(text: str) -> int:
    """Unix seconds of a UTC time as names (20170613T93020) and JSON files (2017-06-13 10:10:31) write it.

    The date and the time may be parted by a blank or a T. Seconds from 60 on run into the next minute.
    Raises ValueError for anything else.
    """
    match = _STAMP.fullmatch(text) or _TEXT.fullmatch(text)
    if not match:
        raise ValueError(f'{text!r} is not a time such as 2017-06-13 10:10:31')
    year, month, day, hour, minute, second = map(int, match.groups())
    start = datetime.datetime(year, month, day, hour, minute, tzinfo=datetime.UTC)
    return int(start.timestamp()) + second
