"""Listing the archive: which triplets there are, and the split that each belongs to."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError

from .. import records
from ..records import Item, RecordError, RecordSource, inside
from .images import KINDS, Triplet, read_item
from .scenes import SEASONS, Scene, drawn, official_split
from .schema import PUBLISHED, schema
from .schema import SCHEMA as SCHEMA

OnError = Literal['fail', 'skip']


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the archive is and how it is split."""

    # Folder with ROIs1158_spring, ROIs1868_summer, ROIs1970_fall and ROIs2017_winter
    root: str = setting('', path=True)
    splits: Literal['official', 'one'] = 'official'  # one: every record goes to train
    # Scenes for validation, taken out of train: the 25 that the authors once listed, a draw, or none.
    val: Literal['authors', 'drawn', 'none'] = 'authors'
    val_scenes: int = setting(25, least=1)  # with val='drawn': number of scenes
    val_seed: int = setting(0, least=0)  # with val='drawn'
    maps: bool = False  # also the land cover of each pixel, with 17 and with 10 classes


def source(archive: Archive, on_error: OnError = 'fail') -> RecordSource:
    """The archive as the converter takes it."""
    root = records.folder(archive.root, 'root')
    triplets, problems = find(root)
    if problems and on_error == 'fail':
        raise problems[0][1]
    splits = split(triplets, archive)
    return RecordSource(
        schema=schema(archive.maps),
        splits={
            name: [Item(triplet.name('s2'), tuple(triplet)) for triplet in members]
            for name, members in splits.items()
            if members or on_error == 'fail'
        },
        read=functools.partial(read_item, root=str(root), maps=archive.maps),
        inputs={'root': str(root), **_choices(archive), **({'maps': 'True'} if archive.maps else {})},
        skips=[error.skip(name) for name, error in problems],
        published=_published(archive),
    )


def split(triplets: list[Triplet], archive: Archive) -> dict[str, list[Triplet]]:
    """The triplets by split; raises InputError for a draw of scenes that is not possible."""
    if archive.splits == 'one':
        return {'train': triplets}
    scenes = {Scene(triplet.folder, triplet.scene) for triplet in triplets}
    names = {scene: official_split(scene) for scene in scenes}
    if archive.val != 'authors':
        names = {scene: 'test' if name == 'test' else 'train' for scene, name in names.items()}
    if archive.val == 'drawn':
        train = [scene for scene, name in names.items() if name == 'train']
        if not 0 < archive.val_scenes < len(train):
            raise InputError(
                f'config.archive.val_scenes={archive.val_scenes}: {len(train)} training scenes were found in '
                f'{archive.root}; give a number from 1 to {len(train) - 1}'
            )
        names |= dict.fromkeys(drawn(train, archive.val_scenes, archive.val_seed), 'val')
    result: dict[str, list[Triplet]] = {
        name: [] for name in PUBLISHED if name != 'val' or archive.val != 'none'
    }
    for triplet in triplets:
        result[names[Scene(triplet.folder, triplet.scene)]].append(triplet)
    return result


def _choices(archive: Archive) -> dict[str, str]:
    """The settings that decide the splits."""
    if archive.splits == 'one':
        return {'splits': 'one'}
    draw = {'val_scenes': str(archive.val_scenes), 'val_seed': str(archive.val_seed)}
    return {'splits': archive.splits, 'val': archive.val, **(draw if archive.val == 'drawn' else {})}


def _published(archive: Archive) -> dict[str, int]:
    if archive.splits == 'one':
        return {}
    if archive.val == 'authors':
        return PUBLISHED
    test = {'test': PUBLISHED['test']}
    return test if archive.val == 'drawn' else {'train': PUBLISHED['train'] + PUBLISHED['val'], **test}


Problems = list[tuple[str, RecordError]]


def find(root: Path) -> tuple[list[Triplet], Problems]:
    """Every complete triplet below a folder, and an error, with the name of the record, for everything else.

    Raises InputError if none of the season folders is there.
    """
    seasons = [name for name in SEASONS if (root / name).is_dir()]
    if not seasons:
        raise InputError(
            f'{root}: root: none of {", ".join(SEASONS)} is here; give the folder that the archives were '
            'unpacked in'
        )
    triplets: list[Triplet] = []
    problems: Problems = []
    for season in seasons:
        members: dict[str, set[Triplet]] = {kind: set() for kind in KINDS}
        for kind, scene, folder in _scene_folders(root, season, problems):
            members[kind].update(_patches(root, season, kind, scene, folder, problems))
        complete = set.intersection(*members.values())
        triplets += sorted(complete)
        for triplet in sorted(set.union(*members.values()) - complete):
            missing = [kind for kind in KINDS if triplet not in members[kind]]
            problems.append((triplet.name('s2'), _incomplete(root, triplet, missing)))
    return triplets, problems


def _incomplete(root: Path, triplet: Triplet, missing: list[str]) -> RecordError:
    present = next(kind for kind in KINDS if kind not in missing)
    return RecordError(
        triplet.file(root, missing[0]),
        ' and '.join(missing),
        f'missing, though {triplet.name(present)}.tif is there',
        'unpack the s1, s2 and lc archives of the season in full, or leave such triplets out with '
        'on_error=skip',
    )


_SCENE = re.compile(r'(s1|s2|lc)_(0|[1-9]\d*)')
_PATCH = re.compile(r'0|[1-9]\d*')


def _scene_folders(root: Path, season: str, problems: Problems) -> Iterator[tuple[str, int, str]]:
    """Kind of image, scene number and folder name of every scene folder of a season, sorted."""
    with os.scandir(root / season) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    for name in names:
        if match := _SCENE.fullmatch(name):
            try:
                inside(root, f'{season}/{name}', field='scene folder')
            except RecordError as error:
                problems.append((f'{season}/{name}', error))
                continue
            yield match[1], int(match[2]), name


def _patches(
    root: Path, season: str, kind: str, scene: int, folder: str, problems: Problems
) -> Iterator[Triplet]:
    """The triplets that have a member in a scene folder."""
    start, end = f'{season}_{kind}_{scene}_p', '.tif'
    with os.scandir(root / season / folder) as entries:
        for entry in entries:
            if not entry.name.endswith(end) or entry.name.startswith('.'):
                continue
            patch = entry.name[len(start) : -len(end)]
            try:
                if not entry.name.startswith(start) or not _PATCH.fullmatch(patch):
                    raise RecordError(
                        entry.path, 'name', f'expected {start}<number>{end}', 'keep the names of the archive'
                    )
                if entry.is_symlink():
                    inside(root, f'{season}/{folder}/{entry.name}', field='file')
            except RecordError as error:
                problems.append((entry.name.removesuffix(end), error))
                continue
            yield Triplet(season, scene, int(patch))
