"""Opening of paths as evidence: what lies there decides how it is opened."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts

from . import raw_bigearthnet, raw_folder, raw_geobench2, raw_sen1floods11, raw_sen12ms, raw_ssl4eo
from .evidence import Evidence
from .open_set import open_set
from .raw import RawListing, gather

# The last one takes any GeoTIFF, so it comes last.
LAYOUTS: tuple[Callable[[Sequence[Path]], RawListing | None], ...] = (
    raw_bigearthnet.version_2,
    raw_bigearthnet.version_1,
    raw_sen12ms.archive,
    raw_sen1floods11.archive,
    raw_ssl4eo.version_1_1,
    raw_ssl4eo.version_1_0,
    raw_folder.archive,
)
KNOWN = (
    'the folder of a raw archive (BigEarthNet v1 or v2, SEN12MS, Sen1Floods11, SSL4EO-S12, GeoTIFFs of your '
    'own), the .tortilla of benv2 or so2sat (GEO-Bench-2), a folder written by `convert`, a GeoTIFF or a '
    'pair of them, or the working directory of a run'
)


def open_paths(names: Sequence[str]) -> list[Evidence]:
    """What one path holds, or two that belong together; raises InputError where that cannot be told.

    Two paths are a pair of GeoTIFFs, the Sentinel-1 and the Sentinel-2 folder of an archive, a checkpoint
    and the data that it shall be used on, or else two things that are looked at one after the other.
    """
    paths = [Path(name) for name in names]
    if not 1 <= len(paths) <= 2:
        raise InputError(f'doctor: {len(paths)} paths; give one or two: {KNOWN}')
    for path in paths:
        if not path.exists():
            raise InputError(f'{path}: there is no such file or folder; give {KNOWN}')
    kinds = [kind_of(path) for path in paths]
    if kinds == ['tiff'] * len(paths):
        return [gather(', '.join(names), raw_folder.single(paths))]
    if kinds == ['folder'] * len(paths):
        return [_archive(paths)]
    data = next((path for path, kind in zip(paths, kinds) if kind == 'set'), None)
    return [_one(path, kind, data) for path, kind in zip(paths, kinds)]


def kind_of(path: Path) -> str:
    """'tiff', 'tortilla', 'set', 'checkpoint' or 'folder'; raises InputError for any other file."""
    if path.is_file():
        if path.suffix.lower() in raw_folder.EXTENSIONS:
            return 'tiff'
        if path.suffix.lower() == raw_geobench2.SUFFIX:
            return 'tortilla'
        raise InputError(f'{path}: a file that is no GeoTIFF and no tortilla; give {KNOWN}')
    if (path / contracts.FILE).is_file():
        return 'set'
    is_step = path.parent.name == 'checkpoints' and path.name.isdecimal()
    imported = (path / 'published.json').is_file()
    if (path / 'checkpoints').is_dir() or path.name == 'checkpoints' or is_step or imported:
        return 'checkpoint'
    return 'folder'


def _one(path: Path, kind: str, data: Path | None) -> Evidence:
    if kind == 'set':
        return open_set(path)
    if kind == 'tortilla':
        return gather(str(path), raw_geobench2.archive(path))
    if kind == 'checkpoint':
        from .open_checkpoint import open_checkpoint

        return open_checkpoint(path, contracts.read(data) if data else None)
    return gather(str(path), raw_folder.single([path])) if kind == 'tiff' else _archive([path])


def _archive(paths: Sequence[Path]) -> Evidence:
    roots = [path.resolve() for path in paths]
    for layout in LAYOUTS:
        listing = layout(roots)
        if listing is not None:
            return gather(', '.join(map(str, paths)), listing)
    versions = [
        p
        for path in paths
        for p in sorted(path.glob(f'*/{contracts.FILE}')) + sorted(path.glob(f'*/*/{contracts.FILE}'))
    ]
    hint = f'; a converted data set is at {versions[0].parent}' if versions else ''
    raise InputError(f'{", ".join(map(str, paths))}: nothing here that is known{hint}; give {KNOWN}')
