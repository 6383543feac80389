"""A generated SEN12MS archive, converted, and what tests do to its files."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.generate import sen12ms
from fusmae_jax.shipped.data.generate.scene import SceneConfig, scene
from fusmae_jax.shipped.data.sen12ms import images, triplets
from fusmae_jax.shipped.data.sen12ms.schema import GROUPS
from tests.support.files import rewrite

TRIPLETS, CONFIG = 20, SceneConfig(seed=3, size=256, level='L1C', cloud_share=0.3)


@pytest.fixture(scope='module')
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('sen12ms') / 'SEN12MS'
    assert sen12ms.write(folder, TRIPLETS, CONFIG) == {'root': str(folder), 'splits': 'official'}
    return folder


@pytest.fixture(scope='module')
def dataset(archive, tmp_path_factory) -> Path:
    return Path(sharded.convert(source(archive), tmp_path_factory.mktemp('data'))[0])


def source(root, on_error='fail', **settings):
    return triplets.source(triplets.Archive(str(root), **settings), on_error)


def files(root: Path, index: int) -> dict[str, Path]:
    """The three files of generated triplet `index`."""
    member = sen12ms.triplet(index, scene(CONFIG, index).season)
    return {kind: member.file(root, kind) for kind in images.KINDS}


def assert_holds_the_files(record, root: Path):
    """Every value of every band of a record is the one in its file, to the bit."""
    for kind, group in GROUPS.items():
        name = record[f'{kind}_name'].decode()
        season, _, number, _ = name.rsplit('_', 3)
        with rasterio.open(root / season / f'{kind}_{number}' / f'{name}.tif') as file:
            assert file.count == len(group.bands)
            for index in range(file.count):
                left, right = np.ascontiguousarray(record[kind][..., index]), file.read(index + 1)
                assert left.dtype == right.dtype == group.dtype
                assert left.tobytes() == right.tobytes(), (name, group.bands[index])
            place = np.array([file.transform.c, file.transform.f])
            assert record['epsg'] == file.crs.to_epsg()
        np.testing.assert_array_equal(np.float32(record['upper_left']), np.float32(place))


def shift(file: Path, metres: float):
    with rasterio.open(file) as opened:
        transform = opened.transform
    rewrite(file, transform=rasterio.Affine.translation(metres, 0) @ transform)
