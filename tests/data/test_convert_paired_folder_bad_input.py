"""What cannot be used among a user's own files and settings: one clear error each, or a listed skip."""

import numpy as np
import pytest
import rasterio

from fusmae_jax.errors import InputError
from fusmae_jax.geo.bands import band_of
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.paired_folder import pairs
from tests.support.data_fixtures import read
from tests.support.files import cut
from tests.support.paired_folder_files import NO_TAGS, S2, TOP, archive, optical, pair, radar


def masked(folder):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK='YES'), rasterio.open(folder / 's2/b.tif', 'r+') as dataset:
        dataset.write_mask(np.eye(48, dtype=bool))


# What happens to the second of three pairs (b), and what is said about it.
FILES = {
    'truncated': (lambda d: cut(d / 's2/b.tif'), r's2/b\.tif: s2: cannot be read in full'),
    'no GeoTIFF': (lambda d: (d / 's1/b.tif').write_bytes(b'II*'), r's1/b\.tif: s1: cannot be read in full'),
    'no partner': (
        lambda d: (d / 's1/b.tif').unlink(),
        r's2/b\.tif: s1 partner: no file b.tif in .*/s1 \(files there are named like a.tif\)',
    ),
    'size': (
        lambda d: pair(d, 'b', s2={'array': optical(40)}),
        r's1/b\.tif: s1 position: .* but .*s2/b\.tif has .*; bring .* rio warp .*/s1/b\.tif OUT\.tif .*'
        r'--bounds 500000 4999640 500400 5000040 --res 10',
    ),
    'shifted': (lambda d: pair(d, 'b', s1={'top': TOP + 5}), r's1/b\.tif: s1 position: .*rio warp '),
    'other system': (lambda d: pair(d, 'b', s1={'epsg': 32633}), r's1/b\.tif: s1 position: EPSG:32633'),
    'degrees': (
        lambda d: pair(d, 'b', epsg=4326, step=1e-4, left=10.0, top=47.0),
        r's1/b\.tif: s1 CRS: EPSG:4326 counts in degree, .*; rio warp .*/b\.tif OUT.* EPSG:32632',
    ),
    'no system': (lambda d: pair(d, 'b', s2={'epsg': 0}), r's2/b\.tif: s2 CRS: no reference system; '),
    'pixel size': (
        lambda d: pair(d, 'b', step=20.0),
        r's1/b\.tif: s1 pixel: 20.0, but .*s1/a\.tif has 10.0; if its geotransform is right .*rio warp .*',
    ),
    'ten times as large': (
        lambda d: pair(d, 'b', s2={'step': 100.0}),
        r's1/b\.tif: s1 position: .* one geotransform is wrong. Warp nothing',
    ),
    'rotated': (
        lambda d: pair(d, 'b', s1={'transform': rasterio.Affine(10, 1, 5e5, 1, -10, TOP)}),
        r's1/b\.tif: s1 pixel size: rotated, expected square pixels',
    ),
    'dtype': (
        lambda d: pair(d, 'b', s2={'array': optical().astype(np.int16)}),
        r's2/b\.tif: s2 dtype: int16, but .*s2/a\.tif has uint16',
    ),
    'float64': (
        lambda d: pair(d, 'b', s1={'array': radar().astype(np.float64)}),
        r's1/b\.tif: s1 dtype: float64, expected one of .*rio convert .*/s1/b\.tif OUT\.tif --dtype float32',
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
        r"b\.tif: size: no tile of 24 pixels in 20 x 20; choose tile=20 or smaller, edge='pad'",
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
        r's2/b\.tif: s2 B02: median 6\.5\d+e\+04 DN.* possible are -500 to 40000',
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


def test_a_file_without_geotransform(tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        pair(tmp_path, s1={'transform': None})
    with pytest.raises(InputError, match=r's1/a\.tif: s1 CRS: no geotransform; .*rio edit-info'):
        pairs.source(archive(tmp_path))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'s1_root': '', 's2_root': ''}, 's1_root, s2_root and dem_root are empty'),
        ({'s1_unit': ''}, r"s1_unit='': say what the Sentinel-1 files hold.*rio info --stats"),
        ({'s2_unit': ''}, r"s2_unit='': say what the Sentinel-2 files hold"),
        ({'s1_root': 'nowhere'}, 'nowhere: s1_root: no such folder'),
        ({'name': 'My data'}, "name='My data' must be small letters"),
        ({'tile': 0}, 'tile=0 must be at least 1'),
        ({'val_share': 1.0}, 'val_share=1.0 must be at least 0 and below 1'),
        ({'val_share': 1e-9}, 'val_share=1e-09: the hash of the names puts all 1 images into train'),
        ({'s2_bands': ('B2', 'B02', 'B3', 'B4')}, 'every band once'),
        ({'s2_bands': ('B02', 'B03', 'B04', 'nir')}, "s2_bands: 'nir'"),
        ({'s2_bands': ('B02', 'B03', 'B04')}, '4 channels, but s2_bands has 3 names for them'),
        ({'s2_bands': ('B02', 'B03', 'B04', 'B08', 'B11')}, '4 channels in all, but s2_bands names 5'),
        ({'s2_bands': ('B02', 'B03', 'B08', 'B04')}, 'channel 3 is described as B04, but s2_bands says B08'),
        ({'s2_offset': 'auto'}, NO_TAGS + r'.*the lowest 1st percentile of a band here is 2\d\d'),
        ({'s1_nodata': (float('nan'),)}, r's1_nodata\[0\]=nan must be a finite number'),
        ({'s2_nodata': (-1.0,)}, 's2 nodata: -1 cannot stand in uint16'),
        ({'classes': ('wood',)}, 'classes: labels come from the table'),
        ({'s1_suffix': '_s1'}, r's1/a\.tif: name: does not fit \*_s1\.tif'),
        ({'s1_scale': -1.0}, 's1_scale=-1.0 must be at least 0'),
    ],
)
def test_bad_setting(changes, message, tmp_path):
    pair(tmp_path)
    with pytest.raises(InputError, match=message):
        pairs.source(archive(tmp_path, **changes))


def test_folders_must_be_told_apart(tmp_path):
    pair(tmp_path)
    same = {'s1_root': str(tmp_path / 's1'), 's2_root': str(tmp_path / 's1')}
    with pytest.raises(InputError, match=r'no channel is one of this sensor .* s1_suffix and s2_suffix tell'):
        pairs.source(archive(tmp_path, **same))
    with pytest.raises(InputError, match='one lies inside the other'):
        pairs.source(archive(tmp_path, s2_root=str(tmp_path)))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=r'empty: no file here ends in \.tif or \.tiff'):
        pairs.source(archive(tmp_path, s1_root=str(tmp_path / 'empty')))


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
