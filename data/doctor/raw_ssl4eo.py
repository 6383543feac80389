"""SSL4EO-S12: version 1.1 (zarr files of 64 locations) and 1.0 (a GeoTIFF for each band)."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..ssl4eo_s12 import zarr_files
from ..ssl4eo_s12.names import pair, parse_name
from ..ssl4eo_s12.schema import RESOLUTION, S2_BANDS, SIZE, TIMES, Optical, schema
from .evidence import Grid, Split, solar_hour
from .raw import (
    SAMPLE,
    Item,
    Loaded,
    RawListing,
    RawPart,
    find_folder,
    names_in,
    partner_finding,
    spread,
)

_CUBES = re.compile(r'S2L(?:2A|1C)')
_LOCATIONS = re.compile(r's2[ac]')
_LOCATION = re.compile(r'\d{7}')
_ZARR = re.compile(r'.+\.zarr\.zip')
FILES = 2  # zarr files that are looked into; each holds 64 locations, in chunks of 64 images
# Version 1.0 gives places in degrees, half a pixel of each band off, and its sensors lie some pixels apart.
SLACK = 26.0


def version_1_1(paths: Sequence[Path]) -> RawListing | None:
    """The folder with train/ and val/, or one of these; None if there are no zarr files of S2L2A or S2L1C."""
    split_folder = next((candidate for path in paths if (candidate := find_folder(path, _CUBES))), None)
    if split_folder is None:
        return None
    root = split_folder.parent if split_folder.name in ('train', 'val') else split_folder
    folders = [f for f in (root / 'train', root / 'val') if f.is_dir()] or [split_folder]
    optical = _level(folders[0], {'S2L2A': 'S2L2A', 'S2L1C': 'S2L1C'})
    # Folders of these names with GeoTIFFs are those of other sets.
    if not any(names_in(folder / optical, _ZARR, 1)[0] for folder in folders if (folder / optical).is_dir()):
        return None
    splits: dict[str, Split] = {}
    items: list[Item] = []
    lonely: list[str] = []
    seen = 0
    for folder in folders:
        names, _ = names_in(folder / optical, _ZARR)
        alone = [n for n in names if not (folder / zarr_files.S1 / n).is_file()]
        lonely += alone
        seen += len(names)
        usable = [name for name in names if name not in alone]
        ids, hours = list[str](), list[np.ndarray]()
        samples = 0
        for name in spread(usable, FILES if folder is folders[0] else 1):
            samples, images = _cube_items(folder, name, optical, SAMPLE // (FILES + len(folders) - 1))
            items += images
            ids += [item.name for item in images]
            hours.append(_hours(folder / zarr_files.S1 / name))
        # All files hold equally many locations, but for the last one.
        every = np.concatenate(hours) if hours else None
        splits[folder.name] = Split(len(names) * samples * TIMES, np.array(ids), s1_hours=every)
    about = schema('1.1', optical)
    return RawListing(
        f'SSL4EO-S12 v1.1, raw, {optical}',
        items,
        about.groups,
        about.products,
        total=sum(split.records for split in splits.values()),
        splits=splits,
        findings=tuple(partner_finding(lonely, seen)),
    )


def _level(folder: Path, names: Mapping[str, Optical]) -> Optical:
    return next(level for name, level in names.items() if (folder / name).is_dir())


def _cube_items(folder: Path, name: str, optical: Optical, count: int) -> tuple[int, list[Item]]:
    """Locations of a file, and some images of two time stamps: every other one costs a chunk of 100 MB."""
    try:
        samples = zarr_files.open_cube(folder / optical / name, optical).samples
    except ValueError:
        samples = ('',)  # reading it fails again, and is told then
    chosen = spread(range(len(samples)), max(1, count // 2))
    return len(samples), [
        Item(
            f'{folder.name}/{name} {samples[index]} {time}',
            load=functools.partial(_load_cube, folder, name, optical, index, time),
            sensors=('s1', 's2'),
        )
        for time in (0, 2)
        for index in chosen
    ]


def _hours(file: Path) -> np.ndarray:
    """Local solar time of all Sentinel-1 images of a file, by their names."""
    try:
        cube = zarr_files.open_cube(file, zarr_files.S1)
        times = np.array([[parse_name(name).time for name in names] for names in cube.names])
    except ValueError:
        return np.empty(0)
    return solar_hour(times, cube.epsg[:, None]).ravel()


def _load_cube(folder: Path, name: str, optical: Optical, index: int, time: int) -> Loaded:
    s2 = zarr_files.open_cube(folder / optical / name, optical)
    s1 = zarr_files.open_cube(folder / zarr_files.S1 / name, zarr_files.S1)
    location = s2.samples[index]
    row = s1.samples.index(location)
    visit = pair(s1.file, location, s1.names[row], s2.names[index], time)
    images, grids = {}, {}
    for modality, cube, at, which in (('s1', s1, row, visit.s1), ('s2', s2, index, visit.s2)):
        bands = zarr_files.BANDS[zarr_files.S1 if modality == 's1' else optical]
        pixels = zarr_files.image(cube, at, which)
        left, top = (float(value) for value in cube.upper_left[at])
        grid = Grid(int(cube.epsg[at]), left, top, RESOLUTION, RESOLUTION, SIZE, SIZE)
        images[modality] = {band: pixels[..., i] for i, band in enumerate(bands)}
        grids[modality] = dict.fromkeys(bands, grid)
    return images, grids


def version_1_0(paths: Sequence[Path]) -> RawListing | None:
    """The folder with s1/ and s2a/ or s2c/; None if there is none."""
    root = next((candidate for path in paths if (candidate := find_folder(path, _LOCATIONS))), None)
    if root is None:
        return None
    optical = _level(root, {'s2a': 'S2L2A', 's2c': 'S2L1C'})
    folder = root / {'S2L2A': 's2a', 'S2L1C': 's2c'}[optical]
    locations, complete = names_in(folder, _LOCATION)
    chosen = spread(locations, SAMPLE)
    items, lonely = [], []
    for number, location in enumerate(chosen):
        item = _location(root / 's1' / location, folder / location, location, number % TIMES, optical)
        items.append(item)
        lonely += [location] if len(item.parts) < 2 else []
    about = schema('1.0', optical)
    return RawListing(
        f'SSL4EO-S12 v1.0, raw, {optical}',
        items,
        about.groups,
        about.products,
        total=len(locations) * TIMES if complete else None,
        findings=tuple(partner_finding(lonely, len(chosen))),
        slack=SLACK,
    )


def _location(s1: Path, s2: Path, location: str, time: int, optical: Optical) -> Item:
    """The images of one time stamp of a location, paired by date."""
    parts = {}
    for modality, folder, bands in (('s1', s1, ('VV', 'VH')), ('s2', s2, S2_BANDS[optical])):
        images = sorted((f for f in folder.glob('*') if f.is_dir()), key=_date)
        if time < len(images):
            files = [(images[time] / f'{band.replace("B0", "B")}.tif', (band,)) for band in bands]
            parts[modality] = [RawPart(file, band) for file, band in files if file.is_file()]
    return Item(f'{location}_{time}', parts)


def _date(folder: Path) -> int:
    try:
        return parse_name(folder.name).time
    except ValueError:
        return 0
