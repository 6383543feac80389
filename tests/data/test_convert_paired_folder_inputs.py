"""What else a user's folders may hold: products, stacks of both sensors, missing partners, chips."""

import json

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.geo.stack import has_jp2
from fusmae_jax.shipped.data.paired_folder import pairs
from fusmae_jax.shipped.data.paired_folder.pairs import Archive
from fusmae_jax.shipped.data.records import RecordError, validity
from tests.support.paired_folder_files import S2, archive, optical, pair, put, radar
from tests.support.products import item_s2, safe_s1, safe_s2

jp2 = pytest.mark.skipif(not has_jp2(), reason='this GDAL cannot write JPEG 2000')
OPTICAL = {'s2_unit': 'DN', 'tile': 60}


def records(settings, split='train', **options):
    """The source of a folder, and its records by name."""
    source = pairs.source(settings, **options)
    return source, {item.key: source.read(item) for item in source.splits[split]}


@jp2
def test_products_are_records_on_native_grids(tmp_path):
    folder, bands = safe_s2(tmp_path / 'in', 120)
    source, read = records(Archive(s2_root=str(tmp_path / 'in'), **OPTICAL))
    groups = source.schema.groups
    assert {name: (g.size, g.offset, g.nodata) for name, g in groups.items()} == {
        's2_10m': ((60, 60), -1000, (0,)),
        's2_20m': ((30, 30), -1000, (0,)),
        's2_60m': ((10, 10), -1000, (0,)),
    }
    assert set(read) == {f'{folder.stem}_{row}_{column}' for row in (0, 60) for column in (0, 60)}
    record = read[f'{folder.stem}_60_0']
    for name, group in groups.items():
        rows, columns = group.size
        for index, band in enumerate(group.bands):
            np.testing.assert_array_equal(record[name][..., index], bands[band][rows:, :columns])
    product = source.schema.products['s2']
    assert (product.level, product.baseline) == ('L2A', '04.00')
    with pytest.raises(InputError, match=r"PRODUCT_TYPE says L2A, but config.archive.s2_level='L1C'"):
        pairs.source(Archive(s2_root=str(tmp_path / 'in'), s2_level='L1C', **OPTICAL))


@jp2
def test_old_and_new_products_make_one_set(tmp_path):
    old, before = safe_s2(tmp_path / 'in' / 'a', 60, '02.09', None)
    new, after = safe_s2(tmp_path / 'in' / 'b', 60)
    table = f's2,id,s2_offset\na/{old.name},a,auto\nb/{new.name},b,auto\n'
    (tmp_path / 't.csv').write_text(table)
    _, read = records(Archive(s2_root=str(tmp_path / 'in'), table=str(tmp_path / 't.csv'), **OPTICAL))
    ours = {key[0]: record['s2_10m'][..., 0].astype(int) - 1000 for key, record in read.items()}
    np.testing.assert_array_equal(ours['a'], before['B02'])
    np.testing.assert_array_equal(ours['b'], after['B02'] - 1000)


@jp2
def test_products_and_items_stand_in_a_table(tmp_path):
    (tmp_path / 'in').mkdir()
    folder, bands = safe_s2(tmp_path / 'in', 60)
    (tmp_path / 't.csv').write_text(f's2,id\n{folder.name},one\n')
    settings = {'s2_root': str(tmp_path / 'in'), 'table': str(tmp_path / 't.csv'), **OPTICAL}
    _, read = records(Archive(**settings))
    np.testing.assert_array_equal(read['one_0_0']['s2_60m'][..., 0], bands['B01'])
    item, bands = item_s2(tmp_path / 'in')
    (tmp_path / 't.csv').write_text(f's2\n{item.name}\n')
    source, read = records(Archive(**settings))
    assert source.schema.groups['s2_20m'].bands == ('B11', 'B12')
    np.testing.assert_array_equal(read['item_60_120']['s2_20m'][..., 1], bands['B12'][30:60, 60:90])


def test_grd_is_refused_with_the_commands(tmp_path):
    folder = safe_s1(tmp_path / 's1')
    with pytest.raises(RecordError, match=r'geometry of the radar.*gpt Calibration') as error:
        pairs.source(Archive(s1_root=str(tmp_path / 's1'), s1_unit='linear'))
    assert str(folder) in str(error.value)


def test_stacks_of_both_sensors_need_no_table(tmp_path):
    s1, s2 = radar(), optical().astype(np.float32)
    put(tmp_path / 'in' / 'a.tif', np.concatenate([s2, s1]), (*S2, 'VV', 'VH'))
    both = {'s1_root': str(tmp_path / 'in'), 's2_root': str(tmp_path / 'in')}
    source, read = records(archive(tmp_path, **both))
    assert source.schema.groups['s1'].bands == ('VV', 'VH') and source.schema.groups['s2'].bands == S2
    np.testing.assert_array_equal(read['a_24_0']['s1'], np.moveaxis(s1, 0, -1)[24:, :24])
    np.testing.assert_array_equal(read['a_24_0']['s2'], np.moveaxis(s2, 0, -1)[24:, :24])
    put(tmp_path / 'in' / 'b_s1.tif', s1, ('VV', 'VH'))
    with pytest.raises(RecordError, match=r'no channel is one of this sensor \(VV, VH\).*s1_suffix'):
        pairs.source(archive(tmp_path, **both))


def test_a_pair_without_a_partner_is_kept_if_asked(tmp_path):
    for name in 'ab':
        pair(tmp_path, name)
    (tmp_path / 's1' / 'a.tif').unlink()
    put(tmp_path / 's1' / 'c.tif', radar(seed=5), ('VV', 'VH'))
    with pytest.raises(RecordError, match='s1 partner'):
        pairs.source(archive(tmp_path))
    source, read = records(archive(tmp_path, missing='keep', min_valid=0.5))
    assert len(read) == 12 and any('2 of 3 images lack a sensor' in note for note in source.notes)
    groups = source.schema.groups
    there = {key: {m: bool(validity(r[m], groups[m]).any()) for m in groups} for key, r in read.items()}
    assert there['a_0_0'] == {'s1': False, 's2': True} and there['b_0_0'] == {'s1': True, 's2': True}
    assert there['c_0_0'] == {'s1': True, 's2': False}
    record = read['c_24_24']
    assert (record['s1_name'], record['s2_name'], record['s2_valid']) == ('c_24_24', '', 0)
    np.testing.assert_array_equal(record['s1'], np.moveaxis(radar(seed=5), 0, -1)[24:, 24:])
    assert record['upper_left'].tolist() == [500_240, 4_999_800]


def test_the_tiles_of_a_pair_without_its_finer_sensor(tmp_path):
    for name in 'ab':
        pair(tmp_path, name, s1={'array': radar(96), 'step': 5.0})
    (tmp_path / 's1' / 'b.tif').unlink()
    source, read = records(archive(tmp_path, missing='keep', tile=48))
    assert source.schema.groups['s1'].size == (48, 48) and source.schema.groups['s2'].size == (24, 24)
    np.testing.assert_array_equal(read['b_48_0']['s2'], np.moveaxis(optical(), 0, -1)[24:, :24])
    assert np.isnan(read['b_48_0']['s1']).all()
    np.testing.assert_array_equal(read['b_48_0']['upper_left'], read['a_48_0']['upper_left'])


def test_what_is_missing_must_be_told_from_what_is_there(tmp_path):
    whole = {'s1': {'array': (radar() * 100).astype(np.int16)}, 's2': {}}
    pair(tmp_path, 'a', **whole)
    put(tmp_path / 's2' / 'b.tif', optical(), S2)
    settings = {'missing': 'keep', 's1_scale': 0.01}
    with pytest.raises(InputError, match=r"field 's1' is int16 without a nodata value.*s1_nodata=\(VALUE,\)"):
        pairs.source(archive(tmp_path, **settings))
    _, read = records(archive(tmp_path, s1_nodata=(-32768.0,), **settings))
    assert (read['b_0_0']['s1'] == -32768).all()
    (tmp_path / 's2' / 'a.tif').unlink()
    with pytest.raises(InputError, match='no image that can be used has all sensors'):
        pairs.source(archive(tmp_path, **settings))
    with pytest.raises(InputError, match='with one root nothing is missing'):
        pairs.source(archive(tmp_path, s1_root='', missing='keep'))


def test_a_table_names_what_is_missing_by_an_empty_cell(tmp_path):
    pair(tmp_path, 'a')
    put(tmp_path / 's2' / 'b.tif', optical(seed=3), S2)
    (tmp_path / 't.csv').write_text('s1,s2\na.tif,a.tif\n,b.tif\n')
    _, read = records(archive(tmp_path, missing='keep', table=str(tmp_path / 't.csv')))
    assert np.isnan(read['b_0_0']['s1']).all()
    (tmp_path / 't.csv').write_text('s1,s2\na.tif,a.tif\n,\n')
    with pytest.raises(RecordError, match='no sensor has a file'):
        pairs.source(archive(tmp_path, missing='keep', table=str(tmp_path / 't.csv')))


def test_chips_without_a_place_have_none(tmp_path):
    pair(tmp_path, 'a', epsg=None)
    with pytest.raises(RecordError, match='no reference system'):
        pairs.source(archive(tmp_path))
    with pytest.raises(InputError, match=r"s1_pixel=0: with georeference='none' say how large"):
        pairs.source(archive(tmp_path, georeference='none'))
    with pytest.raises(InputError, match=r's1_pixel=10: the files say it'):
        pairs.source(archive(tmp_path, s1_pixel=10.0))
    chips = {'georeference': 'none', 's1_pixel': 10.0, 's2_pixel': 10.0}
    source, read = records(archive(tmp_path, **chips))
    assert {g.resolution for g in source.schema.groups.values()} == {10.0}
    record = read['a_24_0']
    assert record['epsg'] == -1 and np.isnan(record['upper_left']).all()
    np.testing.assert_array_equal(record['s2'], np.moveaxis(optical(), 0, -1)[24:, :24])
    with pytest.raises(RecordError, match='s1 position'):
        pairs.source(archive(tmp_path, **(chips | {'s1_pixel': 20.0})))
    json.dumps(source.inputs)
