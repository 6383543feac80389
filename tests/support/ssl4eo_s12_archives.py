"""Small generated SSL4EO-S12 archives, and what their files hold as read without the builder."""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import zarr
from zarr.storage import ZipStore

from fusmae_jax.shipped.data.generate import ssl4eo_s12
from fusmae_jax.shipped.data.generate.scene import SceneConfig
from fusmae_jax.shipped.data.ssl4eo_s12.locations import Archive

# Half of the visits of this seed lie in another order in Sentinel-1 than by date, and some are cloudy.
CONFIG = SceneConfig(seed=3, size=264, cloud_share=0.5)


def write(folder: Path, version='1.1', level='L2A', pairs=12, samples=64) -> Archive:
    """An archive of generated pairs."""
    config = SceneConfig(**{**vars(CONFIG), 'level': level})
    return Archive(**ssl4eo_s12.write(folder, pairs, config, version=version, samples=samples))


def zips(archive: Archive, kind: str, split='train') -> list[Path]:
    """The zarr files of a kind."""
    return sorted(Path(archive.root, split, kind).iterdir())


def rewrite(file: Path, change: Callable) -> None:
    """Unpacks a zarr file, lets `change(group)` alter it, and packs it again."""
    folder = file.with_suffix('.unpacked')
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    (folder / '.zmetadata').unlink()
    change(zarr.open_group(folder, mode='r+'))
    with zipfile.ZipFile(file, 'w') as archive:
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    shutil.rmtree(folder)


def leave_out(file: Path, member: str) -> None:
    """Takes a member out of a zip."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != member}
    with zipfile.ZipFile(file, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def replace(group, name: str, values, **changes) -> None:
    """Puts other values, and with them perhaps another type and shape, into an array of a zarr file."""
    about, values = dict(group[name].attrs), np.asarray(values)
    del group[name]
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, attributes=about, **changes)
    array[...] = values


def raw(archive: Archive, record: dict, field: str) -> np.ndarray:
    """The images of one field of a record as the files have them, (bands, rows, columns)."""
    scene, name = record['scene'].decode(), record[f'{field[:2]}_name'].decode()
    kind = 'S1' if field == 's1' else archive.optical
    if archive.version == '1.0':
        folder = Path(archive.root, {'S1': 's1', 'S2L2A': 's2a', 'S2L1C': 's2c'}[kind], scene, name)
        bands = {'s1': 'VV VH', 's2_10m': 'B2 B3 B4 B8', 's2_20m': 'B5 B6 B7 B8A B11 B12', 's2_60m': 'B1 B9'}
        bands_of = bands[field].split() + ['B10'] * (field == 's2_60m' and kind == 'S2L1C')
        images = []
        for band in bands_of:
            with rasterio.open(folder / f'{band}.tif') as file:
                images.append(file.read(1))
        return np.stack(images)
    for file in Path(archive.root).glob(f'*/{"S1GRD" if kind == "S1" else kind}/*.zip'):
        with contextlib.closing(ZipStore(file, mode='r')) as store:
            group = zarr.open_group(store, mode='r')
            samples = group['sample'][:].tolist()
            if scene in samples:
                row = samples.index(scene)
                return group['bands'][row, group['file_id'][row].tolist().index(name)]
    raise AssertionError(f'{scene} is in no file')


def report(folder: Path) -> dict:
    """The conversion report of a data set."""
    return json.loads((folder / 'conversion_report.json').read_text())
