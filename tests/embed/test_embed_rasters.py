import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from fusmae_jax.embed.ground import align
from fusmae_jax.embed.rasters import Raster, pick
from fusmae_jax.embed.settings import SensorFile
from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid
from tests.support.embed_fixtures import BANDS, LEFT, TOP, image, write

PLAIN = SensorFile(unit='dB')
OPTICAL = SensorFile(unit='DN', offset=0.0)


def opened(file, modality='s1', settings=PLAIN, **options):
    return Raster(file, modality, settings, **options)


def stack(rows=6, columns=7, bands=2, dtype='float32'):
    return np.arange(1, rows * columns * bands + 1, dtype=dtype).reshape(rows, columns, bands)


def test_bands_are_read_by_name_in_any_order(tmp_path):
    pixels = stack(bands=3)
    raster = opened(write(tmp_path / 'a.tif', pixels, ['VH', 'angle', 'vv']) and tmp_path / 'a.tif')
    assert raster.bands == ('VH', 'ANGLE', 'VV')
    np.testing.assert_array_equal(raster.read(['VV', 'VH'], 1, 2, 3, 4), pixels[1:4, 2:6][..., [2, 0]])
    before = raster.read(['VV'], -2, -3, 4, 5)  # windows may begin before the image does
    np.testing.assert_array_equal(before[2:, 3:, 0], pixels[:2, :2, 2])
    assert np.isnan(before[:2]).all() and np.isnan(before[:, :3]).all()
    assert np.isnan(raster.read(['VV'], -9, 0, 4, 5)).all()
    raster.close()


def test_outside_nodata_infinite_and_masked_pixels_are_nan(tmp_path):
    pixels = stack(dtype='float32')
    pixels[0, 0, 0], pixels[1, 1, 1], pixels[2, 2], pixels[3, 3, 0] = np.inf, np.nan, -9999, 5
    file = tmp_path / 'a.tif'
    write(file, pixels, BANDS['s1'], nodata=-9999)
    raster = opened(file, settings=SensorFile(nodata=(5.0, float(pixels[4, 4, 1]))))
    read = raster.read(BANDS['s1'], 0, 0, 8, 9)
    raster.close()
    assert read.shape == (8, 9, 2) and read.dtype == np.float32
    missing = np.isnan(read)
    expected = np.ones((8, 9, 2), bool)
    expected[:6, :7] = False
    expected[0, 0, 0] = expected[1, 1, 1] = expected[2, 2] = expected[3, 3, 0] = expected[4, 4, 1] = True
    expected[:6, :7] |= pixels == 5
    np.testing.assert_array_equal(missing, expected)
    np.testing.assert_array_equal(read[:6, :7][~missing[:6, :7]], pixels[~missing[:6, :7]])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(file, 'r+') as dataset:
        dataset.nodata = None
        mask = np.ones((6, 7), bool)
        mask[5] = False
        dataset.write_mask(mask)
    raster = opened(file)
    assert np.isnan(raster.read(['VV'], 5, 0, 1, 7)).all()
    assert np.isfinite(raster.read(['VV'], 4, 0, 1, 7)).all()
    raster.close()


def test_integers_keep_their_values_and_their_nodata(tmp_path):
    pixels = stack(bands=2, dtype='uint16') + 60_000
    write(tmp_path / 'a.tif', pixels, ['B02', 'B03'], nodata=60_003)
    raster = opened(tmp_path / 'a.tif', 's2', OPTICAL)
    read = raster.read(['B02', 'B03'], 0, 0, 6, 7)
    assert np.isnan(read[pixels == 60_003]).all()
    np.testing.assert_array_equal(read[pixels != 60_003], pixels[pixels != 60_003])
    assert raster.dtype == 'uint16'
    raster.close()


@pytest.mark.parametrize(
    ('profile', 'part'),
    [
        ({'crs': None}, 'no reference system'),
        ({'transform': Affine.identity()}, 'no geotransform'),
        ({'transform': Affine(10, 1, LEFT, 1, -10, TOP)}, 'pixel size: rotated'),
        ({'transform': Affine(10, 0, LEFT, 0, 10, TOP)}, 'not north up'),
        ({'transform': Affine(-10, 0, LEFT, 0, -10, TOP)}, 'not north up'),
        ({'transform': Affine(10, 0, LEFT, 0, -20, TOP)}, '10 x 20 m are not square'),
        ({'crs': 'EPSG:4326', 'transform': Affine(1e-4, 0, 15, 0, -1e-4, 45)}, 'counts in degree'),
        ({'crs': 'EPSG:2263'}, 'counts in US survey foot'),
    ],
)
@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_files_that_are_not_on_a_metre_grid_are_refused(tmp_path, profile, part):
    file = tmp_path / 'a.tif'
    write(file, stack(), BANDS['s1'], **profile)
    with pytest.raises(InputError) as error:
        opened(file)
    assert part in str(error.value) and str(file) in str(error.value) and 'rio ' in str(error.value)


def test_ground_control_points_are_named(tmp_path):
    file = tmp_path / 'a.tif'
    points = [GroundControlPoint(r, c, 15 + c / 100, 45 - r / 100) for r in (0, 5) for c in (0, 6)]
    write(file, stack(), BANDS['s1'], crs='EPSG:4326', transform=None, gcps=points)
    with pytest.raises(InputError, match='ground control points only'):
        opened(file)


@pytest.mark.parametrize(
    ('bands', 'settings', 'part'),
    [
        (None, SensorFile(), 'channel 1, 2 of 2 does not say which it is'),
        (['VV', 'vv'], SensorFile(), 'VV is there more than once'),
        (None, SensorFile(bands=('VV',)), '2 channels, but config.s1.bands has 1 names'),
        (['VV', 'VH'], SensorFile(bands=('VH', 'VV')), 'channel 1 is described as VV'),
        (['VV', 'VH'], SensorFile(bands=('-', '-')), 'no channel is kept'),
    ],
)
def test_bands_without_names_are_never_guessed(tmp_path, bands, settings, part):
    write(tmp_path / 'a.tif', stack(), bands)
    with pytest.raises(InputError) as error:
        opened(tmp_path / 'a.tif', settings=settings)
    assert part in str(error.value) and 's1.bands' in str(error.value)


def test_scale_and_offset_come_from_the_file_or_from_the_settings(tmp_path):
    file = tmp_path / 'a.tif'
    write(file, stack(dtype='uint16'), BANDS['s1'], scales=([0.5, 0.5], [-1.0, -1.0]))
    for settings in (SensorFile(), SensorFile(scale=0.5, offset=-1.0)):
        raster = opened(file, settings=settings)
        assert (raster.scale, raster.offset) == (0.5, -1.0)
        raster.close()
    with pytest.raises(InputError, match=r's1 offset: the tag says -1, but config\.s1\.offset=-1000'):
        opened(file, settings=SensorFile(offset=-1000.0))
    with pytest.raises(InputError, match=r's1 scale: the tag says 0\.5, but config\.s1\.scale=2'):
        opened(file, settings=SensorFile(scale=2.0))
    write(file, stack(dtype='uint16'), BANDS['s1'], scales=([0.5, 0.6], [0.0, 0.0]))
    with pytest.raises(InputError, match=r's1 scale: \[0.5, 0.6\] in one file'):
        opened(file)
    write(file, stack(), BANDS['s1'])
    raster = opened(file, settings=SensorFile(offset=-1000.0))
    assert (raster.scale, raster.offset) == (1.0, -1000.0)
    raster.close()


def test_what_is_no_raster_is_refused(tmp_path):
    with pytest.raises(InputError, match='the file is missing'):
        opened(tmp_path / 'a.tif')
    (tmp_path / 'a.tif').write_bytes(b'II*\0 nothing')
    with pytest.raises(InputError, match='cannot be read in full'):
        opened(tmp_path / 'a.tif')
    (tmp_path / 'a.tif').unlink()
    write(tmp_path / 'a.tif', stack().astype(np.complex64), BANDS['s1'])
    with pytest.raises(InputError, match='complex numbers'):
        opened(tmp_path / 'a.tif')
    write(tmp_path / 'a.png', stack(bands=1, dtype='uint8'), ['VV'], driver='PNG')
    with pytest.raises(InputError, match=r'it is no GeoTIFF; make it one: rio convert .*a\.png'):
        opened(tmp_path / 'a.png')


def test_a_damaged_file_is_named_when_it_is_read(tmp_path):
    file = tmp_path / 'a.tif'
    write(file, image('s1', 300, 300), BANDS['s1'], compress='deflate')
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 3 : -5000] = bytes(len(damaged) - 5000 - len(damaged) // 3)
    file.write_bytes(damaged)
    raster = opened(file)
    with pytest.raises(InputError, match='cannot be read'):
        raster.read(BANDS['s1'], 200, 0, 100, 300)
    raster.close()


def test_missing_bands_need_a_policy(tmp_path):
    write(tmp_path / 'a.tif', stack(bands=2), ['B02', 'B04'])
    raster = opened(tmp_path / 'a.tif', 's2', OPTICAL)
    assert pick({'s2': raster}, ('B04', 'B03', 'B02'), 'mean') == {'s2': ['B04', 'B02']}
    for wanted, policy in ((('B04', 'B03'), 'error'), (('B05',), 'mean')):
        with pytest.raises(InputError, match=r'are missing.*absent_bands=mean'):
            pick({'s2': raster}, wanted, policy)
    raster.close()


def pair(tmp_path, first, second):
    """Two open rasters of (rows, columns, resolution, left, top)."""
    files = {}
    for name, (rows, columns, resolution, left, top, *crs) in zip(('s1', 's2'), (first, second)):
        file = tmp_path / f'{name}.tif'
        options = {'crs': crs[0]} if crs else {}
        write(file, stack(rows, columns), BANDS[name][:2], resolution, left, top, **options)
        files[name] = opened(file, name, OPTICAL if name == 's2' else PLAIN)
    return files


@pytest.mark.parametrize(
    ('first', 'second', 'part', 'common'),
    [
        # The same ground at 10 and 20 m; then with an odd number of fine pixels, both ways.
        ((40, 60, 10.0, LEFT, TOP), (20, 30, 20.0, LEFT, TOP), (0, 0, 20, 30), (40, 60)),
        ((41, 61, 10.0, LEFT, TOP), (21, 31, 20.0, LEFT, TOP), (0, 0, 21, 31), (41, 61)),
        ((41, 61, 10.0, LEFT, TOP), (20, 30, 20.0, LEFT, TOP), (0, 0, 20, 30), (40, 60)),
        # One in the other.
        ((40, 60, 10.0, LEFT, TOP), (20, 30, 10.0, LEFT + 50, TOP - 70), (0, 0, 20, 30), (20, 30)),
        ((20, 30, 10.0, LEFT + 40, TOP - 80), (20, 30, 20.0, LEFT, TOP), (4, 2, 10, 15), (20, 30)),
    ],
)
def test_files_are_aligned(tmp_path, first, second, part, common):
    rasters = pair(tmp_path, first, second)
    extent, lines = align(rasters)
    window = rasters['s2'].part
    assert (window.row_off, window.col_off, window.height, window.width) == part
    assert (extent.rows, extent.columns) == common
    for name, raster in rasters.items():
        cut = (raster.part.height, raster.part.width) != (raster.extent.rows, raster.extent.columns)
        assert any(str(raster.file) in line for line in lines) == cut
        # The first pixel of each is the one at the common corner.
        row = (raster.extent.top - extent.top) / raster.extent.resolution
        column = (extent.left - raster.extent.left) / raster.extent.resolution
        whole = stack(raster.extent.rows, raster.extent.columns)
        np.testing.assert_array_equal(
            raster.read([BANDS[name][0]], 0, 0, 1, 1)[0, 0], whole[int(row), int(column), :1]
        )
        assert np.isnan(raster.read([BANDS[name][0]], raster.part.height, 0, 1, 1)).all()
        raster.close()


def test_pixels_of_another_size_cannot_be_as_many(tmp_path):
    """One geotransform is wrong; a part of the coarser file would be taken for the whole."""
    rasters = pair(tmp_path, (40, 60, 10.0, LEFT, TOP), (40, 60, 60.0, LEFT, TOP))
    with pytest.raises(InputError, match='one geotransform is wrong') as error:
        align(rasters)
    assert 'rio warp' not in str(error.value)
    for raster in rasters.values():
        raster.close()


@pytest.mark.parametrize(
    ('second', 'part'),
    [
        ((40, 60, 10.0, LEFT, TOP, 'EPSG:32634'), 'is in EPSG:32633'),
        ((40, 60, 10.0, LEFT + 100, TOP), 'cover different ground'),
        ((40, 60, 10.0, LEFT + 1e6, TOP), 'cover different ground'),
        ((30, 50, 10.0, LEFT + 33, TOP - 20), 'do not share a grid'),
        ((30, 40, 20.0, LEFT - 10, TOP), 'do not share a grid'),
    ],
)
def test_files_that_do_not_match_are_refused_with_a_way_out(tmp_path, second, part):
    rasters = pair(tmp_path, (40, 60, 10.0, LEFT, TOP), second)
    with pytest.raises(InputError) as error:
        align(rasters)
    message = str(error.value)
    assert part in message and 's1.tif' in message and 's2.tif' in message
    edge = f'{rasters["s1"].extent.left:.10g}'
    assert f's2.tif OUT.tif --dst-crs EPSG:32633 --bounds {edge}' in message
    for raster in rasters.values():
        raster.close()


def test_cells_and_the_affine_transform_agree():
    grid = Grid(32633, LEFT, TOP, 1200 / 15, 1200 / 14, 1281, 977)
    rows, columns = (index.ravel() for index in np.indices((1281, 977)))
    left, bottom, right, top = grid.corners(rows, columns)
    x, y = (left + right) / 2, (bottom + top) / 2
    back = np.array(rasterio.transform.rowcol(grid.transform, x, y, op=lambda v: v))[::-1]
    np.testing.assert_array_equal(np.floor(back[0]), columns)
    np.testing.assert_array_equal(np.floor(back[1]), rows)
    np.testing.assert_allclose(back[0] % 1, 0.5, atol=1e-6)
