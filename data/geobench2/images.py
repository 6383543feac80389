"""One sample of benv2: from its place in the container to a checked record.

The benchmark's program wrote Sentinel-1 as VH, VV, which its loader reads as VV, VH; and all bands of
Sentinel-2 at 10 m under the geotransform of B01, whose pixels are 60 m. Records have VV, VH and 10 m.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusmae_jax.geo import raster
from fusmae_jax.geo.grid import Grid, Place, grid_of
from fusmae_jax.input.contract import Group

from ..bigearthnet_mm.labels import CLASSES_19
from ..bigearthnet_v2.names import parse_patch_id, s2_scene
from ..geotiff import place_of, refused, stack_of
from ..records import Item, Record, RecordError, check_decibel
from .listing import ORDERS
from .schema import RESOLUTION, S1, S2
from .tortilla import AGAIN, FORMAT, ID, Span, member, read_bytes, read_table

WRONG_STEP = 60.0  # metres a pixel, of B01
MOST_BYTES = 2**24  # of an image; as plain numbers it takes 350 kB


class Sample(NamedTuple):
    """A sample as listed, before any of its images is opened."""

    name: str
    begin: int  # of its container in the file
    length: int
    patch_id: str
    country: str
    split: str  # train, val or test
    snow: bool
    cloud: bool
    additional: bool
    labels: tuple[int, ...]  # indices of CLASSES_19


class Images(NamedTuple):
    """The images of a sample as they are stored, and what is said of their ground."""

    s1: np.ndarray  # (120, 120, 2) float32, in the order of the file
    s2: np.ndarray  # (120, 120, 12) uint16
    s1_grid: Grid
    s2_grid: Grid
    place: Place  # of Sentinel-1


def read_item(item: Item, file: str, order: str) -> Record:
    """The record of a listed sample; see `read_sample`."""
    return read_sample(Path(file), Sample(*item.values), order)


def read_sample(file: Path, sample: Sample, order: str) -> Record:
    """Reads and checks one sample; the record has the groups and fields of `schema.SCHEMA`.

    Args:
        file: the container.
        sample: as listed.
        order: of the channels of Sentinel-1, a key of ORDERS.

    Raises:
        RecordError: naming member and field, for anything that is missing, damaged or contradictory.
    """
    images = read_images(file, sample)
    title = Path(f'{file}: {sample.name}')
    check_decibel(title, images.s1)
    _check_ground(title, images)
    labels = np.zeros(len(CLASSES_19), np.uint8)
    labels[list(sample.labels)] = 1
    patch = parse_patch_id(sample.patch_id)
    return {
        's1': np.ascontiguousarray(images.s1[..., list(ORDERS[order])]),
        's2': images.s2,
        'labels_19': labels,
        's2_name': sample.patch_id,
        'scene': s2_scene(sample.patch_id),
        's2_time': patch.time,
        'epsg': np.int32(images.place.epsg),
        'upper_left': np.array([images.place.left, images.place.top], np.float64),
        'tile': patch.tile,
        'grid_cell': np.array(patch.cell, np.int32),
        'country': sample.country,
        'snow': np.uint8(sample.snow),
        'cloud': np.uint8(sample.cloud),
        'sample': sample.name,
        'additional_test': np.uint8(sample.additional),
        'official_split': sample.split,
    }


def read_images(file: Path, sample: Sample) -> Images:
    """Both images of a sample as they are stored.

    Raises RecordError as `read_sample` does, but not for what Sentinel-2 says of its ground.
    """
    container = Span(file, sample.begin, sample.length, sample.name)
    rows = read_table(container, {'patch_id': str})
    members = [(row[ID], row[FORMAT], row['patch_id']) for row in rows]
    expected = [(name, 'GTiff', sample.patch_id) for name in ('s1', 's2')]
    if members != expected:
        raise RecordError(container.title, 'table', f'{members}, expected {expected}', AGAIN)
    (s1, s1_grid, place), (s2, s2_grid, _) = (
        _image(member(container, row), group) for row, group in zip(rows, (S1, S2))
    )
    assert place is not None
    return Images(s1, s2, s1_grid, s2_grid, place)


def lighter(image: np.ndarray) -> float:
    """How many dB the first channel of a Sentinel-1 image lies above the second, by their medians.

    0 without a pixel that has both.
    """
    both = image[np.isfinite(image).all(-1)]
    return float(np.subtract(*np.median(both, axis=0))) if len(both) else 0.0


def _image(span: Span, group: Group) -> tuple[np.ndarray, Grid, Place | None]:
    title = Path(span.title)
    if span.length > MOST_BYTES:
        raise RecordError(title, 'length', f'{span.length:,} bytes, at most {MOST_BYTES:,}', AGAIN)
    with (
        refused(title, group.modality, AGAIN),
        raster.opened_bytes(read_bytes(span), **raster.KEYS) as dataset,
    ):
        image = stack_of(title, group, dataset)
        # That of Sentinel-2 is known to be wrong.
        place = place_of(title, 's1', dataset, RESOLUTION) if group is S1 else None
        return image, grid_of(dataset), place


def _check_ground(title: Path, images: Images) -> None:
    """Raises RecordError unless Sentinel-2 lies where Sentinel-1 does, at 10 m or at the known 60 m."""
    grid, place = images.s2_grid, images.place
    steps = [(step, step) for step in (RESOLUTION, WRONG_STEP)]
    if (
        (grid.epsg, grid.left, grid.top) != tuple(place)
        or grid.turned
        or (grid.step_x, grid.step_y) not in steps
    ):
        raise RecordError(
            title,
            's2 position',
            f'EPSG:{grid.epsg} from {grid.left:.10g}, {grid.top:.10g} in steps of {grid.step_x:g}, '
            f'{grid.step_y:g} m, but Sentinel-1 has EPSG:{place.epsg} from {place.left:.10g}, '
            f'{place.top:.10g} in steps of {RESOLUTION:g} m',
            'the images of a sample must cover the same ground; download the file again',
        )
