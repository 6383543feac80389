"""One chip, or a tile of it, from its three files to a checked record."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

from fusmae_jax.geo.grid import grid_of
from fusmae_jax.input import label_maps

from ..geotiff import opened
from ..records import Item, Record, RecordError, check_decibel
from .schema import EVENTS, NO_LABEL, SIZE, STEP, schema

DATA = Path('data/flood_events/HandLabeled')
KINDS = {'s1': 'S1Hand', 's2': 'S2Hand', 'label': 'LabelHand'}
DEGREES = 4326
# Steps and corners are stored with rounding errors in their last digits.
SAME_STEP, SAME_PLACE = 1e-9, 0.01  # of a step


class Chip(NamedTuple):
    """A chip, or a tile of it, as listed."""

    event: str  # a key of EVENTS
    number: str
    row: int = 0  # of the upper left pixel of the tile
    column: int = 0
    split: str = ''  # of the lists of the authors

    @property
    def scene(self) -> str:
        """Such as Ghana_103272."""
        return f'{self.event}_{self.number}'

    def file(self, root: Path, kind: str) -> Path:
        """Path of a member: a key of KINDS."""
        return root / DATA / KINDS[kind] / f'{self.scene}_{KINDS[kind]}.tif'


class Corner(NamedTuple):
    """Longitude and latitude, degrees."""

    left: float
    top: float


def read_item(item: Item, root: str, tile: int) -> Record:
    """The record of a listed tile; see `read_chip`."""
    return read_chip(Chip(*item.values), Path(root), tile)


def read_chip(chip: Chip, root: Path, tile: int = SIZE) -> Record:
    """Reads and checks a tile of a chip; the record has the groups and fields of `schema.schema`.

    Raises RecordError, naming file and field, for anything that is missing, damaged or contradictory. NaN in
    Sentinel-1 are kept, also where a chip has nothing else, as some of this archive: `prepare` treats them as
    invalid pixels.
    """
    about, images, places = schema(tile), {}, {}
    window = Window(chip.column, chip.row, tile, tile)
    for kind in KINDS:
        file = chip.file(root, kind)
        group = about.groups.get(kind)
        dtype = group.dtype if group else about.maps['water'].dtype
        with opened(file, kind) as dataset:
            _check_layout(file, kind, len(group.bands) if group else 1, dtype, dataset)
            places[kind] = _place(file, kind, dataset)
            images[kind] = np.ascontiguousarray(dataset.read(window=window).transpose(1, 2, 0))
        _check_place(file, kind, places[kind], places['s1'])
    check_decibel(chip.file(root, 's1'), images['s1'])
    water = _water(chip.file(root, 'label'), images['label'][..., 0], tile)
    event, end = EVENTS[chip.event], '' if tile == SIZE else f'_{chip.row}_{chip.column}'
    labelled = water != NO_LABEL
    corner = np.array(places['s1']) + STEP * np.array([chip.column, -chip.row])
    return {
        's1': images['s1'],
        's2': images['s2'],
        'name': f'{chip.scene}{end}',
        'scene': chip.scene,
        'event': chip.event,
        'country': event.country,
        's1_name': f'{chip.scene}_S1Hand{end}',
        's2_name': f'{chip.scene}_S2Hand{end}',
        's1_date': event.s1_date,
        's2_date': event.s2_date,
        'orbit': event.orbit,
        'epsg': np.int32(DEGREES),
        'upper_left': corner,
        'labelled_share': np.float32(labelled.mean()),
        'water_share': np.float32(water[labelled].mean() if labelled.any() else np.nan),
        'official_split': chip.split,
        'water': water,
    }


_AGAIN = 'these are not the files of version 1.1; download the chip again'


def _check_layout(file: Path, kind: str, channels: int, dtype: str, dataset: rasterio.DatasetReader) -> None:
    for what, actual, expected in (
        ('number of channels', dataset.count, channels),
        ('size', dataset.shape, (SIZE, SIZE)),
        ('dtype', dataset.dtypes[0], dtype),
    ):
        if actual != expected:
            raise RecordError(file, f'{kind} {what}', f'{actual}, expected {expected}', _AGAIN)


def _place(file: Path, kind: str, dataset: rasterio.DatasetReader) -> Corner:
    """Where a chip lies; raises RecordError unless it is north up, in degrees, of the published pixels."""
    grid, step = grid_of(dataset), dataset.transform
    if grid.epsg != DEGREES:
        raise RecordError(file, f'{kind} CRS', f'EPSG {grid.epsg}, expected {DEGREES}', _AGAIN)
    off = max(abs(step.a - STEP), abs(step.e + STEP), abs(step.b), abs(step.d))
    if off > SAME_STEP * STEP:
        steps = (step.a, step.b, step.d, step.e)
        raise RecordError(file, f'{kind} pixel size', f'{steps}, expected {STEP} degrees, north up', _AGAIN)
    return Corner(step.c, step.f)


def _check_place(file: Path, kind: str, place: Corner, reference: Corner) -> None:
    if max(abs(a - b) for a, b in zip(place, reference)) > SAME_PLACE * STEP:
        raise RecordError(
            file,
            f'{kind} position',
            f'longitude, latitude = {tuple(place)}, but the Sentinel-1 image has {tuple(reference)}',
            'the files of a chip must cover the same ground; download the chip again',
        )


def _water(file: Path, labels: np.ndarray, tile: int) -> np.ndarray:
    if (unknown := label_maps.unknown(labels, schema(tile).maps['water'])) is not None:
        raise RecordError(file, 'label', unknown, _AGAIN)
    return labels
