"""The published lists: official splits, snow, cloud, pairs with country and season.

They ship as compressed tables inside the package bigearthnet-common and are read as package resources.
(The modules `base` and `sets` of that package cannot be imported beside fastcore 1.8 or newer.)
"""

import bz2
import functools
import importlib.resources
import io
import tarfile
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, NamedTuple

from fusmae_jax.errors import InputError

PACKAGE = 'bigearthnet_common'
SPLITS = ('train', 'val', 'test')
LISTS = {
    'train': 'train.csv.bz2',
    'val': 'val.csv.bz2',
    'test': 'test.csv.bz2',
    'snow': 'patches_with_seasonal_snow.csv.bz2',
    'cloud': 'patches_with_cloud_and_shadow.csv.bz2',
    'no_19_class': 'patches_with_no_19_class_targets.csv.bz2',
}
PAIRS = 's1_s2_name_country_season.csv.bz2'
EXAMPLES = {'s1': 'BigEarthNet-S1-Example', 's2': 'BigEarthNet-S2-Example'}
# Python before 3.11.4 (Debian 12 has 3.11.2) knows no filter.
SAFELY: dict[str, Any] = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}


class Row(NamedTuple):
    """One line of the published table of pairs."""

    s1_name: str
    s2_name: str
    country: str
    season: str


def _resource(name: str) -> bytes:
    try:
        return (importlib.resources.files(PACKAGE) / name).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise InputError(
            f'{PACKAGE}/{name}: not found; it comes with `pip install bigearthnet-common==2.8.0`'
        ) from error


@functools.cache
def listed(name: str) -> frozenset[str]:
    """Names of the Sentinel-2 patches on one of the `LISTS`."""
    return frozenset(bz2.decompress(_resource(LISTS[name])).decode().split())


@functools.cache
def _table() -> str:
    return bz2.decompress(_resource(PAIRS)).decode()


def rows(s1_names: Set[str], s2_names: Set[str]) -> list[Row]:
    """The published pairs with either member among the given names.

    The table has 590,326 rows; only the wanted ones become objects, so that six pairs cost little.
    """
    found = []
    for line in _lines(s1_names | s2_names):
        row = Row(*line.split(','))
        if row.s1_name in s1_names or row.s2_name in s2_names:
            found.append(row)
    return found


def _lines(names: Set[str]) -> Iterable[str]:
    """Lines of the table that may hold one of the names: all, or a search for each name if they are few."""
    table = _table()
    if len(names) > 50:
        return table.splitlines()[1:]
    places = [at for name in names if (at := table.find(f'{name},')) >= 0]
    return sorted({table[table.rfind('\n', 0, at) + 1 : table.find('\n', at)] for at in places})


def split_of(s2_name: str) -> str:
    """'train', 'val' or 'test' of the official lists, else 'rest'."""
    return next((split for split in SPLITS if s2_name in listed(split)), 'rest')


def unpack_examples(folder: Path) -> tuple[Path, Path]:
    """Unpacks the six real pairs that ship with the package; returns the S1 and the S2 folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES.values():
        if not (folder / name).is_dir():
            with tarfile.open(fileobj=io.BytesIO(_resource(f'{name}.tar.bz2'))) as archive:
                archive.extractall(folder, **SAFELY)
    return folder / EXAMPLES['s1'], folder / EXAMPLES['s2']
