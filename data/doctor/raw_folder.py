"""A user's own GeoTIFFs: one, a pair, or folders of them, paired by their names without sensor and band."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data.doctor import names, tiffs, windows
from data.doctor.findings import Finding
from data.doctor.raw import LISTED, SAMPLE, Item, Listing, partner_finding, spread, unreadable
from data.doctor.tiffs import Header
from data.paired_folder.entries import EXTENSIONS
from fusmae_jax.errors import InputError

TITLES = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}


def single(files: Sequence[Path]) -> Listing:
    """One GeoTIFF, or a pair of the two sensors; raises InputError if they are neither."""
    found: dict[str, list[Header]] = {}
    for file in files:
        try:
            modality = tiffs.modality_of(file)
            head = _header(file, modality)
        except OSError as error:
            raise InputError(f'{file}: cannot be read ({error}); write the GeoTIFF again') from error
        if not modality:
            raise InputError(
                f'{file}: neither its bands nor its name say whether this is Sentinel-1 or Sentinel-2; '
                'describe the bands (VV, VH or B02, ...), or put S1 or S2 into the name'
            )
        if modality in found:
            other = found[modality][0].file
            raise InputError(f'{file}: of the same sensor as {other}; give one file of each sensor')
        found[modality] = [head]
    kind = 'a pair of GeoTIFFs' if len(files) > 1 else 'a GeoTIFF'
    name = files[0].stem
    return _listing(kind, {name: found}, windows.items(name, found, SAMPLE), 1, [])


def archive(paths: Sequence[Path]) -> Listing | None:
    """GeoTIFFs in one folder or two, with all folders in them; None if there is none."""
    files = list(itertools.islice(_tiffs(paths), LISTED + 1))
    if not files:
        return None
    patches: dict[str, dict[str, list[Path]]] = {}
    unknown = []
    for root, file in files[:LISTED]:
        if modality := _modality(root, file):
            patches.setdefault(_key(root, file), {}).setdefault(modality, []).append(file)
        else:
            unknown.append(file.name)
    both = {modality for parts in patches.values() for modality in parts} == {'s1', 's2'}
    lonely = [name for name, parts in patches.items() if both and len(parts) < 2]
    chosen, broken = spread(sorted(patches), SAMPLE), list[str]()
    headers = {name: _headers(patches[name], broken) for name in chosen}
    items = [i for name in chosen for i in windows.items(name, headers[name], max(1, SAMPLE // len(chosen)))]
    total = len(patches) if len(files) <= LISTED else None
    findings = [
        *partner_finding([*lonely, *unknown], len(patches) + len(unknown)),
        *unreadable(broken, len(chosen)),
    ]
    return _listing('a folder of GeoTIFFs', headers, items, total, findings)


def _listing(
    kind: str,
    headers: Mapping[str, Mapping[str, Sequence[Header]]],
    items: Sequence[Item],
    total: int | None,
    findings: Sequence[Finding],
) -> Listing:
    about, unnamed = {}, []
    for modality in ('s1', 's2'):
        own = [head for files in headers.values() for head in files.get(modality, ())]
        if own:
            about[modality] = tiffs.declared(own, modality)
            unnamed += [_guessed(modality, head) for head in own if not head.named][:1]
    return Listing(kind, items, about=about, total=total, findings=(*findings, *unnamed))


def _header(file: Path, modality: str) -> Header:
    band = names.band_in(file)
    with tiffs.opened(file) as dataset:
        head = tiffs.header(file, dataset, modality, (band,) if band and dataset.count == 1 else ())
    return head._replace(named=head.named or head.bands == (band,))


def _headers(files: Mapping[str, Sequence[Path]], broken: list[str]) -> dict[str, list[Header]]:
    found: dict[str, list[Header]] = {}
    for modality, own in files.items():
        for file in own:
            try:
                found.setdefault(modality, []).append(_header(file, modality))
            except OSError as error:
                broken.append(str(error))
    return found


def _guessed(modality: str, head: Header) -> Finding:
    return Finding(
        f'{modality}.names',
        'note',
        f'{TITLES[modality]}: files do not name their bands',
        f'{head.file.name}: taken for {", ".join(head.bands)} by their number',
        'describe the bands in the files (`descriptions` in rasterio), or name the files after them',
        needs='metadata',
    )


def _tiffs(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    for root in paths:
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                if name.lower().endswith(EXTENSIONS):
                    yield root, Path(folder, name)


def _modality(root: Path, file: Path) -> str:
    """By the folders between the root and the file, the nearest first, or by the file itself."""
    for folder in reversed(file.relative_to(root.parent).parts[:-1]):
        if found := names.sensor_in(folder):
            return found
    try:
        return tiffs.modality_of(file)
    except OSError:
        return names.sensor_in(file.stem)


def _key(root: Path, file: Path) -> str:
    """The same for all files of a patch: name without sensor and band, folders without those of sensors."""
    folders = [part for part in file.relative_to(root).parts[:-1] if not names.sensor_in(part)]
    return '/'.join([*folders, names.stem(file)])
