"""Damaged, incomplete and hostile SSL4EO-S12 archives: one clear error each, or an entry of the report."""

import dataclasses
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.ssl4eo_s12 import locations
from tests.support import ssl4eo_s12_archives as archives
from tests.support.data_fixtures import read
from tests.support.files import cut, shift


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """One archive of each version; read-only."""
    return {
        version: archives.write(tmp_path_factory.mktemp('raw'), version, pairs=12, samples=1)
        for version in ('1.1', '1.0')
    }


@pytest.fixture
def copy(originals, tmp_path):
    """A function that gives a copy of an archive to damage."""

    def make(version):
        root = shutil.copytree(originals[version].root, tmp_path / 'raw')
        return dataclasses.replace(originals[version], root=str(root))

    return make


def s2_zip(archive, index=0):
    return archives.zips(archive, 'S2L2A')[index]


def s1_zip(archive, index=0):
    return archives.zips(archive, 'S1GRD')[index]


def read_all(archive):
    source = locations.source(archive)
    for item in source.splits['train']:
        source.read(item)


def flip_a_byte(file, member):
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo(member).header_offset + 5000
    data = bytearray(file.read_bytes())
    data[start] ^= 0xFF
    file.write_bytes(data)


def images(change):
    """A change of the images of a zarr file."""
    return lambda group: archives.replace(group, 'bands', change(group['bands'][:]))


def put(group, name, index, value):
    array = group[name][:]
    array[index] = value
    group[name][:] = array


def linear(group):
    group['bands'][:] = 10 ** (group['bands'][:].astype(np.float32) / 10) + np.float16(1e-3)


# What is done to the archive, and what the error must say.
CUBES = {
    's2 truncated': (lambda a: cut(s2_zip(a)), r'S2L2A/\S+1.zarr.zip: zip: cannot be read'),
    's1 truncated': (lambda a: cut(s1_zip(a)), r'S1GRD/\S+1.zarr.zip: zip: cannot be read'),
    's1 missing': (lambda a: s1_zip(a).unlink(), r'S1GRD/\S+1.zarr.zip: file: missing'),
    's2 missing': (lambda a: s2_zip(a).unlink(), r'S2L2A/\S+1.zarr.zip: file: missing'),
    'a flipped byte': (
        lambda a: flip_a_byte(s2_zip(a), 'bands/0.2.0.0.0'),
        r'S2L2A/\S+: bands: cannot be read: .*CRC-32',
    ),
    'a chunk missing': (
        lambda a: archives.leave_out(s2_zip(a), 'bands/0.1.0.0.0'),
        r'S2L2A/\S+: bands chunks: 3, expected 4',
    ),
    'a flipped byte in the mask': (
        lambda a: flip_a_byte(s2_zip(a), 'cloud_mask/0.1.0.0'),
        r'S2L2A/\S+: cloud_mask: cannot be read',
    ),
    'other sensor': (
        lambda a: shutil.copy(s1_zip(a), s2_zip(a)),
        r'S2L2A/\S+: bands shape: \(1, 4, 2, 264, 264\), expected \(1, 4, 12, 264, 264\)',
    ),
    'cast': (
        lambda a: archives.rewrite(s1_zip(a), images(lambda x: x.astype(np.int16))),
        r'S1GRD/\S+: bands dtype: int16, expected float16',
    ),
    'no names': (
        lambda a: archives.rewrite(s2_zip(a), lambda g: g.__delitem__('file_id')),
        r'S2L2A/\S+: file_id: no such array \(found: .*bands',
    ),
    'other bands': (
        lambda a: archives.rewrite(s2_zip(a), lambda g: put(g, 'band', 9, 'B10')),
        r"S2L2A/\S+: band: .*'B10'.*, expected .*'B09'",
    ),
    'not 10 m': (
        lambda a: archives.rewrite(s2_zip(a), lambda g: archives.replace(g, 'x_', g['x_'][:] * 2)),
        r'S2L2A/\S+: x_: steps from 20 to 20 m, expected 10',
    ),
    'off the grid': (
        lambda a: archives.rewrite(s2_zip(a), lambda g: archives.replace(g, 'y_', g['y_'][:] + 2)),
        r'S2L2A/\S+: y_: coordinates off the 10 m grid',
    ),
    'other samples': (
        lambda a: archives.rewrite(s1_zip(a), lambda g: put(g, 'sample', 0, '9999999')),
        r'S2L2A/\S+: sample: \d{7} is not in both it and \S+S1GRD',
    ),
    'other ground': (
        lambda a: archives.rewrite(s1_zip(a), lambda g: archives.replace(g, 'x_', g['x_'][:] + 10)),
        r'S1GRD/\S+: position of \d{7}: EPSG, left, top = ',
    ),
    'no date': (
        lambda a: archives.rewrite(s1_zip(a), lambda g: put(g, 'file_id', (0, 1), 'S1A')),
        r"S1GRD/\S+: dates of location \d{7}: 'S1A' is not the name",
    ),
    'linear power': (
        lambda a: archives.rewrite(s1_zip(a), linear),
        r'S1GRD/\S+: \d{7}: s1 \(VV, VH\): no negative value',
    ),
    'unknown class': (
        lambda a: archives.rewrite(s2_zip(a), lambda g: put(g, 'cloud_mask', (0, 3, 5, 5), 9)),
        r'S2L2A/\S+: cloud_mask: class 9 in sample 0, expected 0 to 6',
    ),
    'mask of another size': (
        lambda a: archives.rewrite(
            s2_zip(a), lambda g: archives.replace(g, 'cloud_mask', g['cloud_mask'][..., :64])
        ),
        r'S2L2A/\S+: cloud_mask: shape and dtype .*64',
    ),
}


def season(archive, kind, index=0):
    return sorted(Path(archive.root, kind).glob('*/*'))[index]


def rewrite_tiff(file, change=lambda image: image, **changes):
    with rasterio.open(file) as dataset:
        profile, image = dataset.profile, change(dataset.read(1))
    profile |= {'height': image.shape[0], 'width': image.shape[1], 'dtype': image.dtype, **changes}
    with rasterio.open(file, 'w', **profile) as dataset:
        dataset.write(image, 1)


PATCHES = {
    'missing band': (lambda a: (season(a, 's2a') / 'B8A.tif').unlink(), r's2a/\S+/B8A.tif: B8A: .*missing'),
    'truncated': (lambda a: cut(season(a, 's1') / 'VH.tif'), r's1/\S+/VH.tif: VH: cannot be read'),
    'an extra row': (
        lambda a: rewrite_tiff(season(a, 's2a') / 'B5.tif', lambda x: np.pad(x, ((0, 1), (0, 0)))),
        r's2a/\S+/B5.tif: B05 size: \(133, 132\), expected \(132, 132\)',
    ),
    'cast': (
        lambda a: rewrite_tiff(season(a, 's1') / 'VV.tif', lambda x: x.astype(np.int16)),
        r's1/\S+/VV.tif: VV dtype: int16, expected float32',
    ),
    'linear power': (
        lambda a: [
            rewrite_tiff(season(a, 's1') / f'{band}.tif', lambda x: 10 ** (x / 10)) for band in ('VV', 'VH')
        ],
        r's1/\S+: s1 \(VV, VH\): no negative value',
    ),
    'a band elsewhere': (
        lambda a: shift(season(a, 's2a') / 'B11.tif', 1),
        r's2a/\S+/B11.tif: B11 position: left, top, width, height = ',
    ),
    'other ground': (
        lambda a: [shift(season(a, 's1') / f'{band}.tif', 60) for band in ('VV', 'VH')],
        r's1/\S+: position: 6\d\d m across, \d+ m down from the Sentinel-2 patch',
    ),
    'metres': (
        lambda a: rewrite_tiff(season(a, 's2a') / 'B2.tif', crs='EPSG:32633'),
        r's2a/\S+/B2.tif: B02 position: CRS EPSG:32633',
    ),
    'a season missing': (
        lambda a: shutil.rmtree(season(a, 's2a')),
        r's2a/\d{7}: images: 3 folders, expected 4',
    ),
    'location missing': (
        lambda a: shutil.rmtree(season(a, 's1').parent),
        r's1/\d{7}: folder: missing, but the other sensor has it',
    ),
    'other names': (
        lambda a: season(a, 's2a').rename(season(a, 's2a').with_name('spring')),
        r"s2a/\d{7}: dates of location \d{7}: 'spring' is not the name",
    ),
}
CASES = [('1.1', *case) for case in CUBES.items()] + [('1.0', *case) for case in PATCHES.items()]


@pytest.mark.parametrize(('version', 'name', 'case'), CASES, ids=[f'{v}-{n}' for v, n, _ in CASES])
def test_damage_is_one_clear_error(version, name, case, copy, tmp_path):
    damage, message = case
    archive = copy(version)
    damage(archive)
    with pytest.raises(InputError, match=message) as error:
        read_all(dataclasses.replace(archive, splits=('train',)))
    assert '; ' in str(error.value)  # what to do


def lose_five(archive):
    """Damages one image, and all four of another location."""
    if archive.version == '1.1':
        cut(s1_zip(archive, 0))
        flip_a_byte(s2_zip(archive, 1), 'bands/0.2.0.0.0')
    else:
        shutil.rmtree(season(archive, 's1').parent)
        cut(season(archive, 's2a', -1) / 'B1.tif')


@pytest.mark.parametrize('version', ['1.1', '1.0'])
def test_damage_can_be_skipped_and_repaired(version, copy, originals, tmp_path):
    archive = copy(version)
    lose_five(archive)
    source = locations.source(archive, on_error='skip')
    folder, report = sharded.convert(source, tmp_path / 'skipped', on_error='skip')
    assert report['records'] == 12 - 5
    assert len(report['skips']) == 2  # the file or location, and the image
    assert len(read(Path(folder))) == report['splits']['train']['records']
    with pytest.raises(InputError, match='more than max_skips=1'):
        sharded.convert(source, tmp_path / 'capped', on_error='skip', max_skips=1)
    shutil.rmtree(archive.root)
    shutil.copytree(originals[version].root, archive.root)
    _, report = sharded.convert(locations.source(archive), tmp_path / 'repaired')
    assert (report['records'], report['skips']) == (12, [])


def test_a_location_in_two_files(copy):
    archive = copy('1.1')
    for zips in (archives.zips(archive, kind) for kind in ('S2L2A', 'S1GRD')):
        shutil.copy(zips[0], zips[0].with_name('copy.zarr.zip'))
    for on_error in ('fail', 'skip'):
        with pytest.raises(InputError, match=r'location \d{7}_0 is listed twice: .*copy.zarr.zip'):
            locations.source(archive, on_error)


def test_files_that_change_while_converting(copy):
    archive = copy('1.1')
    source = locations.source(archive)
    first, second = archives.zips(archive, 'S2L2A')
    shutil.copy(second, first)
    with pytest.raises(InputError, match=r'sample: \d{7}_0 is no longer sample 0; .*start again'):
        source.read(source.splits['train'][0])


@pytest.mark.parametrize(
    ('version', 'where'), [('1.1', 'train/S2L2A'), ('1.0', 's2a'), ('1.0', 's1'), ('1.0', 's2a/*')]
)
def test_links_must_not_lead_out_of_the_archive(version, where, copy, tmp_path):
    archive = copy(version)
    inner = next(next(Path(archive.root).glob(where)).iterdir())
    outside = tmp_path / inner.name
    inner.rename(outside)
    inner.symlink_to(outside)
    with pytest.raises(InputError, match='leads out of'):
        read_all(archive)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'root': ''}, "root='': give the folder"),
        ({'version': '1.0'}, r'raw/s1: no such folder'),
        ({'optical': 'S2L1C'}, r'train/S2L1C: no such folder'),
    ],
)
def test_wrong_settings(changes, message, copy):
    with pytest.raises(InputError, match=message):
        locations.source(dataclasses.replace(copy('1.1'), **changes))


def test_an_empty_folder(copy):
    archive = copy('1.1')
    for file in archives.zips(archive, 'S2L2A', 'val'):
        file.unlink()
    with pytest.raises(InputError, match=r'val/S2L2A: no name here is like .*zarr'):
        locations.source(archive)


class Touches:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def rewrite_members(file, change):
    """`change` is given the name of each member of a zip and what it holds."""
    with zipfile.ZipFile(file) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize('where', ['.zmetadata', 'band/.zarray'])
@pytest.mark.parametrize('as_filter', [False, True])
def test_a_zarr_file_that_names_pickle_is_refused_and_runs_nothing(
    where, as_filter, copy, tmp_path, monkeypatch
):
    import numcodecs.pickles

    # Even where the process lets numcodecs unpickle.
    monkeypatch.setattr(numcodecs.pickles, 'ALLOW_UNSAFE_PICKLE_DECODE', True)
    archive, mark = copy('1.1'), tmp_path / 'it_ran'
    codec = {'id': 'pickle', 'protocol': 5}

    def change(name, content):
        if name == 'band/0':
            return pickle.dumps(Touches(mark))
        if name != where:
            return content
        values = json.loads(content)
        array = values['metadata']['band/.zarray'] if where == '.zmetadata' else values
        array |= {'filters': [codec], 'compressor': None} if as_filter else {'compressor': codec}
        return json.dumps(values)

    rewrite_members(s2_zip(archive), change)
    with pytest.raises(InputError, match=r"S2L2A/\S+: \S+: codec 'pickle', which may run code"):
        read_all(archive)
    assert not mark.exists()
