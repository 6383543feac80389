"""Version 1.1: listing its zarr files, and one record of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..records import Item, Record, RecordError
from . import zarr_files
from .names import check_decibel, pair
from .schema import COVERED, MASK, TIMES
from .zarr_files import AGAIN, S1, Cube, open_cube

FILE = r'\w+\.zarr\.zip'
SNOW, CLOUD = MASK.index('snow'), [MASK.index('thin cloud'), MASK.index('thick cloud')]


def find(
    root: Path, split: str, optical: str, names: dict[str, set[str]]
) -> Iterator[Item | tuple[str, RecordError]]:
    """The records of a split, or a file and why it cannot be used.

    Args:
      root: the folder of the archive.
      split: 'train' or 'val'.
      optical: which Sentinel-2 files, S2L2A or S2L1C.
      names: of the files of each of the two kinds.
    """
    for name in sorted(set.union(*names.values())):
        try:
            s1, s2 = (open_cube(root / split / kind / name, kind) for kind in (S1, optical))
            if alone := sorted(set(s1.samples) ^ set(s2.samples)):
                raise RecordError(s2.file, 'sample', f'{alone[0]} is not in both it and {s1.file}', AGAIN)
        except RecordError as error:
            yield f'{split}/{name}', error
            continue
        for index, location in enumerate(s2.samples):
            yield from (Item(f'{location}_{time}', (split, name, index, time)) for time in range(TIMES))


def together(item: Item) -> tuple[str, ...]:
    """What `item` is best read next to: the records of its file, and there those of its time stamp."""
    split, name, _, time = item.values
    return f'{split}/{name}', f'{split}/{name}/{time}'


def read_item(item: Item, root: str, optical: str) -> Record:
    """Reads and checks one record; raises RecordError, naming file and field, if it cannot be used.

    NaN and inf in Sentinel-1 are kept: `prepare` treats them as invalid pixels.
    """
    split, name, index, time = item.values
    s1, s2 = (open_cube(Path(root, split, kind, name), kind) for kind in (S1, optical))
    location = s2.samples[index] if index < len(s2.samples) else ''
    if item.key != f'{location}_{time}' or location not in s1.samples:
        raise RecordError(
            s2.file, 'sample', f'{item.key} is no longer sample {index}', 'the files changed; start again'
        )
    row = s1.samples.index(location)
    visit = pair(s1.file, location, s1.names[row], s2.names[index], time, s2.file)
    _check_place(s1, row, s2, index, location)
    s1_image = zarr_files.image(s1, row, visit.s1)
    check_decibel(f'{s1.file}: {location}', s1_image)
    return {
        's1': s1_image,
        's2': zarr_files.image(s2, index, visit.s2),
        **visit.fields,
        'epsg': np.int32(s2.epsg[index]),
        'upper_left': s2.upper_left[index],
        'center': s2.center[index],
        **_covers(s2, index, visit.s2),
    }


def _check_place(s1: Cube, row: int, s2: Cube, index: int, location: str) -> None:
    places = [(int(cube.epsg[at]), *cube.upper_left[at].tolist()) for cube, at in ((s1, row), (s2, index))]
    if places[0] != places[1]:
        raise RecordError(
            s1.file,
            f'position of {location}',
            f'EPSG, left, top = {places[0]}, but {s2.file.parent.name} has {places[1]}',
            'both sensors must cover the same ground; download both files again',
        )


def _covers(cube: Cube, index: int, time: int) -> dict[str, Any]:
    """What the cloud mask says, as shares; without a mask they are NaN."""
    shares = np.full(len(MASK), np.nan, np.float32)
    if cube.masked:
        counts = np.bincount(zarr_files.mask(cube, index, time).ravel(), minlength=len(MASK))
        if len(counts) > len(MASK):
            message = f'class {len(counts) - 1} in sample {index}, expected 0 to {len(MASK) - 1}'
            raise RecordError(cube.file, 'cloud_mask', message, AGAIN)
        shares = (counts / counts.sum()).astype(np.float32)
    cloud = shares[CLOUD].sum()
    return {
        'mask_share': shares,
        'cloud_share': cloud,
        'cloud': np.uint8(cloud >= COVERED),
        'snow': np.uint8(shares[SNOW] >= COVERED),
    }
