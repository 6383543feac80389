"""One pair of patches, from its row in the metadata table and its folders to a checked record."""

from pathlib import Path

import numpy as np

from ..bigearthnet_mm.archive import read_images
from ..bigearthnet_mm.labels import CLASSES_19
from ..bigearthnet_mm.lists import parse_name
from ..geotiff import Place, read_group
from ..records import Item, Record, RecordError
from .labels import unknown_codes
from .names import parse_patch_id, patch_folder, s2_scene
from .schema import MAP
from .table import PatchRow


def read_item(item: Item, s1_root: str, s2_root: str, maps_root: str) -> Record:
    """The record of a listed pair; see `read_pair`. `maps_root=''`: without its reference map."""
    return read_pair(
        PatchRow(*item.values), Path(s1_root), Path(s2_root), Path(maps_root) if maps_root else None
    )


def read_pair(row: PatchRow, s1_root: Path, s2_root: Path, maps_root: Path | None = None) -> Record:
    """Reads and checks one pair; the record has the groups and fields of `schema.schema`.

    Raises RecordError, naming file and field, for anything that is missing, damaged or contradictory.
    NaN and inf in Sentinel-1 are kept: `prepare` treats them as invalid pixels.
    """
    images, place = read_images(patch_folder(s1_root, row.s1_name), patch_folder(s2_root, row.patch_id))
    if maps_root is not None:
        images['reference_map'] = _reference_map(patch_folder(maps_root, row.patch_id), place)
    labels = np.zeros(len(CLASSES_19), np.uint8)
    labels[list(row.labels)] = 1
    patch = parse_patch_id(row.patch_id)
    return {
        **images,
        'labels_19': labels,
        's1_name': row.s1_name,
        's2_name': row.patch_id,
        's2v1_name': row.s2v1_name,
        'scene': s2_scene(row.patch_id),
        's1_time': parse_name(row.s1_name).time,
        's2_time': patch.time,
        'epsg': np.int32(place.epsg),
        'upper_left': np.array([place.left, place.top], np.float64),
        'tile': patch.tile,
        'grid_cell': np.array(patch.cell, np.int32),
        'country': row.country,
        'snow': np.uint8(row.snow),
        'cloud': np.uint8(row.cloud),
        'official_split': row.split,
    }


def _reference_map(folder: Path, place: Place) -> np.ndarray:
    file = folder / f'{folder.name}_reference_map.tif'
    image, map_place = read_group([file], MAP)
    if map_place != place:
        raise RecordError(
            file,
            'reference_map position',
            f'EPSG, left, top = {tuple(map_place)}, but the images have {tuple(place)}',
            'the map must cover the ground of the images; unpack it again',
        )
    codes = image[..., 0]
    unknown = unknown_codes(codes)
    if unknown:
        raise RecordError(
            file,
            'reference_map',
            f'{unknown[:5]}, no CORINE level-3 codes',
            'unpack the map again; one that was mapped to other classes cannot be used',
        )
    return codes
