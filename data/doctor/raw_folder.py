"""A user's own GeoTIFFs: one, a pair, or folders of them, paired by their names without sensor and band."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusmae_jax.errors import InputError
from fusmae_jax.geo import raster
from fusmae_jax.geo.bands import SKIP, by_description

from ..paired_folder.entries import EXTENSIONS
from . import names, tiffs, windows
from .findings import Finding, share
from .raw import LISTED, SAMPLE, Item, RawListing, partner_finding, spread, unreadable
from .tiffs import Header


def single(files: Sequence[Path]) -> RawListing:
    """One GeoTIFF, or a pair of the two sensors; raises InputError if they are neither."""
    headers: dict[str, list[Header]] = {}
    for file in files:
        try:
            modalities = tiffs.modalities_of(file)
            heads = {modality: _header(file, modality) for modality in modalities}
        except OSError as error:
            raise InputError(f'{file}: cannot be read ({error}); write the GeoTIFF again') from error
        if not modalities:
            raise InputError(
                f'{file}: neither its bands nor its name say whether this is Sentinel-1 or Sentinel-2; '
                'describe the bands (VV, VH or B02, ...), or put S1 or S2 into the name'
            )
        for modality, head in heads.items():
            if modality in headers:
                other = headers[modality][0].file
                raise InputError(f'{file}: of the same sensor as {other}; give one file of each sensor')
            headers[modality] = [head]
    kind = 'a pair of GeoTIFFs' if len(files) > 1 else 'a GeoTIFF'
    name = files[0].stem
    return _listing(kind, {name: headers}, windows.items(name, headers, SAMPLE), 1, [])


def archive(paths: Sequence[Path]) -> RawListing | None:
    """GeoTIFFs in one folder or two, with all folders in them; None if there is none."""
    files = list(itertools.islice(_tiffs(paths), LISTED + 1))
    if not files:
        return None
    patches, unknown = _patches(files[:LISTED])
    both = {modality for parts in patches.values() for modality in parts} == {'s1', 's2'}
    lonely = [name for name, parts in patches.items() if both and len(parts) < 2]
    chosen, broken, left = spread(sorted(patches), SAMPLE), list[str](), list[Path]()
    headers = {name: _headers(patches[name], broken, left) for name in chosen}
    items = [i for name in chosen for i in windows.items(name, headers[name], max(1, SAMPLE // len(chosen)))]
    total = len(patches) if len(files) <= LISTED else None
    findings = [
        *partner_finding(lonely, len(patches)),
        *unreadable(broken, len(chosen)),
        *_unknown(unknown, patches, len(files)),
        *_left(left),
    ]
    return _listing('a folder of GeoTIFFs', headers, items, total, findings)


Patches = dict[str, dict[str, list[Path]]]  # name -> modality -> files


def _patches(files: Sequence[tuple[Path, Path]]) -> tuple[Patches, list[Path]]:
    """The patches that files belong to, and the files of no sensor that is known."""
    named = {file: _by_folder(root, file) for root, file in files}
    # Beside folders that name their sensor, one channel is an elevation or a label as well as VV.
    guess = not any(named.values())
    patches: Patches = {}
    unknown = []
    for root, file in files:
        try:
            modalities = (named[file],) if named[file] else tiffs.modalities_of(file, guess)
        except OSError:
            modalities = (sensor,) if (sensor := names.sensor_in(file.stem)) else ()
        for modality in modalities:
            patches.setdefault(_key(root, file), {}).setdefault(modality, []).append(file)
        if not modalities:
            unknown.append(file)
    return patches, unknown


def _unknown(files: Sequence[Path], patches: Patches, total: int) -> Iterator[Finding]:
    """Labels and elevations lie in folders of their own; what lies beside images may be an image."""
    if not files:
        return
    images = {file.parent for parts in patches.values() for paths in parts.values() for file in paths}
    folders = sorted({file.parent.name for file in files})
    yield Finding(
        'file.sensor',
        'note' if images and not images & {file.parent for file in files} else 'warning',
        'Files of no sensor that is known were left out',
        f'{share(len(files), total)} files, such as {files[0].name}, in {", ".join(folders[:8])}',
        'if they are images: describe their bands (VV, VH or B02, ...), or put S1 or S2 into the names',
        needs='metadata',
    )


def _left(files: Sequence[Path]) -> Iterator[Finding]:
    if files:
        folders = sorted({file.parent.name for file in files})
        yield Finding(
            'file.products',
            'note',
            'Further images of the same bands and ground were left out',
            f'{len(files):,} files, such as {files[0].name}, in {", ".join(folders[:8])}',
            'look at other products (S1GRD beside S1RTC, S2L1C beside S2L2A) by naming their folders',
            needs='metadata',
        )


def _listing(
    kind: str,
    headers: Mapping[str, Mapping[str, Sequence[Header]]],
    items: Sequence[Item],
    total: int | None,
    findings: Sequence[Finding],
) -> RawListing:
    about, more = {}, list[Finding]()
    for modality in ('s1', 's2'):
        heads = [head for files in headers.values() for head in files.get(modality, ())]
        if heads:
            about[modality] = tiffs.declared(heads, modality)
            more += [*check_headers(heads, modality), *tiffs.findings(heads, modality)]
            if modality == 's2' and offsets(heads):
                # None of them holds for all: the values are judged as they are stored.
                about[modality] = dataclasses.replace(about[modality], offset={})
    return RawListing(kind, items, about=about, total=total, findings=(*findings, *more))


def _header(file: Path, modality: str) -> Header:
    with tiffs.opened(file) as dataset:
        described = by_description(raster.descriptions(dataset), modality)
        band = names.band_in(file) if dataset.count == 1 else ''
        # Channels that are no band, such as an angle, would be judged like one.
        bands = (band,) if band else tuple(name or SKIP for name in described) if any(described) else ()
        head = tiffs.header(file, dataset, modality, bands)
    return head._replace(named=bool(bands))


def _headers(
    files: Mapping[str, Sequence[Path]], broken: list[str], left: list[Path]
) -> dict[str, list[Header]]:
    """The headers of a patch; of several files with one band, those in the last folder by name."""
    headers: dict[str, list[Header]] = {}
    for modality, paths in files.items():
        bands: set[str] = set()
        for file in sorted(sorted(paths), key=lambda file: str(file.parent), reverse=True):
            try:
                head = _header(file, modality)
            except OSError as error:
                broken.append(str(error))
                continue
            if bands & {*head.bands}:
                left.append(file)
                continue
            bands |= {*head.bands}
            headers.setdefault(modality, []).append(head)
    return headers


def _tiffs(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    for root in paths:
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                if name.lower().endswith(EXTENSIONS):
                    yield root, Path(folder, name)


def _by_folder(root: Path, file: Path) -> str:
    """The sensor by the folders between the root and the file, the nearest first."""
    folders = reversed(file.relative_to(root.parent).parts[:-1])
    return next((sensor for folder in folders if (sensor := names.sensor_in(folder))), '')


def _key(root: Path, file: Path) -> str:
    """The same for all files of a patch: name without sensor and band, folders without those of sensors."""
    folders = [part for part in file.relative_to(root).parts[:-1] if not names.sensor_in(part)]
    return '/'.join([*folders, names.stem(file)])


TITLES = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}
KINDS: Mapping[str, Callable[[Header], Any]] = {
    'type': lambda head: head.dtype,
    'pixel size': lambda head: round(abs(head.grid.step_x), 6),
    'scale': lambda head: head.scales,
    'nodata value': lambda head: str(head.nodata),  # NaN is not equal to itself
}


def check_headers(headers: Sequence[Header], modality: str) -> Iterator[Finding]:
    """Findings about the files of one sensor."""
    yield from [_guessed(modality, head) for head in headers if not head.named][:1]
    yield from [_stacked(modality, head) for head in headers if _others(head)][:1]
    yield from _unlike(modality, headers)
    if modality == 's2':
        yield from _offsets(headers)


def _guessed(modality: str, head: Header) -> Finding:
    return Finding(
        f'{modality}.names',
        'note',
        f'{TITLES[modality]}: files do not name their bands',
        f'{head.file.name}: taken for {", ".join(head.bands)} by their number',
        'describe the bands in the files (rio edit-info --bidx 1 --description VV FILE.tif), or '
        'name the files after them',
        needs='metadata',
    )


def _others(head: Header) -> list[str]:
    """The channels that are not looked at: those of the other sensor, and those that are no band."""
    return [
        text.strip() or f'channel {number}'
        for number, (band, text) in enumerate(zip(head.whole.bands, head.whole.descriptions), 1)
        if not band
    ]


def _stacked(modality: str, head: Header) -> Finding:
    setting = ', '.join(f"'{band or SKIP}'" for band in head.whole.bands)
    return Finding(
        f'{modality}.stack',
        'note',
        f'{TITLES[modality]}: files hold other channels too',
        f'{head.file.name}: {", ".join(head.bands)}, and not looked at for this sensor: '
        f'{", ".join(_others(head))}',
        f'for convert: {modality}_bands="({setting})"; the same for encode as config.{modality}.bands',
        needs='metadata',
    )


def _unlike(modality: str, headers: Sequence[Header]) -> Iterator[Finding]:
    """Files of the same bands have to be alike; those of native resolutions have other bands each."""
    for what, of in KINDS.items():
        cases: dict[tuple[str, ...], dict[Any, str]] = {}
        for head in headers:
            cases.setdefault(head.bands, {}).setdefault(of(head), head.file.name)
        if several := next((case for case in cases.values() if len(case) > 1), None):
            yield Finding(
                f'{modality}.unlike',
                'warning',
                f'{TITLES[modality]}: files differ in their {what}',
                ', '.join(f'{name}: {value}' for value, name in [*several.items()][:4]),
                'write them alike, or convert them apart; `convert` takes no such mixture',
                needs='metadata',
            )


def _offsets(headers: Sequence[Header]) -> Iterator[Finding]:
    if stated := offsets(headers):
        yield Finding(
            's2.offset_tags',
            'error',
            'Sentinel-2: files state different offsets',
            ', '.join(
                f'{value:g} in {len(some):,} files, such as {some[0]}' for value, some in stated.items()
            ),
            'convert them apart, or give each its offset in the table of `convert`',
            needs='metadata',
        )


def offsets(headers: Sequence[Header]) -> dict[float, list[str]]:
    """Offset -> files of Sentinel-2, if several are stated; else nothing."""
    cases: dict[float, list[str]] = {}
    for head in headers:
        if (stated := tiffs.stated_offset(head)) is not None:
            cases.setdefault(stated, []).append(head.file.name)
    return cases if len(cases) > 1 else {}
