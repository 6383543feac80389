"""A container of so2sat as the program of GEO-Bench-2 writes it: no place, VH before VV, labels twice."""

import warnings

import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from fusmae_jax.shipped.data.generate.geobench2 import Member, pack
from fusmae_jax.shipped.data.geobench2.so2sat import CLASSES

SPLITS = ('train', 'validation', 'test')


def images_of(index):
    """Sentinel-1 (2, 32, 32) in the order of the file and Sentinel-2 (10, 32, 32), float32."""
    rng = np.random.default_rng((7, index))
    spread = np.array([0.2, 0.5])[:, None, None]  # VH, VV
    s1 = (spread * rng.standard_normal((2, 32, 32))).astype(np.float32)
    s2 = (0.15 + 0.03 * rng.standard_normal((10, 32, 32))).clip(0.0001).astype(np.float32)
    return s1, s2


def tiff(pixels):
    """A GeoTIFF without a reference system."""
    about = {'count': len(pixels), 'height': pixels.shape[1], 'width': pixels.shape[2]}
    with warnings.catch_warnings(), MemoryFile(ext='.tif') as memory:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with memory.open(driver='GTiff', dtype=pixels.dtype, **about) as out:
            out.write(pixels)
        return memory.read()


def inner(index, s1, s2, label=None):
    """The container of one sample, whose labels are numbers."""
    row = {
        'tortilla:file_format': 'GTiff',
        'tortilla:data_split': SPLITS[index % 3],
        'labels': index % len(CLASSES) if label is None else label,
        'patch_id': f'id_{index:04d}',
    }
    images = {'s1': tiff(s1), 's2': tiff(s2)}
    return pack([Member(content, {'tortilla:id': name, **row}) for name, content in images.items()])


def sample(index):
    """A sample with its row, whose label is a name."""
    row = {
        'tortilla:id': f'sample_id_{index:04d}',
        'tortilla:file_format': 'TORTILLA',
        'tortilla:data_split': SPLITS[index % 3],
        'labels': CLASSES[index % len(CLASSES)],
        'patch_id': f'id_{index:04d}',
    }
    return Member(inner(index, *images_of(index)), row)
