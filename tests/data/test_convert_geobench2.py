"""The conversion of benv2 (GEO-Bench-2) on a generated tortilla: records, its two faults, and damage."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError, raster
from fusmae_jax.input import contract
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm.labels import CLASSES_19
from fusmae_jax.shipped.data.doctor.checks import examine
from fusmae_jax.shipped.data.doctor.opening import open_paths
from fusmae_jax.shipped.data.generate import geobench2 as generate
from fusmae_jax.shipped.data.generate.scene import SceneConfig, resampled, scene
from fusmae_jax.shipped.data.geobench2 import samples
from fusmae_jax.shipped.data.geobench2.geobench2_dataset_builder import Builder
from fusmae_jax.shipped.data.geobench2.schema import S2_BANDS
from fusmae_jax.shipped.data.records import RecordError
from tests.support.data_fixtures import assert_same_records, by_name, digests, read

PAIRS = 8
SCENE = SceneConfig(seed=3)


@pytest.fixture(scope='module')
def members():
    """The containers of eight pairs with their rows."""
    return [generate.sample(index, SCENE) for index in range(PAIRS)]


@pytest.fixture(scope='module')
def file(members, tmp_path_factory) -> Path:
    """The tortilla of all of them; read-only."""
    path = tmp_path_factory.mktemp('raw') / generate.FILE
    path.write_bytes(generate.pack(members))
    return path


@pytest.fixture(scope='module')
def dataset(file, tmp_path_factory):
    """All of them converted, and the report; read-only."""
    return sharded.convert(source(file), tmp_path_factory.mktemp('data'), records_per_shard=3)


def source(file, on_error='fail', **settings):
    return samples.source(samples.Archive(path=str(file), **settings), on_error)


def written(folder, members) -> Path:
    path = folder / 'other.tortilla'
    path.write_bytes(generate.pack(members))
    return path


def inside(member):
    """The two images of the container of a pair, each with its row."""
    begin, length = struct.unpack('<QQ', member.content[2:18])
    images = read_rows(member.content[begin : begin + length])
    for row in images:
        at = row.pop('tortilla:offset')
        yield generate.Member(member.content[at : at + row.pop('tortilla:length')], row)


def read_rows(content):
    import pyarrow
    import pyarrow.parquet

    return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()


def test_records_have_vv_first_ten_metres_and_the_fields_of_the_table(members, dataset):
    records = by_name(read(dataset[0], 'train+val+test'))
    assert len(records) == PAIRS
    for index, (_, row) in enumerate(members):
        record, expected = records[row['patch_id'].encode()], scene(SCENE, index)
        bands = resampled(expected)
        np.testing.assert_array_equal(record['s1'], np.stack([expected.s1[b] for b in ('VV', 'VH')], -1))
        np.testing.assert_array_equal(record['s2'], np.stack([bands[b] for b in S2_BANDS], -1), strict=True)
        assert [CLASSES_19[i] for i in np.flatnonzero(record['labels_19'])] == sorted(
            row['labels'], key=CLASSES_19.index
        )
        assert record['sample'].decode() == f'sample_{index}' == row['tortilla:id']
        assert record['country'].decode() == row['country'] and not record['additional_test']
        place = generate.v1.patch(index, expected.season).place
        assert (record['epsg'], *record['upper_left']) == place
        assert row['patch_id'].startswith(record['scene'].decode())


def test_splits_contract_and_report(members, dataset):
    folder, report = dataset
    for ours, theirs in (('train', 'train'), ('val', 'validation'), ('test', 'test')):
        rows = [row for _, row in members if row['tortilla:data_split'] == theirs]
        assert report['splits'][ours]['records'] == len(rows) == len(read(folder, ours)) > 0
    made = contract.read(folder)
    assert made.groups['s1'].bands == ('VV', 'VH') and made.groups['s2'].resolution == 10
    assert made.products['s2'].level == 'L2A' and made.split_aliases == {'validation': 'val'}
    assert report['splits']['train']['published'] == 20_000
    vv, vh = made.statistics['s1'].mean
    assert vv > vh + 3


def test_an_interrupted_conversion_goes_on_and_ends_the_same(file, dataset, tmp_path, monkeypatch, in_a_loop):
    convert_shard, done = sharded.convert_shard, []

    def twice(name, job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(name)
        return convert_shard(name, job)

    monkeypatch.setattr(sharded, 'convert_shard', twice)
    with pytest.raises(KeyboardInterrupt):
        sharded.convert(source(file), tmp_path, records_per_shard=3)
    monkeypatch.setattr(sharded, 'convert_shard', convert_shard)
    folder, _ = sharded.convert(source(file), tmp_path, records_per_shard=3)
    assert len(done) == 2 and digests(folder) == digests(dataset[0])


def test_tfds_builds_the_same_records(file, dataset, tmp_path):
    builder = Builder(config='official', data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=file.parent))
    for split in ('train', 'val', 'test'):
        assert_same_records(read(dataset[0], split), builder.as_data_source(split=split))


def test_the_pixels_decide_on_the_order_of_the_channels(file, members, tmp_path):
    with pytest.raises(InputError, match=r'in 8 of 8 samples .* give --config.archive.s1_order=VH,VV'):
        source(file, s1_order='VV,VH')
    # A container whose authors have put both right.
    repaired = written(tmp_path, [repair(index, member) for index, member in enumerate(members)])
    with pytest.raises(InputError, match=r's1_order=VV,VH'):
        source(repaired)
    listed = source(repaired, s1_order='VV,VH', splits='one')
    (first, *_) = listed.splits['train']
    np.testing.assert_array_equal(listed.read(first)['s1'][..., 0], scene(SCENE, 0).s1['VV'])
    assert not {f.code for f in findings(repaired)} & {'s1.order', 'pair.geotransform'}


def repair(index, member):
    bands, generated = [np.moveaxis(x, -1, 0) for x in pixels(member)], scene(SCENE, index)
    place = generate.v1.patch(index, generated.season).place
    tiffs = (generate._tiff(bands[0][::-1], place, 10.0), generate._tiff(bands[1], place, 10.0))
    images = [image._replace(content=tiff) for image, tiff in zip(inside(member), tiffs)]
    return member._replace(content=generate.pack(images))


def pixels(member):
    for image in inside(member):
        with raster.opened_bytes(image.content) as dataset:
            yield np.moveaxis(dataset.read(), 0, -1)


def findings(file):
    (evidence,) = open_paths([str(file)])
    return [f for f in examine(evidence) if f.severity in ('warning', 'error')]


def test_the_doctor_states_the_order_and_the_wrong_geotransform(file, dataset):
    order, ground = findings(file)
    assert order.code == 's1.order' and 'VH, VV' in order.what and '8 of 8' in order.evidence
    assert ground.code == 'pair.geotransform' and '8 of 8' in ground.evidence
    assert '120 x 120 pixels of 60 m, 7.2 km' in ground.evidence
    # The converted set has neither.
    assert findings(dataset[0]) == []


@pytest.mark.parametrize(
    ('changes', 'field', 'message'),
    [
        ({'labels': ['Pasture']}, 'labels', "did you mean 'Pastures'"),
        ({'labels': []}, 'labels', 'no class'),
        ({'tortilla:data_split': 'valid'}, 'data_split', "'valid' is none of train"),
        ({'patch_id': 'patch_7'}, 'patch_id', 'not the name of a BigEarthNet v2 patch'),
        ({'tortilla:file_format': 'GTiff'}, 'file_format', 'expected TORTILLA'),
        ({'country': 7}, 'country', '7, expected str'),
    ],
)
def test_rows_that_cannot_be_used(members, tmp_path, changes, field, message):
    alone = members[2]._replace(row={**members[2].row, **changes})
    with pytest.raises(RecordError, match=message) as error:
        source(written(tmp_path, [alone]))
    assert field in error.value.field and 'row 0' in str(error.value)


def test_a_bad_row_is_skipped_where_that_is_asked_for(members, tmp_path):
    bad = members[1]._replace(row={**members[1].row, 'labels': ['Sea']})
    listed = source(written(tmp_path, [*members[:1], bad, *members[:1]]), 'skip')
    assert {name: len(items) for name, items in listed.splits.items()} == {'train': 1}
    assert ["'Sea'" in skip['reason'] for skip in listed.skips] == [True, False]
    assert 'is listed before' in listed.skips[1]['reason']


def damaged(members, index, change):
    """The containers with one image of the first pair changed."""
    images = list(inside(members[0]))
    images[index] = change(images[index])
    return [members[0]._replace(content=generate.pack(images)), *members[1:2]]


PLACE = generate.Place(32633, 300000.0, 5400000.0)


@pytest.mark.parametrize(
    ('index', 'change', 'message'),
    [
        (1, lambda m: m._replace(content=m.content[: len(m.content) // 2]), 's2: cannot be read in full'),
        (0, lambda m: m._replace(content=b'<VRTDataset>' + m.content), 's1: .* that are no GeoTIFF'),
        (0, lambda m: m._replace(row={**m.row, 'patch_id': 'another'}), "'another'"),
        (1, lambda m: m._replace(row={**m.row, 'tortilla:id': 's3'}), "'s3'"),
        (
            1,
            lambda m: m._replace(content=generate._tiff(np.ones((12, 120, 120), np.uint16), PLACE, 60.0)),
            's2 position: EPSG:32633 from 300000',
        ),
        (
            1,
            lambda m: m._replace(content=generate._tiff(np.ones((10, 120, 120), np.uint16), PLACE, 60.0)),
            's2 number of channels: 10, expected 12',
        ),
        (
            0,
            lambda m: m._replace(content=generate._tiff(np.ones((2, 120, 120), np.float32), PLACE, 60.0)),
            's1 pixel size',
        ),
    ],
)
def test_damaged_samples_are_one_error_that_names_them(members, tmp_path, index, change, message):
    file = written(tmp_path, damaged(members, index, change))
    listed = source(file)
    first, second = (items[0] for items in (listed.splits['train'], listed.splits['val']))
    with pytest.raises(RecordError, match=message) as error:
        listed.read(first)
    assert 'sample_0' in error.value.file and str(file) in error.value.file
    assert listed.read(second)['sample'] == 'sample_1'
    if index == 1 and 'position' not in message:
        assert 'file.unreadable' in {f.code for f in findings(file)}


def header(begin, length, parts=1, magic=b'#y'):
    return struct.pack('<2sQQQ', magic, begin, length, parts).ljust(200, b'\0')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x[:150], 'header: 150 bytes'),
        (lambda x: b'PK' + x[2:], "begins with b'PK'"),
        (lambda x: x[:-10], 'a table of .* but there are'),
        (lambda x: header(2**63, 2**63) + x[200:], 'a table of'),
        (lambda x: header(*struct.unpack('<QQ', x[2:18]), parts=3) + x[200:], 'one of 3 parts'),
        (lambda x: header(200, len(x) - 200) + x[200:], 'cannot be read as Parquet'),
        (lambda x: x[:-8] + b'\xff' * 8, 'cannot be read as Parquet'),
    ],
)
def test_containers_that_are_none(file, tmp_path, change, message):
    other = tmp_path / 'other.tortilla'
    other.write_bytes(change(file.read_bytes()))
    with pytest.raises(RecordError, match=message):
        source(other)
    with pytest.raises(InputError, match=message):
        open_paths([str(other)])


def test_members_must_lie_inside_and_columns_must_be_there(members, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="path=''"):
        source('')
    with pytest.raises(InputError, match='there is no such file'):
        source(tmp_path)
    row = {key: value for key, value in members[0].row.items() if key != 'country'}
    with pytest.raises(InputError, match='no column country'):
        source(written(tmp_path, [members[0]._replace(row=row)]))
    # A table that sends the reader behind the members.
    monkeypatch.setattr(generate, 'HEADER', 5000)
    far = generate.pack(members[:1])
    begin, length = struct.unpack('<QQ', far[2:18])
    (tmp_path / 'far.tortilla').write_bytes(header(begin - 4800, length) + far[5000:])
    with pytest.raises(InputError, match='the members lie between'):
        source(tmp_path / 'far.tortilla')


def test_bytes_are_opened_as_geotiffs_alone(tmp_path):
    outside = tmp_path / 'outside.tif'
    outside.write_bytes(generate._tiff(np.ones((1, 4, 4), np.uint16), PLACE, 10.0))
    vrt = (
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f'<SourceFilename>{outside}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    for content in (vrt.encode(), b'', str(outside).encode()):
        with pytest.raises(UnusableError, match='no GeoTIFF'), raster.opened_bytes(content):
            pass
    with raster.opened_bytes(outside.read_bytes()) as dataset:
        assert dataset.driver == 'GTiff' and (dataset.read() == 1).all()
