"""One pair of patches, from its two folders to a checked record."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.errors import nearest

from ..geotiff import Place, read_group
from ..records import Item, Record, RecordError, check_decibel
from .labels import CLASSES_43, multi_hot
from .lists import Pair, parse_name, parse_time
from .schema import EXTENT, GROUPS


def read_item(item: Item, s1_root: str, s2_root: str) -> Record:
    """The record of a listed pair; see `read_pair`."""
    return read_pair(Pair(*item.values), Path(s1_root), Path(s2_root))


def read_pair(pair: Pair, s1_root: Path, s2_root: Path) -> Record:
    """Reads and checks one pair; the record has the fields of `schema.GROUPS` and `schema.FIELDS`.

    Raises RecordError, naming file and field, for anything that is missing, damaged or contradictory.
    NaN and inf in Sentinel-1 are kept: `prepare` treats them as invalid pixels.
    """
    s1_folder, s2_folder = s1_root / pair.s1_name, s2_root / pair.s2_name
    s1_meta, s2_meta = read_metadata(s1_folder), read_metadata(s2_folder)
    s1_file, s2_file = metadata_file(s1_folder), metadata_file(s2_folder)
    _check_partner(s1_file, s1_meta, pair)
    labels = _labels(s2_file, s2_meta)
    if set(_text_list(s1_file, s1_meta)) != set(_text_list(s2_file, s2_meta)):
        raise RecordError(
            s1_file,
            'labels',
            f'{s1_meta["labels"]}, but the Sentinel-2 patch has {s2_meta["labels"]}',
            _AGAIN,
        )
    images, place = read_images(s1_folder, s2_folder)
    for file, meta in ((s1_file, s1_meta), (s2_file, s2_meta)):
        _check_box(file, meta, place)
    name = parse_name(pair.s1_name)
    return {
        **images,
        'labels': labels[0],
        'labels_19': labels[1],
        's1_name': pair.s1_name,
        's2_name': pair.s2_name,
        's1_scene': _get(s1_file, s1_meta, 'scene_source', str),
        's2_scene': _get(s2_file, s2_meta, 'tile_source', str),
        's1_time': _time(s1_file, s1_meta, 'acquisition_time'),
        's2_time': _time(s2_file, s2_meta, 'acquisition_date'),
        'epsg': np.int32(place.epsg),
        'upper_left': np.array([place.left, place.top], np.float64),
        'tile': name.tile,
        'grid_cell': np.array(name.cell, np.int32),
        'country': pair.country,
        'season': pair.season,
        'snow': np.uint8(pair.snow),
        'cloud': np.uint8(pair.cloud),
        'official_split': pair.official_split,
    }


_AGAIN = 'unpack the patch again'


def metadata_file(folder: Path) -> Path:
    """The JSON file of a patch."""
    return folder / f'{folder.name}_labels_metadata.json'


def read_metadata(folder: Path) -> dict[str, Any]:
    """The JSON of a patch as a dict; raises RecordError if it is missing or broken."""
    file = metadata_file(folder)
    if not folder.is_dir():
        raise RecordError(folder, 'folder', 'the patch is missing', 'unpack both archives in full')
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise RecordError(file, 'metadata', 'the JSON file is missing', _AGAIN) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(file, 'metadata', f'not valid JSON ({error})', _AGAIN) from error
    if not isinstance(values, dict):
        raise RecordError(file, 'metadata', f'a {type(values).__name__}, expected an object', _AGAIN)
    return values


def _get(file: Path, values: dict[str, Any], key: str, kind: type) -> Any:
    if key not in values:
        raise RecordError(file, key, f'no such key (found: {", ".join(sorted(values))})', _AGAIN)
    if not isinstance(values[key], kind):
        raise RecordError(file, key, f'{values[key]!r}, expected {kind.__name__}', _AGAIN)
    return values[key]


def _text_list(file: Path, values: dict[str, Any]) -> list[str]:
    names = _get(file, values, 'labels', list)
    if not names or not all(isinstance(name, str) for name in names):
        raise RecordError(file, 'labels', f'{names!r}, expected at least one class name', _AGAIN)
    return names


def _labels(file: Path, values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    try:
        return multi_hot(_text_list(file, values))
    except KeyError as error:
        name = error.args[0]
        raise RecordError(
            file, 'labels', f'{name!r} is not one of the 43 classes', nearest(name, CLASSES_43)
        ) from error


def _time(file: Path, values: dict[str, Any], key: str) -> int:
    try:
        return parse_time(_get(file, values, key, str))
    except ValueError as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(file, key, str(error), _AGAIN) from error


def _check_partner(file: Path, values: dict[str, Any], pair: Pair) -> None:
    partner = _get(file, values, 'corresponding_s2_patch', str)
    if partner != pair.s2_name:
        raise RecordError(
            file,
            'corresponding_s2_patch',
            f'{partner}, but the published table pairs the patch with {pair.s2_name}',
            _AGAIN,
        )


def read_images(s1_folder: Path, s2_folder: Path) -> tuple[dict[str, np.ndarray], Place]:
    """The bands of the two patches of a pair, by the groups of `schema.GROUPS`, and their common place.

    Raises RecordError for a damaged or missing band, for patches of different ground, and for Sentinel-1
    values that cannot be dB.
    """
    images: dict[str, np.ndarray] = {}
    first: Place | None = None
    for name, group in GROUPS.items():
        folder = s1_folder if group.modality == 's1' else s2_folder
        files = [folder / f'{folder.name}_{band}.tif' for band in group.bands]
        images[name], place = read_group(files, group)
        if first is not None and place != first:
            raise RecordError(
                folder,
                f'{name} position',
                f'EPSG, left, top = {tuple(place)}, but the Sentinel-1 patch has {tuple(first)}',
                'the images of a pair must cover the same ground; unpack the pair again',
            )
        first = place
    check_decibel(s1_folder, images['s1'])
    assert first is not None
    return images, first


def _check_box(file: Path, values: dict[str, Any], place: Place) -> None:
    box = _get(file, values, 'coordinates', dict)
    # Sentinel-1 files call the lower edge `lly`, Sentinel-2 files `lry`.
    corners = tuple(box.get(key) for key in ('ulx', 'uly', 'lrx', 'lly' if 'lly' in box else 'lry'))
    expected = (place.left, place.top, place.left + EXTENT, place.top - EXTENT)
    if corners != expected:
        raise RecordError(
            file,
            'coordinates',
            f'left, top, right, bottom = {corners}, but the images have {expected}',
            _AGAIN,
        )
