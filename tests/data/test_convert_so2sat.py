"""The conversion of so2sat (GEO-Bench-2) on a tortilla made as the program of the benchmark makes it."""

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.doctor.checks import examine
from fusmae_jax.shipped.data.doctor.opening import open_paths
from fusmae_jax.shipped.data.generate.geobench2 import Member, pack
from fusmae_jax.shipped.data.geobench2 import samples
from fusmae_jax.shipped.data.geobench2.so2sat import CLASSES, LABELS, S2_BANDS
from fusmae_jax.shipped.data.records import RecordError
from tests.support.data_fixtures import read
from tests.support.so2sat_file import SPLITS, images_of, inner, sample, tiff

COUNT = 8


@pytest.fixture(scope='module')
def members():
    return [sample(index) for index in range(COUNT)]


@pytest.fixture(scope='module')
def file(members, tmp_path_factory):
    path = tmp_path_factory.mktemp('raw') / 'geobench_so2sat.tortilla'
    path.write_bytes(pack(members))
    return path


@pytest.fixture(scope='module')
def dataset(file, tmp_path_factory):
    return sharded.convert(source(file), tmp_path_factory.mktemp('data'), records_per_shard=3)


def source(file, on_error='fail', **settings):
    return samples.source(samples.Archive(path=str(file), name='so2sat', **settings), on_error)


def written(folder, members):
    path = folder / 'other.tortilla'
    path.write_bytes(pack(members))
    return path


def findings(path):
    (evidence,) = open_paths([str(path)])
    return {f.code: f for f in examine(evidence) if f.severity in ('warning', 'error')}


def test_records_have_vv_first_reflectance_and_one_climate_zone(members, dataset):
    records = {one['name']: one for one in read(dataset[0], 'train+val+test')}
    assert len(records) == COUNT
    for index, member in enumerate(members):
        row, (s1, s2) = member.row, images_of(index)
        record = records[row['patch_id'].encode()]
        # The file has VH first.
        np.testing.assert_array_equal(record['s1'], np.moveaxis(s1[::-1], 0, -1), strict=True)
        np.testing.assert_array_equal(record['s2'], np.moveaxis(s2, 0, -1), strict=True)
        (zone,) = np.flatnonzero(record[LABELS])
        assert CLASSES[zone] == row['labels'] and record['sample'].decode() == row['tortilla:id']


def test_contract_splits_and_report(members, dataset):
    folder, report = dataset
    for ours, theirs in zip(('train', 'val', 'test'), SPLITS):
        count = sum(member.row['tortilla:data_split'] == theirs for member in members)
        assert report['splits'][ours]['records'] == count == len(read(folder, ours)) > 0
    assert report['splits']['train']['published'] == 19_992
    made = contract.read(folder)
    assert made.groups['s1'].bands == ('VV', 'VH') and made.groups['s1'].unit == 'real part of amplitude'
    assert made.groups['s2'].bands == S2_BANDS and made.groups['s2'].unit == 'reflectance'
    vv, vh = made.statistics['s1'].std
    assert vv > 1.5 * vh
    assert not {'s1.order', 's1.unit'} & findings(folder).keys()


def test_the_doctor_states_the_order_and_that_radar_is_no_backscatter(file):
    stated = findings(file)
    assert stated.keys() == {'s1.order', 's1.unit'}
    assert all(f'{COUNT} of {COUNT}' in finding.evidence for finding in stated.values())


def test_the_pixels_decide_on_the_order_of_the_channels(file, members, tmp_path):
    with pytest.raises(InputError, match=rf'in {COUNT} of {COUNT} .* give --config.archive.s1_order=VH,VV'):
        source(file, s1_order='VV,VH')
    repaired = []
    for index, member in enumerate(members):
        s1, s2 = images_of(index)
        repaired.append(member._replace(content=inner(index, s1[::-1], s2)))
    other = written(tmp_path, repaired)
    with pytest.raises(InputError, match='s1_order=VV,VH'):
        source(other)
    listed = source(other, s1_order='VV,VH', splits='one')
    first = listed.read(listed.splits['train'][0])
    np.testing.assert_array_equal(first['s1'][..., 0], images_of(0)[0][1])


@pytest.mark.parametrize(
    ('changes', 'field', 'message'),
    [
        ({'labels': 'Water bodies'}, 'labels', 'is not one of the 17 climate zones'),
        ({'labels': 16}, 'labels', '16, expected str'),
        ({'tortilla:data_split': 'valid'}, 'data_split', "'valid' is none of train"),
        ({'tortilla:file_format': 'GTiff'}, 'file_format', 'expected TORTILLA'),
    ],
)
def test_rows_that_cannot_be_used(members, tmp_path, changes, field, message):
    alone = members[2]._replace(row={**members[2].row, **changes})
    with pytest.raises(RecordError, match=message) as error:
        source(written(tmp_path, [alone]))
    assert field in error.value.field and 'row 0' in str(error.value)


def other_label(index):
    s1, s2 = images_of(index)
    return inner(index, s1, s2, label=(index + 1) % len(CLASSES))


def nine_bands(index):
    s1, s2 = images_of(index)
    return inner(index, s1, s2[:9])


def no_images(index):
    row = {'patch_id': f'id_{index:04d}', 'labels': index, 'tortilla:file_format': 'GTiff'}
    return pack([Member(tiff(images_of(index)[1]), {**row, 'tortilla:id': 's2'})])


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (other_label, 'table: .*, expected'),
        (nine_bands, 's2 number of channels: 9, expected 10'),
        (no_images, 'table: .*, expected'),
    ],
)
def test_damaged_samples_are_one_error_that_names_them(members, tmp_path, damage, message):
    bad = members[0]._replace(content=damage(0))
    listed = source(written(tmp_path, [bad, *members[1:]]))
    with pytest.raises(RecordError, match=message) as error:
        listed.read(listed.splits['train'][0])
    assert 'sample_id_0000' in error.value.file


def test_the_other_set_is_told_by_its_table(file, members, tmp_path):
    with pytest.raises(InputError, match=r'say with --config\.archive\.name'):
        samples.source(samples.Archive(path=str(file)))
    skipped = source(written(tmp_path, [*members[:2], members[0]]), 'skip')
    assert 'is listed before' in skipped.skips[0]['reason']
