"""SEN12MS: season folders, a folder for each scene and sensor, a GeoTIFF for each image."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..sen12ms.labels import UNCLASSIFIED
from ..sen12ms.scenes import SEASONS, Scene, official_split
from ..sen12ms.schema import GROUPS, SCHEMA
from . import tiffs
from .evidence import Split
from .findings import Finding
from .raw import SAMPLE, Item, RawListing, RawPart, find_folder, partner_finding, spread

_SEASON = re.compile('|'.join(SEASONS))
_FILE = re.compile(r'(ROIs\d{4}_[a-z]+)_s2_(\d+)_p(\d+)\.tif')
VALID = (*range(1, 18), *UNCLASSIFIED)  # of layer 1 of a land-cover image


def archive(paths: Sequence[Path]) -> RawListing | None:
    """The archive below a path; None if there is no season folder."""
    root = next((candidate for path in paths if (candidate := find_folder(path, _SEASON))), None)
    if root is None:
        return None
    files = _files(root)
    chosen = spread(files, SAMPLE)
    items, lonely = [], []
    for file in chosen:
        partner = _member(file, 's1')
        s1 = {'s1': [RawPart(partner, GROUPS['s1'].bands)]} if partner.is_file() else {}
        lonely += [] if s1 else [file.stem]
        items.append(Item(file.stem, {**s1, 's2': [RawPart(file, GROUPS['s2'].bands)]}))
    splits: dict[str, list[str]] = {}
    for file in files:
        if match := _FILE.fullmatch(file.name):
            splits.setdefault(official_split(Scene(match[1], int(match[2]))), []).append(file.stem)
    labels = [_cover(_member(file, 'lc')) for file in chosen]
    return RawListing(
        'SEN12MS, raw',
        items,
        GROUPS,
        SCHEMA.products,
        total=len(files),
        splits={name: Split(len(ids), np.array(ids)) for name, ids in sorted(splits.items())},
        labels={'land cover': [label for label in labels if label is not None]},
        classes={'land cover': VALID},
        findings=(*partner_finding(lonely, len(chosen)), *_season_findings(files)),
    )


def _files(root: Path) -> list[Path]:
    """All Sentinel-2 images, by season and scene; 180,662 in some 250 folders, which is quick."""
    files = []
    for season in SEASONS:
        for folder in sorted((root / season).glob('s2_*')):
            files += [file for file in sorted(folder.iterdir()) if _FILE.fullmatch(file.name)]
    return files


def _member(file: Path, kind: str) -> Path:
    """The image of another kind that belongs to a Sentinel-2 image."""
    folder = file.parent.name.replace('s2_', f'{kind}_', 1)
    return file.parent.with_name(folder) / file.name.replace('_s2_', f'_{kind}_', 1)


def _cover(file: Path) -> tuple[int, ...] | None:
    """The values of the IGBP layer; None without a readable file."""
    try:
        with tiffs.opened(file) as dataset:
            return tuple(np.unique(dataset.read(1)).tolist())
    except OSError:
        return None


def _season_findings(files: Sequence[Path]) -> list[Finding]:
    there = {file.parent.parent.name for file in files}
    absent = [season for season in SEASONS if season not in there]
    if not absent:
        return []
    return [
        Finding(
            'split.absent',
            'note',
            'Not all seasons of the archive are there',
            f'without {", ".join(absent)}',
            needs='metadata',
        )
    ]
