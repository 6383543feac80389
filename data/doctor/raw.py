"""Raw archives: a listing of some patches, and the evidence that their files give.

A layout (`raw_*.py`) only says which files belong together and what is published about them; the reading is
the same for all.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusmae_jax.input.contract import Group
from fusmae_jax.sensors import Product

from . import tiffs
from .evidence import Declared, Evidence, Grid, Sensor, Split, declared
from .findings import Finding, share

SAMPLE = 128  # patches whose pixels are read
LISTED = 4096  # names that are read from a folder of patches; an archive has hundreds of thousands


Loaded = tuple[Mapping[str, Mapping[str, np.ndarray]], Mapping[str, Mapping[str, Grid]]]  # images, grids


class RawPart(NamedTuple):
    """A file of a patch, and the bands of its channels; () takes them from the file."""

    file: Path
    bands: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Item:
    """One patch: its files by sensor, or its images where they do not lie in GeoTIFFs."""

    name: str
    parts: Mapping[str, Sequence[RawPart]] = dataclasses.field(default_factory=dict)
    load: Callable[[], Loaded] | None = None
    sensors: tuple[str, ...] = ()  # that `load` gives


@dataclasses.dataclass(frozen=True)
class RawListing:
    """What a layout knows of an archive."""

    kind: str
    items: Sequence[Item]
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)  # as published
    products: Mapping[str, Product] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Declared] = dataclasses.field(default_factory=dict)  # what a user's files say
    total: int | None = None  # None: not counted
    splits: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    findings: Sequence[Finding] = ()
    slack: float = 0.5


def gather(path: str, listing: RawListing) -> Evidence:
    """Reads the patches of a listing; files that cannot be read become findings."""
    modalities = [m for m in ('s1', 's2') if m in listing.about or any(_has(i, m) for i in listing.items)]
    headers: dict[str, list[tiffs.Header]] = {modality: [] for modality in modalities}
    broken: list[str] = []
    loaded = [_load(item, headers, broken) for item in listing.items]
    sensors = {
        m: Sensor(
            m,
            _about(m, headers[m], listing),
            tuple(images.get(m, {}) for images, _ in loaded),
            tuple(grids.get(m, {}) for _, grids in loaded),
        )
        for m in modalities
    }
    return Evidence(
        path,
        listing.kind,
        sensors=sensors,
        names=tuple(item.name for item in listing.items),
        total=listing.total,
        splits=listing.splits,
        labels=listing.labels,
        classes=listing.classes,
        findings=(*listing.findings, *unreadable(broken, len(listing.items))),
        slack=listing.slack,
    )


def _has(item: Item, modality: str) -> bool:
    return modality in (item.sensors or item.parts)


def _load(item: Item, headers: Mapping[str, list[tiffs.Header]], broken: list[str]) -> Loaded:
    if item.load is not None:
        try:
            return item.load()
        except (OSError, ValueError) as error:
            broken.append(str(error))
            return {}, {}
    images: dict[str, dict[str, np.ndarray]] = {}
    grids: dict[str, dict[str, Grid]] = {}
    for modality, parts in item.parts.items():
        for part in parts:
            try:
                head, pixels = tiffs.load(part.file, modality, part.bands)
            except OSError as error:
                broken.append(str(error))
                continue
            headers[modality].append(head)
            images.setdefault(modality, {}).update(pixels)
            grids.setdefault(modality, {}).update(dict.fromkeys(head.bands, head.grid))
    return images, grids


def _about(modality: str, headers: Sequence[tiffs.Header], listing: RawListing) -> Declared:
    if modality in listing.about:
        return listing.about[modality]
    from_files = tiffs.declared(headers, modality)
    about = declared(modality, listing.groups, listing.products, from_files.baselines)
    extra = tuple(band for band in from_files.bands if band not in about.bands)
    return dataclasses.replace(about, bands=about.bands + extra)


def unreadable(broken: Sequence[str], patches: int) -> Iterator[Finding]:
    """The finding about files that cannot be read."""
    if broken:
        yield Finding(
            'file.unreadable',
            'error',
            'Files cannot be read in full',
            f'{len(broken):,} files in {patches:,} patches; {broken[0]}',
            'truncated or damaged: unpack or download them again',
        )


def find_folder(root: Path, child: re.Pattern[str], depth: int = 2, most: int = 64) -> Path | None:
    """The folder at or below `root` that holds a folder or file whose name fits; folders near by first."""
    # Level by level, and few entries of each folder: an archive has hundreds of thousands of them.
    level = [root]
    for _ in range(depth + 1):
        below: list[Path] = []
        for folder in level:
            try:
                with os.scandir(folder) as entries:
                    for entry in itertools.islice(entries, most):
                        if child.fullmatch(entry.name):
                            return folder
                        if entry.is_dir():
                            below.append(Path(entry.path))
            except OSError:
                continue
        level = sorted(below)[:most]
    return None


def names_in(folder: Path, fits: re.Pattern[str], most: int = LISTED) -> tuple[list[str], bool]:
    """Up to `most` names in a folder, sorted, and whether there are no more."""
    with os.scandir(folder) as entries:
        # One more than wanted tells whether that is all, without a listing to the end.
        names = list(itertools.islice((e.name for e in entries if fits.fullmatch(e.name)), most + 1))
    return sorted(names[:most]), len(names) <= most


def spread(values: Sequence[Any], most: int) -> list[Any]:
    """Up to `most` of the values, evenly from the first to the last."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def partner_finding(lonely: Sequence[str], total: int) -> Iterator[Finding]:
    """The finding about patches whose other half is missing."""
    if lonely:
        yield Finding(
            'pair.partner',
            'error' if 2 * len(lonely) > total else 'warning',
            'Patches have no partner',
            f'{share(len(lonely), total)} patches, such as {lonely[0]}',
            'unpack both archives in full, or convert with on_error=skip',
            needs='metadata',
        )
