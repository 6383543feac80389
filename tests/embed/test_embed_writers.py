import json
import struct
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import zarr
from rasterio.crs import CRS

from fusmae_jax.embed.geoparquet import GeoParquet
from fusmae_jax.embed.geotiff import GeoTiff
from fusmae_jax.embed.geozarr import GeoZarr
from fusmae_jax.embed.quantise import LIMIT, NODATA, Quantiser, by_cell, scale_of
from fusmae_jax.geo.grid import Grid

GRID = Grid(32633, 500_000.0, 5_000_000.0, 1200 / 14, 1200 / 14, 53, 37, crs=CRS.from_epsg(32633))
WIDTH = 5
DESCRIPTION = {'output': 'tokens', 'cell': [1.5, 2]}


def vectors(seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((GRID.rows, GRID.columns, WIDTH)).astype(np.float32) * [1, 5, 0.1, 2, 0]
    valid = rng.random((GRID.rows, GRID.columns)) < 0.8
    valid[20:27] = False
    return np.where(valid[..., None], values, np.nan).astype(np.float32), valid


def written(writer, values, valid, heights=(1, 7, 20, 3, 22)):
    start = 0
    for height in heights:
        writer.write(values[start : start + height], valid[start : start + height])
        start += height
    assert start == GRID.rows
    writer.finish()


def test_symmetric_int8():
    values, valid = vectors()
    largest = np.abs(values[valid]).max(axis=0)
    quantise = Quantiser(scale_of(largest, complete=True))
    stored = quantise(values, valid)
    assert stored.dtype == np.int8 and (stored[~valid] == NODATA).all()
    assert np.abs(stored[valid].astype(int)).max() == LIMIT
    error = np.abs(stored[valid] * quantise.scale - values[valid])
    assert (error <= quantise.scale / 2 * 1.001).all()
    np.testing.assert_array_equal(Quantiser(quantise.scale)(-values, valid)[valid], -stored[valid])
    none = Quantiser(quantise.scale)
    none(values[20:27], valid[20:27])
    assert set(none.report().values()) == {None}  # nothing was stored, so nothing was stored well
    report = quantise.report()
    assert report['clipped_share'] == 0 and report['cosine_mean'] > 0.9999 > 0.99 < report['cosine_min'] < 1
    small = Quantiser(scale_of(largest / 2, complete=True))
    small(values, valid)
    assert 0 < small.report()['clipped_share'] < 0.2
    assert small.report()['cosine_mean'] < report['cosine_mean']
    np.testing.assert_allclose(scale_of(largest, False)[:4], 1.25 * scale_of(largest, True)[:4])
    assert scale_of(largest, False)[4] == 1  # a channel that is always 0
    Quantiser(np.ones(WIDTH, np.float32))(values[20:27], valid[20:27])  # nothing valid


@pytest.mark.parametrize('int8', [False, True])
@pytest.mark.parametrize('compress', ['none', 'deflate', 'zstd'])
def test_geotiff(tmp_path, int8, compress):
    values, valid = vectors()
    scale = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32) if int8 else None
    stored = Quantiser(scale)(values, valid) if int8 else values
    written(GeoTiff(tmp_path / 'e.tif', GRID, scale, WIDTH, compress, DESCRIPTION), stored, valid)
    with rasterio.open(tmp_path / 'e.tif') as dataset:
        assert dataset.crs == GRID.crs and dataset.transform == GRID.transform
        assert dataset.shape == (GRID.rows, GRID.columns) and dataset.count == WIDTH
        assert dataset.block_shapes == [(16, 16)] * WIDTH
        np.testing.assert_array_equal(np.moveaxis(dataset.read(), 0, -1), stored)
        np.testing.assert_array_equal(dataset.read_masks(1) > 0, valid)
        assert json.loads(dataset.tags()['FUSMAE_JAX']) == DESCRIPTION
        assert dataset.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG' and dataset.overviews(1) == []
        if int8:
            np.testing.assert_array_equal(np.float32(dataset.scales), scale)
            assert set(dataset.dtypes) == {'int8'} and dataset.nodata == NODATA


@pytest.mark.parametrize('int8', [False, True])
def test_a_large_geotiff_has_an_overview_of_means_before_its_tiles(tmp_path, int8):
    rng = np.random.default_rng(0)
    grid = GRID._replace(rows=37, columns=1031)
    values = rng.integers(-99, 99, (37, 1031, 2)).astype(np.int8 if int8 else np.float32)
    valid = rng.random((37, 1031)) < 0.5
    valid[:4, :8] = False
    stored = np.where(valid[..., None], values, NODATA if int8 else np.nan).astype(values.dtype)
    writer = GeoTiff(tmp_path / 'e.tif', grid, np.ones(2) if int8 else None, 2, 'zstd', {})
    for start in range(0, 37, 5):
        writer.write(stored[start : start + 5], valid[start : start + 5])
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ['e.tif']
    padded = np.pad(np.where(valid[..., None], values.astype(float), 0), ((0, 3), (0, 1), (0, 0)))
    sums = padded.reshape(10, 4, 258, 4, 2).sum(axis=(1, 3))
    counts = np.pad(valid, ((0, 3), (0, 1))).reshape(10, 4, 258, 4).sum(axis=(1, 3))[..., None]
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    with rasterio.open(tmp_path / 'e.tif') as dataset:
        assert dataset.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG' and dataset.overviews(1) == [4]
        np.testing.assert_array_equal(np.moveaxis(dataset.read(), 0, -1), stored)
    with rasterio.open(tmp_path / 'e.tif', overview_level=0) as dataset:
        small = np.moveaxis(dataset.read(), 0, -1).astype(float)
    small[small == NODATA] = np.nan
    np.testing.assert_allclose(small, mean, atol=0.501 if int8 else 1e-4)
    assert np.isnan(small[0, :2]).all()
    content = (tmp_path / 'e.tif').read_bytes()
    first, second = ifds(content)
    # Both directories stand before all tiles, and the tiles of the overview before those of the image.
    assert max(first.at, second.at) < second.tiles < first.tiles


class Directory(NamedTuple):
    at: int
    tiles: int  # place of the first tile


def ifds(content: bytes) -> list[Directory]:
    """The directories of a classic little-endian TIFF."""
    assert content[:4] == b'II*\0'
    (at,), result = struct.unpack_from('<I', content, 4), []
    while at:
        (count,) = struct.unpack_from('<H', content, at)
        entries = [struct.unpack_from('<HHII', content, at + 2 + 12 * i) for i in range(count)]
        offsets = next(e for e in entries if e[0] == 324)
        places = struct.unpack_from(f'<{offsets[2]}I', content, offsets[3])
        result.append(Directory(at, min(place for place in places if place)))
        (at,) = struct.unpack_from('<I', content, at + 2 + 12 * count)
    return result


@pytest.mark.parametrize('int8', [False, True])
@pytest.mark.parametrize('compress', ['none', 'deflate', 'zstd'])
def test_zarr(tmp_path, int8, compress):
    values, valid = vectors()
    written(GeoZarr(tmp_path / 'e.zarr', GRID, int8, WIDTH, compress, DESCRIPTION), values, valid)
    root = zarr.open_group(tmp_path / 'e.zarr', mode='r')
    array = root['embedding']
    assert array.metadata.zarr_format == 3 and array.metadata.dimension_names == ('y', 'x', 'band')
    assert array.chunks == (32, 32, WIDTH)  # a window of a notebook touches few
    stored = array[:]
    if int8:
        scale = root['scale'][:]
        assert stored.dtype == np.int8 and stored.min() >= -LIMIT
        np.testing.assert_array_equal(np.isnan(scale), ~valid)
        error = np.abs(stored * scale[..., None] - values)[valid]
        assert (error <= scale[valid][:, None] * 0.501).all()
        # The numbers of a cell depend on no other cell.
        alone, its = by_cell(values[3:4, 5:9], valid[3:4, 5:9])
        np.testing.assert_array_equal(alone, stored[3:4, 5:9])
        np.testing.assert_array_equal(its, scale[3:4, 5:9])
    else:
        np.testing.assert_array_equal(stored, values)
    attributes = dict(root.attrs)
    assert attributes['proj:code'] == 'EPSG:32633' and attributes['fusmae_jax'] == DESCRIPTION
    assert attributes['spatial:dimensions'] == ['y', 'x'] and attributes['spatial:shape'] == [53, 37]
    a, b, c, d, e, f = attributes['spatial:transform']
    assert (b, d) == (0, 0)
    np.testing.assert_allclose(root['x'][:], c + a * (np.arange(37) + 0.5))
    np.testing.assert_allclose(root['y'][:], f + e * (np.arange(53) + 0.5))
    assert CRS.from_wkt(root['spatial_ref'].attrs['crs_wkt']) == GRID.crs
    assert array.attrs['grid_mapping'] == 'spatial_ref'


def test_a_zarr_store_says_nothing_before_it_is_complete(tmp_path):
    values, valid = vectors()
    writer = GeoZarr(tmp_path / 'e.zarr', GRID, False, WIDTH, 'zstd', DESCRIPTION)
    writer.write(values[:40], valid[:40])
    assert dict(zarr.open_group(tmp_path / 'e.zarr', mode='r').attrs) == {}


@pytest.mark.parametrize('int8', [False, True])
def test_geoparquet(tmp_path, int8):
    values, valid = vectors()
    scale = np.full(WIDTH, 0.1, np.float32) if int8 else None
    stored = Quantiser(scale)(values, valid) if int8 else values
    written(GeoParquet(tmp_path / 'e.parquet', GRID, scale, WIDTH, 'zstd', DESCRIPTION), stored, valid)
    file = pq.ParquetFile(tmp_path / 'e.parquet')
    # One row group for each block that holds anything; the rows 20 to 26 are empty.
    assert file.metadata.num_row_groups == 5 and file.metadata.num_rows == valid.sum()
    table = file.read()
    rows, columns = (table[name].to_numpy() for name in ('row', 'column'))
    np.testing.assert_array_equal(np.stack([rows, columns]), np.nonzero(valid))
    embedding = table['embedding'].combine_chunks()
    assert embedding.type.list_size == WIDTH
    np.testing.assert_array_equal(embedding.flatten().to_numpy().reshape(-1, WIDTH), stored[valid])
    assert str(embedding.type.value_type) == ('int8' if int8 else 'float')
    if int8:  # a byte a value, and one dictionary of values in each row group
        groups = [file.metadata.row_group(i) for i in range(5)]
        stored_size = sum(group.column(group.num_columns - 1).total_uncompressed_size for group in groups)
        assert stored_size < 1.3 * valid.sum() * WIDTH + 5 * 1500
    left, bottom, right, top = GRID.corners(rows, columns)
    for i, blob in enumerate(table['geometry'].to_pylist()):
        order, kind, rings, points = struct.unpack('<BIII', blob[:13])
        assert (order, kind, rings, points, len(blob)) == (1, 3, 1, 5, 93)
        ring = np.frombuffer(blob[13:]).reshape(5, 2)
        np.testing.assert_array_equal(ring[0], ring[-1])
        x, y = ring[:-1].T
        assert (x.min(), y.min(), x.max(), y.max()) == (left[i], bottom[i], right[i], top[i])
        assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0  # counter-clockwise
        assert table['bbox'][i].as_py() == {
            'xmin': left[i],
            'ymin': bottom[i],
            'xmax': right[i],
            'ymax': top[i],
        }


def test_geoparquet_metadata_follow_the_specification(tmp_path):
    values, valid = vectors()
    written(GeoParquet(tmp_path / 'e.parquet', GRID, None, WIDTH, 'none', DESCRIPTION), values, valid)
    metadata = pq.ParquetFile(tmp_path / 'e.parquet').metadata.metadata
    geo = json.loads(metadata[b'geo'])
    assert geo['version'] == '1.1.0' and geo['primary_column'] == 'geometry'
    column = geo['columns']['geometry']
    assert column['encoding'] == 'WKB' and column['geometry_types'] == ['Polygon']
    assert CRS.from_user_input(json.dumps(column['crs'])) == GRID.crs
    height, width = 53 * 1200 / 14, 37 * 1200 / 14
    np.testing.assert_allclose(column['bbox'], [5e5, 5e6 - height, 5e5 + width, 5e6], atol=1e-6)
    schema = pq.read_schema(tmp_path / 'e.parquet')
    assert schema.metadata[b'geo'] == metadata[b'geo']
    for side, path in column['covering']['bbox'].items():
        assert schema.field(path[0]).type.field(path[1]).name == side
    assert json.loads(metadata[b'fusmae_jax']) == DESCRIPTION
