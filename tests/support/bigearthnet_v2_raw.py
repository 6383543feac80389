"""A generated archive of BigEarthNet v2 that tests read, copy and damage."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import rasterio

from fusmae_jax.shipped.data.bigearthnet_v2 import pairs
from fusmae_jax.shipped.data.bigearthnet_v2.schema import GROUPS
from fusmae_jax.shipped.data.generate import bigearthnet_v2 as generate
from fusmae_jax.shipped.data.generate.scene import SceneConfig

PAIRS = 16
SCENE = SceneConfig(seed=7, cloud_share=0.3, snow_share=0.3)
EVERYTHING = {'with_snow_cloud': True, 'reference_maps': True}


class Raw(NamedTuple):
    """A generated archive."""

    folder: Path
    settings: dict

    def source(self, on_error='fail', **changes):
        return pairs.source(pairs.Archive(**{**self.settings, **changes}), on_error)

    def copy(self, folder: Path) -> 'Raw':
        """The same archive in a folder that a test may damage."""
        shutil.copytree(self.folder, folder)
        return Raw(folder, {k: v.replace(str(self.folder), str(folder)) for k, v in self.settings.items()})

    def rows(self, file: str = generate.METADATA) -> list[dict]:
        return pyarrow.parquet.read_table(self.folder / file).to_pylist()

    def write_rows(self, rows: list[dict], file: str = generate.METADATA, schema=None):
        schema = schema or pyarrow.parquet.read_schema(self.folder / file)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), self.folder / file)

    def file(self, name: str, band: str, root: str = '') -> Path:
        root = root or (generate.S1_ROOT if name.startswith('S1') else generate.S2_ROOT)
        product = name.rsplit('_', 3 if name.startswith('S1') else 2)[0]
        return self.folder / root / product / name / f'{name}_{band}.tif'

    def map(self, name: str) -> Path:
        return self.file(name, 'reference_map', pairs.MAPS)


def write(folder: Path, count: int, config: SceneConfig, workers: int = 1) -> Raw:
    return Raw(folder, generate.write(folder, count, config, workers))


def pixels(file: Path) -> np.ndarray:
    with rasterio.open(file) as dataset:
        return dataset.read(1)


def assert_as_in_the_files(record: dict, raw: Raw):
    """Every band of a record holds the values of its file, bit for bit and in their type."""
    for field, group in GROUPS.items():
        for index, band in enumerate(group.bands):
            values = pixels(raw.file(record[f'{group.modality}_name'].decode(), band))
            assert values.dtype == record[field].dtype
            assert np.ascontiguousarray(record[field][..., index]).tobytes() == values.tobytes()
