"""One tile: from windows of its files to a checked record.

Values that cannot be what was declared are refused where there is no doubt, with the setting to change. What
only a set of tiles can show, such as an offset left in or swapped polarisations, is not decided here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

from fusmae_jax.input import ranges
from fusmae_jax.input.contract import Group

from ..records import Field, Item, Record, RecordError, validity
from .headers import CHANGED, OPTIONS, channels, opened
from .layout import LayoutPart, RecordLayout, shifted
from .maps import MAP, read_map
from .settings import prefix_of
from .table import FACTS
from .targets import FIELD


class Tile(NamedTuple):
    """A tile as listed, before any of its pixels is read."""

    files: Mapping[str, Sequence[str]]  # modality -> files relative to its root; none where it is missing
    place: Sequence[float]  # EPSG code, left, top of the image
    shape: Sequence[int]  # rows, columns of the image, in pixels of the finest file
    corner: Sequence[int]  # row, column of the tile, the same
    pixel: float  # metres, the same
    labels: Sequence[int]  # indices of the classes
    facts: Mapping[str, Any]  # record field of `table.FACTS` -> value
    shift: Sequence[int] = ()  # added to the numbers of each Sentinel-2 file, see `offsets`; () is 0
    map: str = ''  # the label raster, relative to its root
    targets: Sequence[float | None] = ()  # None for a missing value


def read_item(item: Item, layout: RecordLayout) -> Record:
    """The record of a listed tile: every value as in the file (see `offsets` for the exception), at its own
    resolution.

    Raises RecordError for a file that is damaged, changed since it was listed, or cannot hold what was
    declared.
    """
    tile = Tile(*item.values)
    images = read_images(tile, layout)
    shares = valid_shares(images, layout)
    for modality, files in tile.files.items():
        if not files:
            continue
        of_sensor = {
            name: image for name, image in images.items() if layout.groups[name].modality == modality
        }
        check_values(Path(layout.roots[modality]) / files[0], of_sensor, layout.groups)
    epsg, left, top = tile.place
    row, column = tile.corner
    end = f'_{row}_{column}'
    record: Record = {
        **images,
        'name': item.key,
        'epsg': np.int32(epsg),
        'upper_left': np.array([left + column * tile.pixel, top - row * tile.pixel], np.float64),
        'window': np.array([row, column], np.int32),
    }
    for modality, files in tile.files.items():
        record[f'{modality}_name'] = files[0].rpartition('.')[0] + end if files else ''
        record[f'{modality}_valid'] = np.float32(shares[modality])
    if layout.map:
        record[MAP] = read_map(Path(layout.roots['map']) / tile.map, layout.map, tile, layout.measured)
    if layout.classes:
        record['labels'] = np.zeros(len(layout.classes), np.uint8)
        record['labels'][list(tile.labels)] = 1
    if layout.targets:
        record[FIELD] = np.array([np.nan if x is None else x for x in tile.targets], np.float32)
    return record | {name: _typed(FACTS[name], value) for name, value in tile.facts.items()}


def _typed(field: Field, value: Any) -> Any:
    return value if field.dtype == 'text' else np.dtype(field.dtype).type(value)


def read_images(tile: Tile, layout: RecordLayout) -> dict[str, np.ndarray]:
    """The image groups of a tile, (rows, columns, bands) each; only its window of a file is read."""
    images: dict[str, np.ndarray] = {}
    # GEOKEYS: the reference system was checked while listing; its full definition is not looked up again.
    with rasterio.Env(**OPTIONS, GTIFF_SRS_SOURCE='GEOKEYS'):
        for part in layout.parts:
            group = layout.groups[part.group]
            if not tile.files[part.modality]:
                images.setdefault(part.group, _blank(group))
                continue
            file = Path(layout.roots[part.modality]) / tile.files[part.modality][part.index]
            block = _read_window(file, part, group, tile)
            if part.modality == 's2' and tile.shift:
                block = shifted(file, block, group, tile.shift[part.index])
            rows, columns = block.shape[1:]
            if part.bands == group.bands and (rows, columns) == group.size:
                images[part.group] = np.ascontiguousarray(block.transpose(1, 2, 0))
                continue
            if part.group not in images:
                images[part.group] = _blank(group)
            for band, plane in zip(part.bands, block):
                images[part.group][:rows, :columns, group.bands.index(band)] = plane
    return images


def _blank(group: Group) -> np.ndarray:
    """A tile of nothing but padding; where a whole number has no nodata value, nothing is padded."""
    fill = np.nan if group.dtype.startswith('float') else (*group.nodata, 0)[0]
    return np.full((*group.size, len(group.bands)), fill, group.dtype)


def _read_window(file: Path, part: LayoutPart, group: Group, tile: Tile) -> np.ndarray:
    """The bands of a part within the tile, (bands, rows, columns); smaller than a tile at the edge."""
    row, column = (round(x / part.step) for x in tile.corner)
    shape = tuple(round(x / part.step) for x in tile.shape)
    rows, columns = (min(side, x - start) for side, x, start in zip(group.size, shape, (row, column)))
    with opened(file, part.modality) as dataset:
        bands = channels(file, dataset, part.modality, part.names)
        corner = (dataset.transform.c, dataset.transform.f)
        if dataset.shape != shape or any(abs(a - b) > tile.pixel / 2 for a, b in zip(corner, tile.place[1:])):
            raise RecordError(
                file, f'{part.modality} size', f'{dataset.shape} at {corner}, listed {shape}', CHANGED
            )
        if {*part.bands} != {*bands} - {''} or {*dataset.dtypes} != {group.dtype}:
            message = f'{", ".join(bands)} of {dataset.dtypes[0]}'
            raise RecordError(file, f'{part.modality} bands', message, CHANGED)
        indexes = [bands.index(band) + 1 for band in part.bands]
        return dataset.read(indexes, window=Window(column, row, columns, rows))


def valid_shares(images: Mapping[str, np.ndarray], layout: RecordLayout) -> dict[str, float]:
    """modality -> share of its stored values that are valid."""
    counts: dict[str, list[int]] = {}
    for name, image in images.items():
        group = layout.groups[name]
        valid, total = counts.setdefault(group.modality, [0, 0])
        counts[group.modality] = [valid + int(validity(image, group).sum()), total + image.size]
    return {modality: valid / total for modality, (valid, total) in counts.items()}


_RAW = 'digital numbers of a product that is not calibrated? calibrate it first'
_TWICE = 'the offset is off already? set s2_offset=0'
# Unit and kind of `ranges.Problem` -> what to do; those without an entry say it themselves.
_ADVICE = {
    ('dB', 'below'): 'dB times a factor? set s1_scale, such as 0.01',
    ('dB', 'above'): f"linear? set s1_unit='linear'; {_RAW}",
    (
        'dB',
        'sign',
    ): "linear power or digital numbers? set s1_unit, or s1_nodata=(0.0,) if 0 fills the file's borders",
    ('linear', 'below'): "dB? set s1_unit='dB'",
    ('linear', 'above'): _RAW,
    ('amplitude', 'below'): "dB? set s1_unit='dB'",
    ('amplitude', 'above'): _RAW,
    ('DN', 'below'): _TWICE,
    ('DN', 'small'): "reflectance? set s2_unit='reflectance', or s2_scale",
    ('reflectance', 'below'): _TWICE,
    ('m', 'above'): 'feet or centimetres? set dem_scale, such as 0.3048',
    ('reflectance', 'above'): "digital numbers? set s2_unit='DN'",
}


def check_values(file: Path, images: Mapping[str, np.ndarray], groups: Mapping[str, Group]) -> None:
    """Raises RecordError if the images of one sensor cannot be in the unit that their groups say."""
    problem = ranges.check_image(images, groups)
    if problem is None:
        return
    group = groups[next(iter(images))]
    advice = _ADVICE.get((group.unit, problem.kind), problem.advice)
    if problem.kind == 'tail':
        advice = (
            f'a fill value for what was not measured? Set {prefix_of(group.modality)}_nodata, or the tag of '
            'the files'
        )
    raise RecordError(file, f'{group.modality} {problem.band or "unit"}', problem.found, advice)
