"""What cannot be used among a user's own files and settings: one clear error each, or a listed skip."""

import csv

import numpy as np
import pytest
import rasterio

from data import sharded
from data.paired_folder import pairs
from data.paired_folder.bands import band_of
from fusmae_jax.errors import InputError
from tests.data_fixtures import read
from tests.paired_folder_files import S2, TOP, archive, optical, pair, put, radar

NO_TAGS = 'the metadata do not say whether the 1000'


def masked(folder):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK='YES'), rasterio.open(folder / 's2/b.tif', 'r+') as dataset:
        dataset.write_mask(np.eye(48, dtype=bool))


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# What happens to the second of three pairs (b), and what is said about it.
FILES = {
    'truncated': (lambda d: truncate(d / 's2/b.tif'), r's2/b\.tif: s2: cannot be read in full'),
    'no GeoTIFF': (lambda d: (d / 's1/b.tif').write_bytes(b'II*'), r's1/b\.tif: s1: cannot be read in full'),
    'no partner': (
        lambda d: (d / 's1/b.tif').unlink(),
        r's2/b\.tif: s1 partner: no file b.tif in .*/s1 \(files there are named like a.tif\)',
    ),
    'size': (
        lambda d: pair(d, 'b', s2={'array': optical(40)}),
        r's1/b\.tif: s1 position: .* but .*s2/b\.tif has .*; bring .* gdalwarp .* -te 500000 4999640 '
        r'500400 5000040 -tr 10 10',
    ),
    'shifted': (lambda d: pair(d, 'b', s1={'top': TOP + 5}), r's1/b\.tif: s1 position: .*gdalwarp -t_srs'),
    'other system': (lambda d: pair(d, 'b', s1={'epsg': 32633}), r's1/b\.tif: s1 position: EPSG:32633'),
    'degrees': (
        lambda d: pair(d, 'b', epsg=4326, step=1e-4, left=10.0, top=47.0),
        r's1/b\.tif: s1 CRS: EPSG:4326, expected a projected one in metres; gdalwarp',
    ),
    'no system': (lambda d: pair(d, 'b', s2={'epsg': 0}), r's2/b\.tif: s2 CRS: none; '),
    'pixel size': (
        lambda d: pair(d, 'b', step=20.0),
        r's1/b\.tif: s1 pixel: 20.0, but .*s1/a\.tif has 10.0; gdalwarp -tr 10 10',
    ),
    'rotated': (
        lambda d: pair(d, 'b', s1={'transform': rasterio.Affine(10, 1, 5e5, 1, -10, TOP)}),
        r's1/b\.tif: s1 pixel size: geotransform steps \(10.0, 1.0, 1.0, -10.0\)',
    ),
    'dtype': (
        lambda d: pair(d, 'b', s2={'array': optical().astype(np.int16)}),
        r's2/b\.tif: s2 dtype: int16, but .*s2/a\.tif has uint16',
    ),
    'float64': (
        lambda d: pair(d, 'b', s1={'array': radar().astype(np.float64)}),
        r's1/b\.tif: s1 dtype: float64, expected one of .*; gdal_translate -ot Float32',
    ),
    'nodata': (
        lambda d: pair(d, 'b', s1={'nodata': -9999}),
        r's1/b\.tif: s1 scale, offset, nodata: \(1.0, 0.0, \(-9999.0,\)\), but .*s1/a\.tif has \(',
    ),
    'mask': (masked, r's2/b\.tif: s2 mask: validity lies in a mask'),
    'fewer bands': (
        lambda d: pair(d, 'b', s2={'array': optical(bands=3), 'bands': S2[:3]}),
        r's2/b\.tif: s2 bands: B02, B03, B04, but .*s2/a\.tif has B02, B03, B04, B08',
    ),
    'no descriptions': (
        lambda d: pair(d, 'b', s1={'bands': ('VV', None)}),
        r"s1/b\.tif: s1 bands: no band name in the description of channel 2 \(''\) of 2; .* s1_bands=",
    ),
    'a band twice': (
        lambda d: pair(d, 'b', s1={'bands': ('VV', 'vv')}),
        r's1/b\.tif: s1 bands: VV is there more than once',
    ),
    'scale tag': (
        lambda d: pair(d, 'b', s2={'scales': (1e-4, -0.1)}),
        r's2/b\.tif: s2 scale: the tags \(scale 0.0001, offset -0.1\) make reflectance .*s2_unit=',
    ),
    'contradicting tag': (
        lambda d: pair(d, 'b', s2={'tags': {'BOA_ADD_OFFSET': '-1000'}}),
        r's2/b\.tif: s2 offset: BOA_ADD_OFFSET says -1000, but s2_offset=0',
    ),
    'contradicting description': (
        lambda d: pair(d, 'b', s1={'bands': ('Intensity_VV', 'Intensity_VH')}),
        r"s1/b\.tif: s1 unit: a channel is described as 'Intensity_VV', but s1_unit='dB'",
    ),
    'other quantification': (
        lambda d: pair(d, 'b', s2={'tags': {'QUANTIFICATION_VALUE': '1000'}}),
        r's2/b\.tif: s2 QUANTIFICATION_VALUE: 1000, expected 10000',
    ),
    'too small': (
        lambda d: pair(d, 'b', s1={'array': radar(20)}, s2={'array': optical(20)}),
        r"b\.tif: size: no tile of 24 pixels in 20 x 20; choose a smaller tile, edge='pad'",
    ),
    'linear power': (
        lambda d: pair(d, 'b', s1={'array': 10 ** (radar() / 10)}),
        r's1/b\.tif: s1 unit: no negative value \(from .*\): not dB',
    ),
    'reflectance': (
        lambda d: pair(d, 'b', s2={'array': (optical() // 1000).astype(np.uint16)}),
        r's2/b\.tif: s2 unit: no value above .*: not DN',
    ),
    'wrapped': (
        lambda d: pair(d, 'b', s2={'array': (optical() % 100 - 200).astype(np.uint16)}),
        r's2/b\.tif: s2 B02: median 6\.5\d+e\+04 DN .* possible are -500 to 40000',
    ),
}


@pytest.mark.parametrize('case', FILES)
def test_bad_file(case, tmp_path):
    damage, message = FILES[case]
    for name in 'abc':
        pair(tmp_path, name)
    damage(tmp_path)
    settings = archive(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        sharded.convert(pairs.source(settings), tmp_path / 'fail')
    assert '\n' not in str(caught.value)
    assert ';' in str(caught.value)  # what to do
    assert not list(tmp_path.rglob('dataset_info.json'))
    folder, report = sharded.convert(
        pairs.source(settings, on_error='skip'), tmp_path / 'skip', on_error='skip'
    )
    assert {skip['record'][0] for skip in report['skips']} == {'b'}
    assert all(skip.keys() == {'record', 'file', 'field', 'reason'} for skip in report['skips'])
    assert {r['scene'] for r in read(folder)} - {b'b'} == {b'a', b'c'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'s1_root': '', 's2_root': ''}, 's1_root and s2_root are both empty'),
        ({'s1_unit': ''}, r"s1_unit='': say what the Sentinel-1 files hold.*gdalinfo -stats"),
        ({'s2_unit': ''}, r"s2_unit='': say what the Sentinel-2 files hold"),
        ({'s1_root': 'nowhere'}, 'nowhere: s1_root: no such folder'),
        ({'name': 'My data'}, "name='My data' must be small letters"),
        ({'tile': 0}, 'tile=0 must be at least 1'),
        ({'val_share': 1.0}, 'val_share=1.0 must be at least 0 and less than 1'),
        ({'val_share': 1e-9}, 'val_share=1e-09: the hash of the names puts all 1 images into train'),
        ({'s2_bands': ('B2', 'B02', 'B3', 'B4')}, 'every band once'),
        ({'s2_bands': ('B02', 'B03', 'B04', 'nir')}, "s2_bands: 'nir'"),
        ({'s2_bands': ('B02', 'B03', 'B04')}, '4 channels, but s2_bands has only 3 names left'),
        ({'s2_bands': ('B02', 'B03', 'B04', 'B08', 'B11')}, '4 channels in all, but s2_bands names 5'),
        ({'s2_bands': ('B02', 'B03', 'B08', 'B04')}, 'channel 3 is described as B04, but s2_bands says B08'),
        ({'s2_offset': 'auto'}, NO_TAGS + r'.*the lowest 1st percentile of a band here is 2\d\d'),
        ({'s1_nodata': (float('nan'),)}, 's1_nodata=.*NaN and inf are invalid anyhow'),
        ({'s2_nodata': (-1.0,)}, 's2 nodata: -1 cannot stand in uint16'),
        ({'classes': ('wood',)}, 'classes: labels come from the table'),
        ({'s1_suffix': '_s1'}, r's1/a\.tif: name: does not fit \*_s1\.tif'),
        ({'s1_scale': -1.0}, 's1_scale=-1.0 must be positive'),
    ],
)
def test_bad_setting(changes, message, tmp_path):
    pair(tmp_path)
    with pytest.raises(InputError, match=message):
        pairs.source(archive(tmp_path, **changes))


def test_folders_must_be_told_apart(tmp_path):
    pair(tmp_path)
    same = {'s1_root': str(tmp_path / 's1'), 's2_root': str(tmp_path / 's1')}
    with pytest.raises(InputError, match='are the same folder: tell the files apart by s1_suffix'):
        pairs.source(archive(tmp_path, **same))
    with pytest.raises(InputError, match='one lies inside the other'):
        pairs.source(archive(tmp_path, s2_root=str(tmp_path)))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=r'empty: no file here ends in \.tif or \.tiff'):
        pairs.source(archive(tmp_path, s1_root=str(tmp_path / 'empty')))


def table(folder, text):
    (folder / 'pairs.csv').write_text(text)
    return archive(folder, table=str(folder / 'pairs.csv'))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('s1,s2\n../s2/a.tif,a.tif\n', r"pairs\.csv: row 2: s1: '\.\./s2/a\.tif' leads out of"),
        ('s1,s2\na.tif,/etc/passwd\n', r"pairs\.csv: row 2: s2: '/etc/passwd' leads out of"),
        ('s1,s2\nlink/a.tif,a.tif\n', r"row 2: s1: 'link/a\.tif' leads out of"),
        ('s1,s2\nz.tif,a.tif\n', r's1/z\.tif: s1: the file is missing'),
        ('s1,s2\n,a.tif\n', "row 2: s1: '', expected a file"),
        ('s1\na.tif\n', "column 's2' is missing; columns: s1"),
        ('s1,s2,lables\na.tif,a.tif,x\n', "column 'lables' is not known; did you mean 'labels'"),
        ('s1,s2,s1\na.tif,a.tif,a.tif\n', 'two columns have the same name'),
        ('s1,s2\na.tif\n', r'row 2: another number of columns'),
        ('s1,s2\n', 'no row below the header'),
        ('s1,s2\na.tif,a.tif\na.tif,a.tif\n', r"row 3: id: 'a' as in .*row 2"),
        ('s1,s2,id\na.tif,a.tif,x\na.tif,a.tif,y\n', 'row 3: files: .* as in .*row 2'),
        ('s1,s2,s1_time\na.tif,a.tif,noon\n', "row 2, s1_time: 'noon' is no time; write 2024-06-30T"),
        ('s1,s2,s1_time\na.tif,a.tif,1970-01-01\n', 'is before the first Sentinel satellite'),
        ('s1,s2,snow\na.tif,a.tif,yes\n', "row 2, snow: 'yes'; write 0 or 1"),
        ('s1,s2,split\na.tif,a.tif,\n', "row 2, split: ''; write a name in small letters"),
        (
            's1,s2,split,id\na.tif,a.tif,train,x\na.tif,b.tif,val,y\n',
            r"row 3: split: 'val', but a\.tif is in 'train' already",
        ),
        ('s1,s2,labels\na.tif,a.tif,\n', 'no row has a label'),
    ],
)
def test_bad_table(text, message, tmp_path):
    for name in 'ab':
        pair(tmp_path, name)
    (tmp_path / 's1' / 'link').symlink_to(tmp_path / 's2')
    with pytest.raises(InputError, match=message) as caught:
        pairs.source(table(tmp_path, text))
    assert 'pairs.csv' in str(caught.value) or 'z.tif' in str(caught.value)


def test_bad_rows_are_left_out_and_listed(tmp_path):
    for name in 'ab':
        pair(tmp_path, name)
    settings = table(tmp_path, 's1,s2,labels\na.tif,a.tif,x\n../a.tif,b.tif,x\nb.tif,b.tif,y\n')
    source = pairs.source(settings, on_error='skip')
    assert [skip['record'] for skip in source.skips] == ['row 3']
    assert len(source.splits['train']) == 8
    settings = archive(tmp_path, table=settings.table, classes=('x',))
    source = pairs.source(settings, on_error='skip')
    assert {item.key[0] for item in source.splits['train']} == {'a'}
    assert 'labels' in source.skips[1]['field'] and "'y'" in source.skips[1]['reason']


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    pair(tmp_path / 'mine')
    pair(tmp_path / 'other', 'b')
    for name in ('s1', 's2'):
        (tmp_path / 'mine' / name / 'b.tif').symlink_to(tmp_path / 'other' / name / 'b.tif')
    with pytest.raises(InputError, match=r"mine/s1: name: 'b\.tif' leads out of"):
        pairs.source(archive(tmp_path / 'mine'))
    for name in ('s1', 's2'):
        (tmp_path / 'mine' / name / 'b.tif').unlink()
        (tmp_path / 'mine' / name / 'more').symlink_to(tmp_path / 'other' / name)
    with pytest.raises(InputError, match=r'mine/s1/more: name: links to folders are not followed'):
        pairs.source(archive(tmp_path / 'mine'))


TAGGED = {'BOA_ADD_OFFSET_B2': '-1000', 'BOA_ADD_OFFSET_B3': '-1000'}


@pytest.mark.parametrize(
    ('s2', 'settings', 'expected'),
    [
        ({'tags': TAGGED}, {}, (1, -1000)),
        ({'tags': {'RADIO_ADD_OFFSET': '0'}}, {}, (1, 0)),
        ({'tags': {'PROCESSING_BASELINE': '05.10'}}, {}, (1, -1000)),
        ({'tags': {'processing_baseline': '02.14'}}, {}, (1, 0)),
        ({'tags': {'PROCESSING_BASELINE': '05.10'}}, {'s2_offset': '0'}, (1, 0)),  # harmonised since
        ({}, {'s2_offset': '-1000'}, (1, -1000)),
        ({'scales': (1e-4, -0.1)}, {'s2_unit': 'reflectance'}, (1e-4, -0.1)),
        ({'scales': (1e-4, 0), 'tags': TAGGED}, {'s2_unit': 'reflectance'}, (1e-4, -0.1)),
        ({}, {'s2_unit': 'reflectance', 's2_offset': '0', 's2_scale': 1e-4}, (1e-4, 0)),
        ({'tags': {'PROCESSING_BASELINE': '05.10'}, 'float': 1}, {}, NO_TAGS),
        ({}, {'s2_unit': 'reflectance', 's2_offset': '0'}, r'whole numbers \(uint16\) cannot be reflectance'),
        ({'tags': TAGGED | {'BOA_ADD_OFFSET_B4': '0'}}, {}, 'one number for all bands is needed'),
        ({'scales': (1e-4, 0)}, {'s2_unit': 'reflectance', 's2_scale': 1e-3}, 'the tag says 0.0001, but'),
        ({'uint8': 1}, {'s2_offset': '0'}, 'uint8 has 256 values: a picture'),
        ({'uint8': 1}, {'s2_offset': '0', 's2_scale': 40.0}, (40, 0)),
    ],
)
def test_what_the_numbers_of_sentinel_2_mean(s2, settings, expected, tmp_path):
    image = optical() + np.uint16(1000)
    image = image.astype(np.float32) if s2.pop('float', 0) else image
    image = (image // 40).astype(np.uint8) if s2.pop('uint8', 0) else image
    put(tmp_path / 's2' / 'a.tif', image, S2, **s2)
    settings = archive(tmp_path, **({'s1_root': '', 's1_unit': '', 's2_offset': 'auto'} | settings))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            pairs.source(settings)
        return
    source = pairs.source(settings)
    group = source.schema.groups['s2']
    assert (group.scale, group.offset) == pytest.approx(expected)
    assert group.unit == settings.s2_unit
    np.testing.assert_array_equal(
        source.read(source.splits['train'][0])['s2'], image[:, :24, :24].transpose(1, 2, 0)
    )


POWER = (10 ** (radar() / 10)).astype(np.float32)


@pytest.mark.parametrize(
    ('image', 'settings', 'message'),
    [
        (radar(), {'s1_unit': 'linear'}, r"s1 VV: median -1\d.* linear .*; dB\? set s1_unit='dB'"),
        (POWER * 1e5, {'s1_unit': 'linear'}, 'digital numbers of a product that is not calibrated'),
        (POWER, {'s1_unit': 'linear'}, ''),
        (np.sqrt(POWER), {'s1_unit': 'amplitude'}, ''),
        (np.rint(radar()).astype(np.int16), {}, r'whole numbers \(int16\) cannot be dB .*set s1_scale'),
        (np.rint(radar() * 100).astype(np.int16), {'s1_scale': 0.01}, ''),
        (np.rint(radar() * 100).astype(np.int16), {'s1_scale': 1.0}, r'median -1\d+ dB .*dB times a factor'),
        (np.zeros((2, 48, 48), np.float32), {}, r'not dB; .*s1_nodata=\(0\.0,\) if 0 fills'),
        (np.zeros((2, 48, 48), np.float32), {'s1_nodata': (0.0,)}, ''),
        (np.full((2, 48, 48), np.nan, np.float32), {}, ''),
    ],
)
def test_what_the_numbers_of_sentinel_1_can_be(image, settings, message, tmp_path):
    put(tmp_path / 's1' / 'a.tif', image, ('VV', 'VH'))
    settings = archive(tmp_path, **({'s2_root': '', 's2_unit': ''} | settings))
    if not message:
        source = pairs.source(settings)
        record = source.read(source.splits['train'][0])
        np.testing.assert_array_equal(record['s1'], image[:, :24, :24].transpose(1, 2, 0))
        return
    with pytest.raises(InputError, match=message):
        sharded.convert(pairs.source(settings), tmp_path / 'out')


@pytest.mark.parametrize(
    ('values', 'unit', 'offset', 'message'),
    [
        (optical(), 'DN', '-1000', ''),  # 200..3000: median above 500 after the offset
        (optical() // 4, 'DN', '-1000', 'the offset is off already'),
        ((optical() * 1e-4).astype(np.float32), 'reflectance', '0', ''),
        ((optical() * 1e-4).astype(np.float32), 'DN', '0', 'no value above 0.29.*: not DN'),
        (optical().astype(np.float32), 'reflectance', '0', r"digital numbers\? set s2_unit='DN'"),
    ],
)
def test_what_the_numbers_of_sentinel_2_can_be(values, unit, offset, message, tmp_path):
    put(tmp_path / 's2' / 'a.tif', values, S2)
    settings = archive(tmp_path, s1_root='', s1_unit='', s2_unit=unit, s2_offset=offset)
    source = pairs.source(settings)
    if not message:
        source.read(source.splits['train'][0])
        return
    with pytest.raises(InputError, match=message):
        source.read(source.splits['train'][0])


def test_padding_needs_a_nodata_value(tmp_path):
    put(tmp_path / 's1' / 'a.tif', radar((30, 30)), ('VV', 'VH'))
    alone = {'s2_root': '', 's2_unit': '', 'edge': 'pad'}
    source = pairs.source(archive(tmp_path, **alone))
    record = source.read({i.key: i for i in source.splits['train']}['a_24_24'])
    assert np.isfinite(record['s1'][:6, :6]).all() and np.isnan(record['s1'][6:]).all()
    assert np.isnan(record['s1'][:, 6:]).all()
    assert record['s1_valid'] == np.float32(36 / 576)
    put(tmp_path / 's1' / 'a.tif', np.rint(radar((30, 30)) * 100).astype(np.int16), ('VV', 'VH'))
    with pytest.raises(InputError, match=r"edge='pad': s1 \(int16\) has no nodata value"):
        pairs.source(archive(tmp_path, s1_scale=0.01, **alone))


def test_a_file_that_changes_while_converting(tmp_path):
    pair(tmp_path)
    source = pairs.source(archive(tmp_path))
    pair(tmp_path, s1={'array': radar(30)})
    with pytest.raises(InputError, match='the file changed while it was converted'):
        source.read(source.splits['train'][0])


@pytest.mark.parametrize(
    ('text', 'modality', 'band'),
    [
        *((text, 's2', 'B8A') for text in ('B8A', 'b8a', 'B08A', 'B8a, central wavelength 865 nm')),
        *((text, 's2', 'B01') for text in ('B1', 'B01', 'b01', ' B1 ')),
        ('B10', 's2', 'B10'),
        ('B13', 's2', ''),
        ('B', 's2', ''),
        ('1', 's2', ''),
        ('nir', 's2', ''),
        ('Band 4', 's2', ''),
        ('vv', 's1', 'VV'),
        ('Sigma0_VH_db', 's1', 'VH'),
        ('VV-VH', 's1', ''),
        ('angle', 's1', ''),
    ],
)
def test_names_of_bands(text, modality, band):
    assert band_of(text, modality) == band


def test_a_table_with_quotes_and_a_byte_order_mark(tmp_path):
    pair(tmp_path, 'a, b')
    with (tmp_path / 'pairs.csv').open('w', newline='', encoding='utf-8-sig') as stream:
        csv.writer(stream).writerows([['s1', 's2'], ['a, b.tif', 'a, b.tif']])
    source = pairs.source(archive(tmp_path, table=str(tmp_path / 'pairs.csv')))
    assert len(source.splits['train']) == 4
