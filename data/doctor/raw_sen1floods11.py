"""Sen1Floods11, hand-labelled: a folder for each kind of file, and lists of the chips of each split."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..sen1floods11.chips import find
from ..sen1floods11.images import DATA, KINDS, Chip
from ..sen1floods11.schema import NO_LABEL, SCHEMA
from . import tiffs
from .evidence import Split
from .raw import SAMPLE, Item, RawListing, RawPart, find_folder, partner_finding, spread

_S1 = re.compile(KINDS['s1'])
VALID = (NO_LABEL, *SCHEMA.maps['water'].values)


def archive(paths: Sequence[Path]) -> RawListing | None:
    """The archive at or below a path; None if there is no folder of its Sentinel-1 chips."""
    parent = next((folder for path in paths if (folder := find_folder(path, _S1, len(DATA.parts)))), None)
    if parent is None or parent.parts[-len(DATA.parts) :] != DATA.parts:
        return None
    root = parent.parents[len(DATA.parts) - 1]
    chips, _ = find(root)
    chosen = spread(chips, SAMPLE)
    items = [Item(chip.scene, _parts(root, chip)) for chip in chosen]
    by_split: dict[str, list[str]] = {}
    for chip in chips:
        by_split.setdefault(chip.split or 'in no list', []).append(chip.scene)
    labels = [_values(chip.file(root, 'label')) for chip in chosen]
    lonely = [item.name for item in items if len(item.parts) < 2]
    return RawListing(
        'Sen1Floods11, hand-labelled, raw',
        items,
        SCHEMA.groups,
        SCHEMA.products,
        total=len(chips),
        splits={name: Split(len(ids), np.array(ids)) for name, ids in sorted(by_split.items())},
        labels={'water': [values for values in labels if values is not None]},
        classes={'water': VALID},
        findings=tuple(partner_finding(lonely, len(chosen))),
    )


def _parts(root: Path, chip: Chip) -> dict[str, list[RawPart]]:
    files = {kind: chip.file(root, kind) for kind in ('s1', 's2')}
    return {
        kind: [RawPart(file, SCHEMA.groups[kind].bands)] for kind, file in files.items() if file.is_file()
    }


def _values(file: Path) -> tuple[int, ...] | None:
    """The values of a label; None without a readable file."""
    try:
        with tiffs.opened(file) as dataset:
            return tuple(np.unique(dataset.read(1)).tolist())
    except OSError:
        return None
