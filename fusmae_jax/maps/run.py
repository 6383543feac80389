"""`python main.py map`: false colours, similar places and groups of what `encode` wrote.

The scene is read twice, a band of rows at a time: once for an evenly spread sample, from which components,
groups and the mean are taken, and once to draw.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
from rasterio.enums import Resampling
from rasterio.windows import Window

from fusmae_jax.errors import InputError
from fusmae_jax.geo.raster import open_raster
from fusmae_jax.maps import draw, places
from fusmae_jax.maps.source import Embeddings, opened

MOST_GROUPS = 50
PICTURE = 2048  # pixels a side of a PNG at most; its GeoTIFF has one for every cell
_SMALL = 8  # times that a small picture is enlarged, at most
Draw = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def run_map(
    embeddings: str,
    out: str,
    pca: bool,
    query: str,
    count: int,
    kmeans: int,
    overwrite: bool = False,
) -> int:
    """Draws what is asked for into files whose names begin with `out`; returns the exit code.

    Args:
        embeddings: a .tif or a .zarr of `encode`.
        out: the beginning of the names: `out`.pca.tif and .png, `out`.query.* and `out`.kmeans.*.
        pca: draw the three main components as red, green and blue.
        query: LON,LAT of a place with which all others are compared; '' for none.
        count: places to list.
        kmeans: groups; 0 for none.
        overwrite: replace files that are there.

    Raises:
        InputError: nothing is asked for, or it cannot be done; nothing is written then.
    """
    if not (pca or query or kmeans):
        raise InputError('give one or more of --pca, --query=LON,LAT and --kmeans=K')
    if kmeans > MOST_GROUPS:
        raise InputError(f'--kmeans={kmeans}: at most {MOST_GROUPS} groups can be told apart by colour')
    coordinate = places.parse(query) if query else None
    wanted = [name for name, asked in (('pca', pca), ('query', query), ('kmeans', kmeans)) if asked]
    _check_names(out, wanted, overwrite)
    with opened(Path(embeddings)) as scene:
        if coordinate and scene.grid.crs is None:
            raise InputError(
                f'--query={query}: {embeddings} has no place on the ground (georeference=none); --pca and '
                '--kmeans need none'
            )
        at = places.cell_at(scene.grid, *coordinate) if coordinate else None
        if at and not np.isfinite(scene.cell(*at)).all():
            raise InputError(f'--query={query} lies where the embeddings hold no data; give another place')
        sample = scene.sample()
        if pca:
            _draw_pca(scene, sample, out)
        if at:
            _draw_query(scene, sample.mean(axis=0), at, count, out)
        if kmeans:
            _draw_groups(scene, sample, kmeans, out)
    return 0


def _check_names(out: str, wanted: list[str], overwrite: bool) -> None:
    if not Path(out).parent.is_dir():
        raise InputError(f'--out={out}: the folder {Path(out).parent} does not exist')
    endings = {'query': ('tif', 'png', 'csv', 'geojson')}
    for kind in wanted:
        for ending in endings.get(kind, ('tif', 'png')):
            file = Path(f'{out}.{kind}.{ending}')
            if os.path.lexists(file) and not overwrite:
                raise InputError(f'{file} exists; name another --out, or give --overwrite')


def _draw_pca(scene: Embeddings, sample: np.ndarray, out: str) -> None:
    fitted = draw.components(sample)
    shares = ', '.join(f'{share:.1%}' for share in fitted.explained)
    print(f'red, green, blue: {shares} of the variance of {len(sample):,} cells')

    def colours(row: int, vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
        return np.where(valid[..., None], fitted.colours(np.nan_to_num(vectors)), 0)

    _write(scene, f'{out}.pca', 3, 'uint8', 0, colours, lambda image: image)


def _draw_query(scene: Embeddings, mean: np.ndarray, at: tuple[int, int], count: int, out: str) -> None:
    query, best = scene.cell(*at), places.Best(count, at)

    def similar(row: int, vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
        values = np.where(valid, draw.similarity(np.nan_to_num(vectors), query, mean), np.float32(np.nan))
        best.add(row, values)
        return values[..., None]

    # Cosines: what points away from the query is as unlike it as can be, and is drawn alike.
    _write(scene, f'{out}.query', 1, 'float32', np.nan, similar, lambda image: draw.ramp(image[..., 0]))
    chosen = best.places(scene.grid)
    places.write_csv(Path(f'{out}.query.csv'), chosen)
    places.write_geojson(Path(f'{out}.query.geojson'), chosen)
    for place in chosen:
        print(f'{place.rank}. {place.longitude:.6f},{place.latitude:.6f}  similarity {place.similarity:.3f}')


def _draw_groups(scene: Embeddings, sample: np.ndarray, count: int, out: str) -> None:
    if count > len(sample):
        raise InputError(
            f'--kmeans={count}: {scene.file} has {len(sample)} cells with data; ask for fewer groups'
        )
    centres, counts = draw.groups(sample, count), np.zeros(count + 1, np.int64)

    def group(row: int, vectors: np.ndarray, valid: np.ndarray) -> np.ndarray:
        number = np.where(valid, draw.nearest(np.nan_to_num(vectors), centres), 0)
        counts[:] += np.bincount(number.ravel(), minlength=count + 1)
        return number.astype(np.uint8)[..., None]

    palette = draw.palette(count)
    table = np.array([palette[i][:3] for i in range(count + 1)], np.uint8)
    _write(scene, f'{out}.kmeans', 1, 'uint8', 0, group, lambda image: table[image[..., 0]], palette)
    shares = ', '.join(f'{i} {share:.1%}' for i, share in enumerate(counts[1:] / counts[1:].sum(), 1))
    print(f'groups: {shares}')


def _write(
    scene: Embeddings,
    name: str,
    bands: int,
    dtype: str,
    nodata: float,
    cells: Draw,
    colours: Callable[[np.ndarray], np.ndarray],
    palette: Mapping[int, tuple[int, int, int, int]] | None = None,
) -> None:
    """Writes `name`.tif from `cells`, (rows, columns, bands) for each band of rows, and `name`.png of it."""
    file = Path(f'{name}.tif')
    with _under_another_name(file) as part:
        with rasterio.open(part, 'w', **_profile(scene, bands, dtype, nodata)) as dataset:
            if palette:
                dataset.write_colormap(1, dict(palette))
            for row, vectors, valid in scene.bands():
                window = Window(0, row, scene.grid.columns, len(vectors))
                dataset.write(np.moveaxis(cells(row, vectors, valid), -1, 0), window=window)
        picture = _picture(part, colours)
    picture.save(f'{name}.png')
    print(f'wrote {file} and {name}.png')


def _profile(scene: Embeddings, bands: int, dtype: str, nodata: float) -> dict[str, Any]:
    grid = scene.grid
    return {
        'driver': 'GTiff',
        'width': grid.columns,
        'height': grid.rows,
        'count': bands,
        'dtype': dtype,
        'crs': grid.crs,
        'transform': grid.transform,
        'nodata': nodata,
        'compress': 'deflate',
    }


@contextlib.contextmanager
def _under_another_name(file: Path) -> Iterator[Path]:
    """A name that becomes `file` when all is written."""
    part = file.with_name(f'.{file.name}.{os.getpid()}.part')
    try:
        yield part
        os.replace(part, file)
    except rasterio.errors.RasterioError as error:
        raise InputError(f'{file}: cannot be written ({error}); is the disk full?') from error
    finally:
        part.unlink(missing_ok=True)


def _picture(file: Path, colours: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A GeoTIFF as a picture with transparent nodata, not larger than PICTURE."""
    from PIL import Image

    with open_raster(file, beside=False) as dataset:
        factor = max(1, -(-max(dataset.shape) // PICTURE))
        shape = tuple(-(-length // factor) for length in dataset.shape)
        image = np.moveaxis(
            dataset.read(out_shape=(dataset.count, *shape), resampling=Resampling.nearest), 0, -1
        )
        there = np.isfinite(image).all(axis=-1) if image.dtype == np.float32 else (image != 0).any(axis=-1)
    alpha = np.where(there, 255, 0).astype(np.uint8)[..., None]
    picture = Image.fromarray(np.concatenate([colours(np.nan_to_num(image)), alpha], axis=-1))
    larger = min(_SMALL, PICTURE // 2 // max(shape))
    return (
        picture.resize((shape[1] * larger, shape[0] * larger), Image.Resampling.NEAREST)
        if larger > 1
        else picture
    )
