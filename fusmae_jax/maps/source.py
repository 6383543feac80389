"""Embeddings as `encode` wrote them, read row by row: a GeoTIFF or a Zarr store."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
from rasterio.crs import CRS
from rasterio.windows import Window

from fusmae_jax.embed import geotiff, geozarr
from fusmae_jax.embed.row_file import TAG
from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.grid import Grid
from fusmae_jax.geo.raster import open_raster

SAMPLE = 20_000  # cells from which components, groups and the mean are taken
ReadRows = Callable[[int, int], np.ndarray]


class Embeddings:
    """The vectors of a scene; memory does not grow with its rows."""

    def __init__(self, file: Path, grid: Grid, width: int, step: int, read: ReadRows):
        """`read(row, count)` gives (count, columns, width) float32, NaN without data."""
        self.file, self.grid, self.width = file, grid, width
        self._step, self._read = step, read

    def bands(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """First row of a band of rows, its vectors (rows, columns, width), and where there are any."""
        for row in range(0, self.grid.rows, self._step):
            vectors = self._read(row, min(self._step, self.grid.rows - row))
            yield row, vectors, np.asarray(np.isfinite(vectors).all(axis=-1))

    def cell(self, row: int, column: int) -> np.ndarray:
        """The vector (width,) of one cell, NaN without data."""
        return self._read(row, 1)[0, column]

    def sample(self) -> np.ndarray:
        """At most SAMPLE vectors (cells, width), evenly spread, the same in every run."""
        every = -(-self.grid.rows * self.grid.columns // SAMPLE)
        chosen = []
        for row, vectors, valid in self.bands():
            index = np.arange(valid.size).reshape(valid.shape) + row * self.grid.columns
            # A step that shares a factor with the columns would take the same ones in every row.
            chosen.append(vectors[valid & ((index + index // self.grid.columns) % every == 0)])
        sample = np.concatenate(chosen)
        if len(sample) < 3:
            raise InputError(
                f'{self.file}: only {len(sample)} cells hold data, too few to draw anything from'
            )
        return sample


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Embeddings]:
    """Opens what `encode` wrote; raises InputError for anything else."""
    if not file.exists():
        raise InputError(f'--embeddings={file} does not exist; write it with `encode --out={file}`')
    if file.suffix == '.zarr':
        yield _zarr(file)
        return
    if file.suffix.lower() not in ('.tif', '.tiff'):
        raise InputError(f'--embeddings={file}: ends in {file.suffix!r}; give a .tif or a .zarr of `encode`')
    try:
        with open_raster(file, beside=False) as dataset:
            yield _geotiff(file, dataset)
    except UnusableError as error:
        raise InputError(f'--embeddings={file}: {error.found}; give a .tif or a .zarr of `encode`') from error
    except rasterio.errors.RasterioError as error:
        raise InputError(f'{file}: cannot be read ({error}); is the file complete?') from error


def _geotiff(file: Path, dataset: rasterio.DatasetReader) -> Embeddings:
    if TAG not in dataset.tags():
        raise InputError(f'--embeddings={file} is not by `encode`: its tag {TAG} is missing')
    at, crs = dataset.transform, dataset.crs  # None of chips without a place
    grid = Grid(
        crs.to_epsg() if crs else None, at.c, at.f, at.a, -at.e, dataset.height, dataset.width, crs=crs
    )
    scale = np.float32(dataset.scales)

    def read(row: int, count: int) -> np.ndarray:
        stored = np.moveaxis(dataset.read(window=Window(0, row, grid.columns, count)), 0, -1)
        if stored.dtype == np.float32:
            return stored
        return np.where(stored == dataset.nodata, np.float32(np.nan), stored * scale)

    return Embeddings(file, grid, dataset.count, geotiff.TILE, read)


def _zarr(file: Path) -> Embeddings:
    import zarr

    try:
        root = zarr.open_group(file, mode='r')
        about: dict[str, Any] = dict(root.attrs)
        a, _, left, _, e, top = about['spatial:transform']
        rows, columns = about['spatial:shape']
        system = about.get('proj:code') or about.get('proj:wkt2')
        crs = CRS.from_user_input(system) if system else None
        values: Any = root[geozarr.VALUES]
        scales: Any = root.get(geozarr.SCALES)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f'--embeddings={file} is no complete store of `encode` ({error!r}); encode once more'
        ) from error

    def read(row: int, count: int) -> np.ndarray:
        stored = np.asarray(values[row : row + count])
        if scales is None:
            return stored
        return stored * np.asarray(scales[row : row + count])[..., None]

    grid = Grid(crs.to_epsg() if crs else None, left, top, a, -e, rows, columns, crs=crs)
    return Embeddings(file, grid, values.shape[-1], geozarr.CHUNK, read)
