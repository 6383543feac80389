"""BigEarthNet, version 1 (two flat folders of patches) and 2 (folders of products, a metadata table)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError

from ..bigearthnet_mm import schema as v1
from ..bigearthnet_mm.labels import CLASSES_19, CLASSES_43
from ..bigearthnet_mm.lists import parse_name, split_of
from ..bigearthnet_v2 import schema as v2
from ..records import RecordError, inside
from .evidence import Split, solar_hour
from .raw import (
    LISTED,
    SAMPLE,
    Item,
    RawListing,
    RawPart,
    find_folder,
    names_in,
    partner_finding,
    spread,
)

_S1 = re.compile(r'S1[AB]_IW_GRDH_1SDV_\d{8}T\d{5,6}_\w{5}_\d+_\d+')
_S2 = re.compile(r'S2[AB]_MSIL2A_\d{8}T\d{5,6}_\d+_\d+')
_S1_PRODUCT = re.compile(r'S1[AB]_IW_GRDH_1SDV_\d{8}T\d{6}')
_S2_PRODUCT = re.compile(r'S2[AB]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\w{5}')
_ROOT = re.compile(r'BigEarthNet-S[12]')
METADATA = 'metadata.parquet'
JSON_FILES = 512  # metadata files of patches that are read


def version_1(paths: Sequence[Path]) -> RawListing | None:
    """The archive in one folder, or its two folders; None if the names are not those of version 1."""
    s1, s2 = (_first(paths, pattern) for pattern in (_S1, _S2))
    if s1 is None and s2 is None:
        return None
    if s1 is None or s2 is None:
        root, sensor = (s2, 's2') if s1 is None else (s1, 's1')
        assert root is not None
        names, complete = names_in(root, _S2 if s1 is None else _S1)
        items = [Item(name, {sensor: _bands(root / name)}) for name in spread(names, SAMPLE)]
        return RawListing(
            f'BigEarthNet-MM v1, raw, {"Sentinel-2" if s1 is None else "Sentinel-1"} alone',
            items,
            v1.GROUPS,
            v1.SCHEMA.products,
            total=len(names) if complete else None,
        )
    names, complete = names_in(s1, _S1)
    about = {name: _metadata(s1 / name) for name in spread(names, JSON_FILES)}
    partners = {name: values.get('corresponding_s2_patch', '') for name, values in about.items()}
    known = [name for name, partner in partners.items() if _there(s2, partner)]
    chosen = spread(known, SAMPLE)
    labels = [tuple(values.get('labels', ())) for values in about.values()]
    return RawListing(
        'BigEarthNet-MM v1, raw',
        [Item(partners[n], {'s1': _bands(s1 / n), 's2': _bands(s2 / partners[n])}) for n in chosen],
        v1.GROUPS,
        v1.SCHEMA.products,
        total=len(names) if complete else None,
        splits=_official(names if complete else list(about), partners),
        labels={'labels': labels},
        classes={'labels': CLASSES_43},
        findings=tuple(partner_finding([name for name in about if name not in known], len(about))),
    )


def _first(paths: Sequence[Path], pattern: re.Pattern[str]) -> Path | None:
    return next((folder for path in paths if (folder := find_folder(path, pattern))), None)


def _bands(folder: Path) -> list[RawPart]:
    """The files of a patch, one a band, whatever there is."""
    files = sorted(folder.glob('*.tif'))
    return [RawPart(file, (file.stem.removeprefix(f'{folder.name}_'),)) for file in files]


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / f'{folder.name}_labels_metadata.json').read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _official(s1_names: Sequence[str], partners: dict[str, str]) -> dict[str, Split]:
    """The official splits of the patches whose partner is known; only these are told apart."""
    by_split: dict[str, list[str]] = {}
    try:
        for name in s1_names:
            if partners.get(name):
                by_split.setdefault(split_of(partners[name]), []).append(name)
    except InputError:
        by_split = {'all': list(s1_names)}
    return {
        split: Split(len(names), np.array([partners[n] for n in names]), s1_hours=_hours(names))
        for split, names in sorted(by_split.items())
    }


def _hours(s1_names: Sequence[str]) -> np.ndarray:
    """Local solar time by the time and the MGRS tile in the names of Sentinel-1 patches."""
    seconds, zones = [], []
    for name in s1_names:
        try:
            parsed = parse_name(name)
        except ValueError:
            continue
        seconds.append(parsed.time)
        zones.append(32600 + int(re.sub(r'\D', '', parsed.tile) or 0))
    return solar_hour(np.array(seconds, np.int64), np.array(zones, np.int64))


def version_2(paths: Sequence[Path]) -> RawListing | None:
    """The archive with BigEarthNet-S1, BigEarthNet-S2 and metadata.parquet; None if there is none."""
    s1, s2 = (_first(paths, pattern) for pattern in (_S1_PRODUCT, _S2_PRODUCT))
    if s1 is None or s2 is None:
        return None
    table = next((f for p in [*paths, s2.parent] if (f := p / METADATA).is_file()), None)
    if table is None:
        raise InputError(
            f'{s2.parent}: {METADATA} is missing beside {s2.name}; it says which patches are pairs'
        )
    columns = _read(table)
    ids, s1_names = columns['patch_id'], columns['s1_name']
    by_split: dict[str, list[int]] = {}
    for index, split in enumerate(columns['split']):
        by_split.setdefault(str(split), []).append(index)
    order = spread(range(len(ids)), 4 * SAMPLE)
    there, lonely = list[int](), list[int]()
    for index in order:
        complete = _there(s1, _patch(s1_names[index], 3)) and _there(s2, _patch(ids[index], 2))
        (there if complete else lonely).append(index)
    return RawListing(
        'BigEarthNet v2, raw',
        [_pair(s1, s2, s1_names[index], ids[index]) for index in spread(there, SAMPLE)],
        v2.SCHEMA.groups,
        v2.SCHEMA.products,
        total=len(ids),
        splits={name: _table_split(rows, ids, s1_names) for name, rows in by_split.items()},
        labels={'labels': columns['labels']},
        classes={'labels': CLASSES_19},
        findings=tuple(partner_finding([ids[i] for i in lonely], len(order))),
    )


def _table_split(rows: Sequence[int], ids: Sequence[str], s1_names: Sequence[str]) -> Split:
    return Split(
        len(rows),
        np.array([ids[i].encode() for i in rows], np.bytes_),
        s1_hours=_hours([s1_names[i] for i in spread(rows, LISTED)]),
    )


def _there(root: Path, name: str) -> bool:
    """Whether there is a folder of that name, and inside the archive."""
    try:
        return inside(root, name).is_dir()
    except RecordError:
        return False


def _patch(name: str, fields: int) -> str:
    """The folder of a patch in its archive: its product is its name without tile and cell, or cell alone."""
    return f'{name.rsplit("_", fields)[0]}/{name}'


def _pair(s1: Path, s2: Path, s1_name: str, s2_name: str) -> Item:
    return Item(s2_name, {'s1': _bands(s1 / _patch(s1_name, 3)), 's2': _bands(s2 / _patch(s2_name, 2))})


def _read(table: Path) -> dict[str, list[Any]]:
    """The columns of the metadata table; labels of all rows only if one of them is not known."""
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_table(table, columns=['patch_id', 's1_name', 'split', 'labels'])
        labels = columns.column('labels').combine_chunks()
        names = labels.flatten().unique().to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise InputError(f'{table}: cannot be read ({error}); download the metadata table again') from error
    if set(names) <= set(CLASSES_19):
        labels = labels.slice(0, LISTED)
    return {**columns.drop_columns('labels').to_pydict(), 'labels': labels.to_pylist()}
