"""Files for the tests of `encode`: a checkpoint of a tiny model, and georeferenced images."""

import contextlib
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rasterio
from rasterio.transform import Affine

from fusmae_jax import sensors
from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import to_dict
from fusmae_jax.embed.run import embed
from fusmae_jax.embed.settings import EncodeConfig, SensorFile
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from tests.support.helpers import CONTRACT, weights
from tests.support.tiny import tiny_config, tiny_model

# Lines of the grid of the ground at every overlap, so that windows begin at the corner of an image.
LEFT, TOP = 500_400.0, 5_000_400.0
CELL = 30  # pixels of 10 m: the tiny model has 4 x 4 tokens on 1200 m
BANDS = {name: list(sensors.SENSORS[name].bands) for name in ('s1', 's2')}
CONFIG = EncodeConfig(s1=SensorFile(unit='dB'), s2=SensorFile(unit='DN', offset=0.0), batch=4)


def write_checkpoint(folder: Path, model: cfg.Model | None = None, **changes) -> str:
    """A working directory with one checkpoint of an untrained tiny model; `changes` are of its contract."""
    decoder = cfg.Decoder(width=16, depth=1, heads=2)
    model = model or dataclasses.replace(tiny_model('none'), depth=2, decoder=decoder)
    config = tiny_config(model=model)
    contract = dataclasses.replace(CONTRACT, **({'products': SCHEMA.products} | changes))
    meta = {'config': to_dict(config), 'contract': to_dict(contract), 'dtype': 'float32'}
    state = {
        'step': jnp.int32(1),
        'params': weights(config.model),
        'opt_state': {'mu': jnp.zeros(1)},
        'extra': {},
    }
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(state, json.loads(json.dumps(meta)))
    checkpoints.wait()
    checkpoints.close()
    return str(folder)


def image(name: str, rows: int, columns: int, seed: int = 0, step: int = 1) -> np.ndarray:
    """Plausible pixels (rows, columns, bands); every `step`-th of the image that `step=1` would give."""
    rng = np.random.default_rng((seed, len(name)))
    bands = [sensors.SENSORS[name].bands[band] for band in BANDS[name]]
    blocks = rng.standard_normal((rows * step // 20 + 2, columns * step // 20 + 2, len(bands)))
    field = np.kron(blocks, np.ones((20, 20, 1)))[: rows * step : step, : columns * step : step]
    values = field * [0.7 * band.std for band in bands] + [band.mean for band in bands]
    return values.astype(np.float32) if name == 's1' else np.clip(values, 1, 20_000).astype(np.uint16)


def write(file: Path, pixels: np.ndarray, bands=None, resolution=10.0, left=LEFT, top=TOP, **profile) -> str:
    """A GeoTIFF of pixels (rows, columns, bands), named by `bands`; `profile` overrides anything."""
    values = {
        'driver': 'GTiff',
        'height': pixels.shape[0],
        'width': pixels.shape[1],
        'count': pixels.shape[2],
        'dtype': pixels.dtype.name,
        'crs': 'EPSG:32633',
        'transform': Affine(resolution, 0, left, 0, -resolution, top),
    } | profile
    scales = values.pop('scales', None)
    with rasterio.open(file, 'w', **values) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
        if bands:
            dataset.descriptions = tuple(bands)
        if scales:
            dataset.scales, dataset.offsets = scales
    return str(file)


def write_pair(folder: Path, rows: int, columns: int, **profile) -> tuple[str, str, dict[str, np.ndarray]]:
    """The files of both sensors and their pixels."""
    pixels = {name: image(name, rows, columns) for name in BANDS}
    files = [write(folder / f'{name}.tif', pixels[name], BANDS[name], **profile) for name in BANDS]
    return files[0], files[1], pixels


def changed(**changes) -> EncodeConfig:
    """`CONFIG` with other settings."""
    return dataclasses.replace(CONFIG, **changes)


def run(model, config: EncodeConfig, out: Path, **files) -> None:
    """Embeds files, modality -> path, into `out`."""
    embed(config, {name: str(file) for name, file in files.items()}, model, 'test', str(out))


def embedded(file: Path) -> np.ndarray:
    """Vectors (rows, columns, width) of a GeoTIFF, NaN where there is no data."""
    with rasterio.open(file) as dataset:
        values = np.moveaxis(dataset.read(), 0, -1)
        if dataset.dtypes[0] == 'int8':
            return np.where(values == -128, np.nan, values * np.float32(dataset.scales))
        return values


@contextlib.contextmanager
def compiled_once(folder: Path):
    """A cache of compiled programs: most runs of these tests compile the same few."""
    settings = {
        'jax_compilation_cache_dir': str(folder),
        'jax_persistent_cache_min_compile_time_secs': 0.0,
        'jax_persistent_cache_min_entry_size_bytes': -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
