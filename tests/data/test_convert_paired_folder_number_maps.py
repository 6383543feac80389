"""Rasters of numbers beside a user's own GeoTIFFs: every pixel as in the file, or an error with a remedy."""

import dataclasses

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import NumberMap
from fusmae_jax.input.number_maps import known, moments, to_numbers
from fusmae_jax.input.source import Source, read_index
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.paired_folder import pairs
from fusmae_jax.shipped.data.paired_folder.schema import MAP
from tests.support.paired_folder_files import archive, pair, put


def heights(size=48, dtype='float32'):
    rng = np.random.default_rng(3)
    numbers = rng.uniform(2, 40, (1, size, size)).astype(np.float32)
    if dtype == 'int16':
        return np.where(rng.random(numbers.shape) < 0.2, -1, (10 * numbers).round()).astype(np.int16)
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    return numbers


def mapped(folder, array=None, name='a', **profile):
    """A pair with its raster of numbers, and the settings."""
    pair(folder, name)
    array = heights() if array is None else array
    put(folder / 'labels' / f'{name}.tif', array, ('',) * len(array), **profile)
    return archive(folder, **settings(folder))


def settings(folder, **changes):
    values = {'map_root': str(folder / 'labels'), 'map_quantity': 'height', 'map_unit': 'm'}
    return values | changes


def written(source, folder):
    path, report = sharded.convert(source, folder)
    data = Source(str(path), 'train', (MAP,))
    records = (data[i] for i in range(len(data)))
    return data, {record['name'].item().decode(): record[MAP] for record in records}, report


def test_numbers_are_those_of_the_file_pixel_by_pixel_on_their_own_grid_and_are_counted(tmp_path):
    """One pixel to the side, or a value between two others, would show here."""
    data, maps, report = written(pairs.source(mapped(tmp_path, heights(96), step=5.0)), tmp_path / 'out')
    whole = heights(96)[0]
    assert len(maps) == 4
    for name, stored in maps.items():
        row, column = (2 * int(x) for x in name.split('_')[1:])
        np.testing.assert_array_equal(stored, whole[row : row + 48, column : column + 48])
    about = contracts.read(data.path).number_maps[MAP]
    assert about == NumberMap('height', 'm', size=(48, 48), resolution=5.0)
    assert data.contract.maps is None and MAP not in data.contract.groups
    counted = report['splits']['train']['number_maps'][MAP]
    assert counted['pixels'] == np.isfinite(whole).sum() and counted['of'] == whole.size
    assert counted['mean'] == pytest.approx(np.nanmean(whole.astype(np.float64)))
    assert (counted['minimum'], counted['maximum']) == (np.nanmin(whole), np.nanmax(whole))
    assert 'of the pixels, mean' in sharded.report.summary(report)
    index = read_index(data.path, 'train', ['name', f'pixels_{MAP}'])
    for name, stored in zip(index['name'], index[f'pixels_{MAP}']):
        np.testing.assert_array_equal(stored, moments(maps[name.decode()]))


def test_whole_numbers_have_their_nodata_scale_and_offset_from_the_file(tmp_path):
    stored = heights(dtype='int16')
    source = pairs.source(mapped(tmp_path, stored, nodata=-1, scales=(0.1, 2.0)))
    data, maps, _ = written(dataclasses.replace(source), tmp_path / 'out')
    about = data.contract.number_maps[MAP]
    assert (about.nodata, about.scale, about.offset, about.dtype) == ((-1.0,), 0.1, 2.0, 'int16')
    wanted = np.where(stored[0, :24, :24] == -1, np.nan, stored[0, :24, :24] * 0.1 + 2)
    np.testing.assert_allclose(to_numbers(maps['a_0_0'], about), wanted, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'int16'])
def test_what_no_file_fills_has_no_number(dtype, tmp_path):
    mapped(tmp_path, heights(dtype=dtype))
    given = settings(tmp_path, tile=32, edge='pad', map_nodata=(-1.0,) if dtype == 'int16' else ())
    data, maps, _ = written(pairs.source(archive(tmp_path, **given)), tmp_path / 'out')
    known_pixels = known(maps['a_32_32'], data.contract.number_maps[MAP])
    assert (
        known_pixels[:16, :16].mean() > 0.6 and not known_pixels[16:].any() and not known_pixels[:, 16:].any()
    )


def test_a_nodata_value_that_no_pixel_can_have_is_refused(tmp_path):
    stored = heights(dtype='int16').clip(0).astype(np.uint8)
    mapped(tmp_path, stored)
    given = archive(tmp_path, **settings(tmp_path, map_nodata=(-9999.0,)))
    with pytest.raises(InputError, match=r'map_nodata=.*a\.tif can be -9999, they are uint8'):
        pairs.source(given)


def test_a_nodata_tag_in_float64_is_that_of_float32_pixels():
    stored = np.float32([[-3.4028235e38, 0.1], [5.0, np.nan]])
    about = NumberMap(nodata=(-1.7976931348623157e308, -3.4028234663852886e38, 0.1))
    assert known(stored, about).tolist() == [[False, False], [True, False]]


def odd(value, dtype='float32'):
    array = heights() if dtype == 'float32' else np.nan_to_num(heights(), nan=7).astype(dtype)
    array[0, 30, 5] = value
    return array


@pytest.mark.parametrize(
    ('array', 'profile', 'message'),
    [
        (None, {'left': 500_010.0}, r'labels/a\.tif: map position: .* --resampling nearest'),
        (odd(-9999), {}, r'a\.tif: map: -9999 at row 6, column 5 .* row 24, column 0 .*map_nodata'),
        (odd(-3.4e38), {}, r'a\.tif: map: -3\.4e\+38 at row 6, column 5'),
        (odd(-1e20), {}, r'a\.tif: map: -1e\+20 at row 6, column 5'),
        (odd(-99), {}, r'a\.tif: map: -99 at row 6, column 5 .*or map_measured if it is a number'),
        (odd(255, 'uint8'), {}, r'a\.tif: map: 255 at row 6, column 5'),
        (
            odd(3, 'int16'),
            {'scales': (0.0, 0.0)},
            r'a\.tif: map scale, offset: 0, 0, with which numbers of 32',
        ),
        (odd(3, 'int16'), {'scales': (1e-6, 1e6)}, r'a\.tif: map scale, offset: 1e-06, 1e\+06, with which'),
        (heights().astype(np.float64), {}, 'map dtype: float64, .* write them as one of float32'),
        (heights().repeat(2, axis=0), {}, 'map channels: 2, expected one; keep the one with the numbers'),
    ],
)
def test_a_raster_that_cannot_be_used_is_one_error(array, profile, message, tmp_path):
    with pytest.raises(InputError, match=message):
        sharded.convert(pairs.source(mapped(tmp_path, array, **profile)), tmp_path / 'out')


@pytest.mark.parametrize(('value', 'dtype'), [(-99.0, 'float32'), (-999.0, 'int16'), (255.0, 'uint8')])
def test_a_number_that_mostly_means_none_is_one_where_it_was_measured(value, dtype, tmp_path):
    given = dataclasses.replace(mapped(tmp_path, odd(value, dtype)), map_measured=(value,))
    data, maps, _ = written(pairs.source(given), tmp_path / 'out')
    numbers = to_numbers(np.stack(list(maps.values())), data.contract.number_maps[MAP])
    assert (numbers == value).sum() == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'map_measured': (-99.0,), 'map_nodata': (-99.0,)}, 'map_measured=.*: -99 is in map_nodata too'),
        ({'map_classes': ('a', 'b')}, "map_classes: of classes, but map_quantity='height'"),
        ({'map_quantity': 'r2/x'}, "map_quantity='r2/x' must be letters"),
        ({'map_quantity': ''}, 'map_unit: goes with a raster of numbers'),
        ({'map_root': ''}, 'map_quantity: there are no label rasters; give map_root'),
    ],
)
def test_settings_that_cannot_be(changes, message, tmp_path):
    mapped(tmp_path)
    with pytest.raises(InputError, match=message):
        pairs.source(archive(tmp_path, **settings(tmp_path, **changes)))


def test_rasters_of_one_set_have_one_scale_and_edges_need_a_nodata_value(tmp_path):
    stored = heights(dtype='int16')
    given = mapped(tmp_path, stored)
    with pytest.raises(InputError, match='no value to fill pixels up with; set map_nodata'):
        pairs.source(dataclasses.replace(given, edge='pad'))
    pair(tmp_path, 'b')
    put(tmp_path / 'labels' / 'b.tif', stored, ('',), scales=(0.1, 0.0))
    with pytest.raises(InputError, match=r'b\.tif: map scale: 0\.1, but .*a\.tif has 1'):
        pairs.source(given)
