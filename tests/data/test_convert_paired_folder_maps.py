"""Label rasters beside a user's own GeoTIFFs: every pixel as in the file, or an error that names a remedy."""

import dataclasses
import json

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import LabelMap
from fusmae_jax.input.label_maps import IGNORE, count, to_classes
from fusmae_jax.input.source import Source, read_index
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.paired_folder import pairs
from fusmae_jax.shipped.data.paired_folder.schema import MAP
from tests.support.paired_folder_files import archive, pair, put

NAMES, VALUES = ('dry', 'wet', 'ice'), (10, 3, 7)


def labels(size=48, seed=5, values=(*VALUES, 99)):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array(values, np.int16), (1, size, size))


def mapped(folder, array=None, name='a', **profile):
    """A pair with its label raster, and the settings."""
    pair(folder, name)
    array = labels() if array is None else array
    put(folder / 'labels' / f'{name}.tif', array, ('',) * len(array), **profile)
    return archive(folder, **settings(folder))


def settings(folder, **changes):
    values = {'map_root': str(folder / 'labels'), 'map_classes': NAMES, 'map_values': VALUES}
    return values | {'map_ignore': (99,)} | changes


def written(source, folder):
    path, report = sharded.convert(source, folder)
    data = Source(str(path), 'train', (MAP,))
    return (
        data,
        {record['name'].item().decode(): record[MAP] for record in (data[i] for i in range(len(data)))},
        report,
    )


def test_a_label_is_that_of_the_file_pixel_by_pixel_and_is_counted(tmp_path):
    """One pixel to the side, or a value between two others, would show here."""
    data, maps, report = written(pairs.source(mapped(tmp_path)), tmp_path / 'out')
    whole = labels()[0]
    assert len(maps) == 4
    for name, stored in maps.items():
        row, column = map(int, name.split('_')[1:])
        np.testing.assert_array_equal(stored, whole[row : row + 24, column : column + 24])
        assert stored.dtype == np.int16
    about = contracts.read(data.path).maps[MAP]
    assert (about.classes, about.values, about.ignore, about.size) == (NAMES, VALUES, (99,), (24, 24))
    pixels = report['splits']['train']['maps'][MAP]
    assert pixels == {n: int((whole == v).sum()) for n, v in zip((*NAMES, '(no label)'), (*VALUES, 99))}
    index = read_index(data.path, 'train', [f'pixels_{MAP}'])[f'pixels_{MAP}']
    assert index.sum(axis=0).tolist() == [pixels[name] for name in NAMES]
    assert '% of the pixels  wet' in json.dumps(sharded.report.summary(report))


def test_a_map_keeps_its_own_grid_and_is_read_only_where_it_is_asked_for(tmp_path):
    source = pairs.source(mapped(tmp_path, labels(96), step=5.0))
    assert source.schema.maps[MAP].size == (48, 48)
    data, maps, _ = written(source, tmp_path / 'out')
    np.testing.assert_array_equal(maps['a_24_0'], labels(96)[0, 48:, :48])
    assert MAP not in Source(data.path, 'train', ('s1',))[0]
    assert MAP not in data.contract.groups


def test_what_no_file_fills_has_no_label(tmp_path):
    source = pairs.source(dataclasses.replace(mapped(tmp_path), tile=32, edge='pad'))
    _, maps, _ = written(source, tmp_path / 'out')
    np.testing.assert_array_equal(maps['a_32_32'][:16, :16], labels()[0, 32:, 32:])
    assert (maps['a_32_32'][16:] == 99).all() and (maps['a_32_32'][:, 16:] == 99).all()


def test_a_table_names_the_raster_of_each_pair(tmp_path):
    mapped(tmp_path)
    put(tmp_path / 'labels' / 'other.tif', labels(seed=6), ('',))
    (tmp_path / 'pairs.csv').write_text('s1,s2,map\na.tif,a.tif,other.tif\n')
    given = archive(tmp_path, table=str(tmp_path / 'pairs.csv'), **settings(tmp_path))
    _, maps, _ = written(pairs.source(given), tmp_path / 'out')
    np.testing.assert_array_equal(maps['a_0_0'], labels(seed=6)[0, :24, :24])


@pytest.mark.parametrize(
    ('array', 'profile', 'message'),
    [
        (None, {'left': 500_010.0}, r'labels/a\.tif: map position: .* --resampling nearest'),
        (labels(values=(10, 4)), {}, r'a\.tif: map: 4 at row \d+, column \d+ .* map_values.*map_ignore'),
        (labels().astype(np.float32), {}, 'map dtype: float32, but classes are whole numbers'),
        (labels().repeat(2, axis=0), {}, 'map channels: 2, expected one'),
        (None, {'nodata': 3}, "nodata: 3 is also the value of the class 'wet'"),
        (None, {'scales': (2.0, 0.0)}, 'map scale, offset: 2, 0'),
    ],
)
def test_a_raster_that_cannot_be_used_is_one_error(array, profile, message, tmp_path):
    with pytest.raises(InputError, match=message):
        sharded.convert(pairs.source(mapped(tmp_path, array, **profile)), tmp_path / 'out')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'map_classes': ()}, 'map_classes=.*name the classes'),
        ({'map_classes': ('a', 'a', 'b')}, 'a class is named twice'),
        ({'map_values': (1, 2)}, '2 values for 3 map_classes'),
        ({'map_values': (1, 2, 2)}, 'a value means two classes'),
        ({'map_ignore': (7,)}, 'map_ignore=.*: 7 is a class too'),
        ({'map_root': ''}, 'map_classes: there are no label rasters; give map_root'),
        ({'map_suffix': '_flood'}, r'labels/a\.tif: name: does not fit \*_flood\.tif|no file a_flood'),
        ({'edge': 'pad', 'map_ignore': ()}, 'map_ignore'),
        ({'map_ignore': (99, 70_000)}, r'map_ignore=.*: no pixel of .*a\.tif can be 70000, they are int16'),
    ],
)
def test_settings_that_cannot_be(changes, message, tmp_path):
    mapped(tmp_path)
    with pytest.raises(InputError, match=message):
        pairs.source(archive(tmp_path, **settings(tmp_path, **changes)))


def test_every_pair_has_its_raster_of_one_kind(tmp_path):
    mapped(tmp_path)
    pair(tmp_path, 'b')
    with pytest.raises(InputError, match=r'map partner: no file b\.tif in .*labels'):
        pairs.source(archive(tmp_path, **settings(tmp_path)))
    put(tmp_path / 'labels' / 'b.tif', labels().astype(np.uint8), ('',))
    with pytest.raises(InputError, match=r'b\.tif: map dtype: uint8, but .*a\.tif has int16'):
        pairs.source(archive(tmp_path, **settings(tmp_path)))


def test_values_become_class_numbers():
    about = LabelMap(NAMES, VALUES, (99,), (2, 2), 'int16')
    stored = np.array([[10, 3], [7, 99]], np.int16)
    np.testing.assert_array_equal(to_classes(stored, about), [[0, 1], [2, IGNORE]])
    assert count(stored, about).tolist() == [1, 1, 1]
