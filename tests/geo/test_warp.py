"""Rasters in degrees on a grid in UTM: places, powers, and what was not measured."""

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio.warp
from rasterio.transform import Affine
from rasterio.windows import Window

from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.settings import SensorFile
from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import pixel_ground, whole_step
from fusmae_jax.geo.warp import Warp
from tests.support.embed_fixtures import write

STEP = 8.983e-5  # degrees; 10 m from south to north, 6.2 m from west to east at 51.5 degrees
LON, LAT = 13.7, 51.6
DB = SensorFile(unit='dB')


def degrees(file, pixels, bands=('VV', 'VH'), lon=LON, lat=LAT, **profile):
    """A file of EPSG:4326 with its upper left corner at a place."""
    transform = Affine(STEP, 0, lon, 0, -STEP, lat)
    return write(file, pixels, bands, crs='EPSG:4326', transform=transform, **profile)


def opened(file, modality='s1', settings=DB, reproject=10.0):
    return Raster(Path(file), modality, settings, reproject=reproject)


def whole(raster, bands):
    return raster.read(bands, 0, 0, raster.extent.rows, raster.extent.columns).astype(np.float64)


def position(raster, rows, columns):
    """Longitude and latitude of the pixels of a raster."""
    grid = raster.extent
    x = grid.left + (np.arange(columns) + 0.5) * grid.step_x
    y = grid.top - (np.arange(rows) + 0.5) * grid.step_y
    xs, ys = np.meshgrid(x, y)
    lon, lat = rasterio.warp.transform(grid.crs, 'EPSG:4326', xs.ravel(), ys.ravel())
    return np.reshape(lon, xs.shape), np.reshape(lat, xs.shape)


@pytest.mark.parametrize(
    ('lon', 'lat', 'zone'), [(13.7, 51.6, 32633), (-179.995, -16.5, 32701), (179.99, 60, 32660)]
)
def test_every_pixel_shows_its_own_place(lon, lat, zone, tmp_path):
    """The file holds its own coordinates, which are linear in them: interpolation must give them back."""
    i, j = np.meshgrid(np.arange(150), np.arange(150), indexing='ij')
    pixels = np.stack([lat - (i + 0.5) * STEP, lon + (j + 0.5) * STEP], axis=-1)
    origin = np.floor(pixels.min((0, 1)))
    pixels = ((pixels - origin) * 1000).astype(np.float32)
    file = degrees(tmp_path / 'a.tif', pixels, ('B02', 'B03'), lon, lat)
    raster = opened(file, 's2', SensorFile(unit='DN', offset=0.0))
    assert raster.extent.epsg == zone and raster.extent.left % 10 == 0 == raster.extent.top % 10
    values = whole(raster, ['B02', 'B03'])
    there = np.isfinite(values).all(-1)
    # All of the file, but for what the rectangle around it adds.
    metres = pixel_ground(raster.header.grid)
    assert there.sum() * 100 == pytest.approx(150**2 * metres[0] * metres[1], rel=0.02)
    x, y = position(raster, *there.shape)
    x += 360 * np.round((lon - x) / 360)
    wrong = np.hypot(values[..., 0] / 1000 + origin[0] - y, (values[..., 1] / 1000 + origin[1] - x))
    inner = (
        there & np.roll(there, 2, 0) & np.roll(there, -2, 0) & np.roll(there, 2, 1) & np.roll(there, -2, 1)
    )
    assert wrong[inner].max() * 111_320 < 0.02  # metres; float32 of the file has 0.007


def test_a_window_is_a_part_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    file = degrees(tmp_path / 'a.tif', rng.normal(-12, 3, (150, 200, 2)).astype(np.float32))
    raster = opened(file)
    all_of_it = whole(raster, ['VH'])
    part = raster.read(['VH'], 37, 11, 50, 40)
    np.testing.assert_allclose(part, all_of_it[37:87, 11:51], rtol=1e-6)
    assert np.isnan(raster.read(['VH'], -20, -20, 10, 10)).all()


def test_decibels_are_averaged_as_power():
    """Half-way between 0 and 10 dB lie 7.4 dB, not 5."""
    raster = Raster.__new__(Raster)
    raster._unit, raster.scale, raster.offset = 'dB', 0.01, 0.0
    mean = raster._from_power(raster._to_power(np.array([0, 1000])).mean())
    assert mean * 0.01 == pytest.approx(10 * math.log10(5.5))
    raster._unit, raster.scale = 'amplitude', 1.0
    assert raster._from_power(raster._to_power(np.array([0.1, 0.3])).mean()) == pytest.approx(math.sqrt(0.05))


def test_what_was_not_measured_spreads_nowhere(tmp_path):
    pixels = np.full((150, 200, 2), -10, np.float32)
    pixels[50:80, 60:100] = -9999
    raster = opened(degrees(tmp_path / 'a.tif', pixels, nodata=-9999))
    values = whole(raster, ['VV'])
    np.testing.assert_allclose(values[np.isfinite(values)], -10, atol=1e-4)
    longitude, latitude = position(raster, *values.shape[:2])
    column, row = (longitude - LON) / STEP, (LAT - latitude) / STEP
    hole = (row > 50) & (row < 80) & (column > 60) & (column < 100)
    outside = (row < 0) | (row > 150) | (column < 0) | (column > 200)
    np.testing.assert_array_equal(np.isnan(values[..., 0]), hole | outside)


def test_a_grid_of_quite_another_size_is_refused(tmp_path):
    file = degrees(tmp_path / 'a.tif', np.full((60, 60, 2), -10, np.float32))
    with pytest.raises(
        InputError, match=r'its pixels are 9.99 m of ground, the grid .* 60 m; config.reproject=10'
    ):
        opened(file, reproject=60.0)
    with pytest.raises(InputError) as error:
        opened(file, reproject=0.0)
    message = str(error.value)
    assert 'counts in degree' in message and '--config.reproject=10 interpolates on the fly' in message
    assert (
        f'rio warp {file} OUT.tif --dst-crs EPSG:32633 --res 10 --src-nodata nan --dst-nodata nan' in message
    )


def test_the_command_of_the_refusal_gives_the_same_place(tmp_path):
    """`rio warp` on the same grid, which is its bilinear of the numbers as they are."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(0, 3, (150, 200, 2)), axis=1).astype(np.float32) + 5000
    file = degrees(tmp_path / 'a.tif', smooth, ('B02', 'B03'))
    raster = opened(file, 's2', SensorFile(unit='DN', offset=0.0))
    values = whole(raster, ['B02'])[..., 0]
    theirs = np.full(values.shape, np.nan)
    rasterio.warp.reproject(
        smooth[..., 0],
        theirs,
        src_transform=Affine(STEP, 0, LON, 0, -STEP, LAT),
        src_crs='EPSG:4326',
        dst_transform=raster.extent.transform,
        dst_crs=raster.extent.crs,
        dst_nodata=np.nan,
        resampling=rasterio.warp.Resampling.bilinear,
        tolerance=0,
    )
    both = np.isfinite(values) & np.isfinite(theirs)
    assert both.mean() > 0.85
    # GDAL widens its kernel where pixels become larger, from west to east here.
    assert np.abs(values - theirs)[both].mean() < 0.2 * smooth[..., 0].std()


def test_sizes_of_pixels():
    assert [whole_step(x) for x in (9.98, 11.1, 19.0, 58.0, 30.0, 3.04)] == [10, 10, 20, 60, 30, 3.0]


def test_a_scene_across_zones_is_refused():
    from rasterio.crs import CRS

    from fusmae_jax.geo import UnusableError
    from fusmae_jax.geo.grid import Grid

    wide = Grid(4326, 0.0, 1.0, 0.001, 0.001, 1000, 40_000, crs=CRS.from_epsg(4326))
    with pytest.raises(UnusableError, match='a metre of EPSG:32634 is'):
        Warp(wide, 100.0)
    one = Warp(wide._replace(columns=1000), 100.0)
    assert one.read(lambda part: np.zeros((2, part.height, part.width)), Window(0, 0, 7, 5)).shape == (
        2,
        5,
        7,
    )


def test_metres_that_are_none_of_ground_are_brought_to_ground(tmp_path):
    """Web Mercator at 51.6 degrees: 16 m there are 10 m here."""
    pixels = np.full((100, 100, 2), -10, np.float32)
    transform = Affine(16.1, 0, 1_525_000, 0, -16.1, 6_730_000)
    file = write(tmp_path / 'a.tif', pixels, ('VV', 'VH'), crs='EPSG:3857', transform=transform)
    with pytest.raises(InputError, match=r'a metre of EPSG:3857 is 0\.6.*--config.reproject=10'):
        opened(file, reproject=0.0)
    raster = opened(file)
    there = np.isfinite(whole(raster, ['VV'])).sum()
    assert there == pytest.approx(100**2 * np.prod(pixel_ground(raster.header.grid)) / 100, rel=0.02)
