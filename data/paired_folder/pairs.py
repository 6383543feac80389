"""A user's own GeoTIFFs as an archive: what there is, cut into tiles and put into splits."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data.paired_folder.entries import Entry, Problem, by_name, roots
from data.paired_folder.headers import Header, read_headers
from data.paired_folder.layout import Kind, Layout, check_ground, check_kind, kind_of, make_layout, tiles
from data.paired_folder.schema import make_schema
from data.paired_folder.settings import Archive, check
from data.paired_folder.table import TIME, Table, read_table
from data.paired_folder.tiles import Tile, read_images, read_item, valid_shares
from data.paired_folder.values import baseline
from data.records import Item, RecordError, Source
from fusmae_jax.errors import InputError, nearest

OnError = Literal['fail', 'skip']
Headers = Mapping[str, Sequence[Header]]  # modality -> headers of its files

__all__ = ['Archive', 'examples', 'source']


def examples(folder: Path) -> Archive:
    """Three generated pairs in a folder, with a table of labels and splits."""
    from data.generate.paired_folder import write
    from data.generate.scene import SceneConfig

    return Archive(**write(folder, 3, SceneConfig(), kind='table'))


def source(archive: Archive, on_error: OnError = 'fail') -> Source:
    """The folders as the converter takes them; reads the header of every file.

    Raises InputError for settings that are missing or cannot be; for files that cannot be used, too, unless
    `on_error` is 'skip'.
    """
    check(archive)
    table = read_table(archive) if archive.table else Table((), *by_name(archive))
    if archive.val_share and 'split' in table.columns:
        raise InputError(f'{archive.table}: has a column split, so config.archive.val_share must be 0')
    problems = [*table.problems]
    _stop_at(problems, on_error)
    classes = _classes(archive, table)
    images = _usable(archive, table.entries, classes, problems, on_error)
    if not images:
        raise InputError(f'{_where(archive)}: no image can be used; the first problem: {problems[0][1]}')
    layout = make_layout(archive, {m: str(f) for m, f in roots(archive).items()}, images[0][1], classes)
    splits: dict[str, list[Item]] = {}
    for entry, headers in images:
        items = _items(archive, entry, headers, layout)
        splits.setdefault(entry.split or _split(archive, entry), []).extend(items)
        if not items and not archive.min_valid:
            problems.append((entry.id, _too_small(archive, entry, headers)))
            _stop_at(problems, on_error)
    _check_val(archive, splits, len(images))
    return Source(
        schema=make_schema(archive, layout, table.columns, _baselines(images)),
        splits={name: items for name, items in splits.items() if items or on_error == 'fail'},
        read=functools.partial(read_item, layout=layout),
        inputs=_inputs(archive),
        skips=[error.skip(name) for name, error in problems],
    )


def _stop_at(problems: Sequence[Problem], on_error: OnError) -> None:
    if problems and on_error == 'fail':
        raise problems[0][1]


def _where(archive: Archive) -> str:
    return ', '.join(getattr(archive, f'{m}_root') for m in archive.modalities)


def _classes(archive: Archive, table: Table) -> tuple[str, ...]:
    if 'labels' not in table.columns:
        if archive.classes:
            raise InputError(f'{archive.table}: config.archive.classes is set, but there is no column labels')
        return ()
    found = sorted({label for entry in table.entries for label in entry.labels})
    if not found:
        raise InputError(f'{archive.table}: no row has a label; leave the column labels out')
    return archive.classes or tuple(found)


def _usable(
    archive: Archive,
    entries: Sequence[Entry],
    classes: Sequence[str],
    problems: list[Problem],
    on_error: OnError,
) -> list[tuple[Entry, Headers]]:
    """The entries whose files can be used, with their headers; the first one sets what the others must be."""
    folders = roots(archive)
    usable: list[tuple[Entry, Headers]] = []
    kinds: dict[str, list[Kind]] = {}
    for entry in entries:
        try:
            headers = {
                m: read_headers([folders[m] / f for f in entry.files(m)], m, getattr(archive, f'{m}_bands'))
                for m in folders
            }
            own = {m: [kind_of(h, m, archive) for h in found] for m, found in headers.items()}
            # A file that does not fit its partner is the wrong one, whatever the other images look like.
            check_ground(headers)
            if usable:
                _check_like_first(headers, own, usable[0][1], kinds)
            for label in entry.labels:
                if label not in classes:
                    raise RecordError(entry.source, 'labels', repr(label), nearest(label, classes))
        except RecordError as error:
            problems.append((entry.id, error))
            _stop_at(problems, on_error)
            continue
        kinds = kinds or own
        usable.append((entry, headers))
    return usable


def _check_like_first(
    headers: Headers, own: Mapping[str, Sequence[Kind]], first: Headers, kinds: Mapping[str, Sequence[Kind]]
) -> None:
    for modality, found in headers.items():
        if len(found) != len(first[modality]):
            raise RecordError(
                found[0].file,
                f'{modality} parts',
                f'{len(found)} files, but {first[modality][0].file} is one of {len(first[modality])}',
                'every image needs as many files',
            )
        for header, one, kind, example in zip(found, own[modality], kinds[modality], first[modality]):
            check_kind(header, modality, one, kind, example)


def _items(archive: Archive, entry: Entry, headers: Headers, layout: Layout) -> list[Item]:
    """The tiles of one image, in rows from the upper left."""
    fine = min((h for found in headers.values() for h in found), key=lambda h: h.resolution)
    times = {name: -1 for name in TIME if name[:2] in archive.modalities}
    facts: dict[str, Any] = {**times, **entry.facts, 'scene': _scene(entry)}
    labels = [layout.classes.index(label) for label in entry.labels]
    files = {m: list(entry.files(m)) for m in archive.modalities}
    result = []
    for row, column in tiles(archive, fine.rows, fine.columns):
        shape, corner = [fine.rows, fine.columns], [row, column]
        tile = Tile(files, list(fine.place), shape, corner, fine.resolution, labels, facts)
        if archive.min_valid and _empty(tile, layout, archive.min_valid):
            continue
        result.append(Item(f'{entry.id}_{row}_{column}', tuple(tile)))
    return result


def _empty(tile: Tile, layout: Layout, least: float) -> bool:
    try:
        shares = valid_shares(read_images(tile, layout), layout)
    except RecordError:
        return False  # damaged: converting it will say so
    return min(shares.values()) < least


def _scene(entry: Entry) -> str:
    return entry.facts.get('scene') or entry.id


def _split(archive: Archive, entry: Entry) -> str:
    """`val` or `train` by a hash of the scene, so that tiles of one image never part."""
    share = int.from_bytes(hashlib.blake2b(_scene(entry).encode(), digest_size=8).digest()) / 2**64
    return 'val' if share < archive.val_share else 'train'


def _too_small(archive: Archive, entry: Entry, headers: Headers) -> RecordError:
    fine = min((h for found in headers.values() for h in found), key=lambda h: h.resolution)
    return RecordError(
        fine.file,
        'size',
        f'no tile of {archive.tile} pixels in {fine.rows} x {fine.columns}',
        "choose a smaller tile, edge='pad', or leave such images out with on_error=skip",
    )


def _baselines(images: Sequence[tuple[Entry, Headers]]) -> str:
    """The processing baselines that the metadata name, from..to; '' unless all files name one."""
    found = sorted({baseline(header) for _, headers in images for header in headers.get('s2', ())})
    if not found or not found[0]:
        return ''
    return found[0] if len(found) == 1 else f'{found[0]}..{found[-1]}'


def _check_val(archive: Archive, splits: Mapping[str, Sequence[Item]], images: int) -> None:
    if archive.val_share and not (splits.get('train') and splits.get('val')):
        there = ', '.join(splits)
        raise InputError(
            f'config.archive.val_share={archive.val_share}: the hash of the names puts all {images} images '
            f'into {there}; name splits in a table, or choose another share'
        )


def _inputs(archive: Archive) -> dict[str, str]:
    """Every setting that is not its default, and the folders resolved."""
    defaults = Archive()
    changed = {
        field.name: str(getattr(archive, field.name))
        for field in dataclasses.fields(archive)
        if getattr(archive, field.name) != getattr(defaults, field.name)
    }
    return changed | {f'{m}_root': str(folder) for m, folder in roots(archive).items()}
