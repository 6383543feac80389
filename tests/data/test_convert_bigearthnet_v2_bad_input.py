"""Damaged archives of BigEarthNet v2: one clear error each, or a listed skip, never a half-written set."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rasterio

from data import sharded
from data.bigearthnet_v2 import pairs
from data.bigearthnet_v2.labels import classes_of_map
from data.generate import bigearthnet_v2 as generate
from data.records import RecordError
from fusmae_jax.errors import InputError
from tests.support.bigearthnet_v2_raw import EVERYTHING, SCENE, Raw, pixels, rewrite, write
from tests.support.data_fixtures import assert_same_records, by_name, read


@pytest.fixture(scope='module')
def raw(tmp_path_factory) -> Raw:
    """Twelve pairs as they lie on disk; read-only."""
    return write(tmp_path_factory.mktemp('raw'), 12, SCENE)


@pytest.fixture(scope='module')
def dataset(raw, tmp_path_factory):
    """All of them converted, with reference maps, and the report; read-only."""
    return sharded.convert(raw.source(**EVERYTHING), tmp_path_factory.mktemp('data'))


def change(raw: Raw, **values):
    rows = raw.rows()
    rows[0] |= values
    raw.write_rows(rows)


ROWS = {
    'class': ({'labels': ['Pasture']}, r"labels: row 0: 'Pasture' is not .* did you mean 'Pastures'"),
    'no_class': ({'labels': []}, r'labels: row 0: no class'),
    'null': ({'s1_name': None}, r's1_name: row 0: None, expected str'),
    'split': ({'split': 'val'}, r"split: row 0: 'val' is none of train, validation, test"),
    'version_1': ({'patch_id': 'S2A_MSIL2A_20170613T101031_26_57'}, r'row 0: .* of a BigEarthNet v2 patch'),
    'escapes': ({'patch_id': '../../etc/passwd'}, r"row 0: '../../etc/passwd' is not the name"),
    'absolute': ({'s1_name': '/etc/passwd'}, r"row 0: '/etc/passwd' is not the name"),
    'not_radar': ({'s1_name': 'S2A_MSIL2A_20170613T101031_26_57'}, r'not the name of a Sentinel-1 patch'),
    'other_cell': (
        {'s1_name': 'S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48'},
        r'row 0: S1A_.*_87_48 is of another tile or cell than S2',
    ),
}


@pytest.mark.parametrize('case', ROWS)
def test_rows_that_cannot_be_used(case, raw, tmp_path):
    values, message = ROWS[case]
    copy = Raw(tmp_path, raw.settings | {'metadata': str(tmp_path / generate.METADATA)})
    copy.write_rows(raw.rows(), schema=pyarrow.parquet.read_schema(raw.settings['metadata']))
    change(copy, **values)
    with pytest.raises(RecordError, match=message) as caught:
        copy.source()
    assert str(caught.value).startswith(copy.settings['metadata'])
    assert '\n' not in str(caught.value)
    source = copy.source(on_error='skip')
    (skip,) = source.skips
    assert skip['file'] == copy.settings['metadata']
    assert sum(map(len, source.splits.values())) == len(raw.rows()) - 1


def test_a_pair_that_is_listed_twice(raw, tmp_path):
    copy = Raw(tmp_path, raw.settings | {'metadata': str(tmp_path / generate.METADATA)})
    rows = raw.rows()
    copy.write_rows([*rows, rows[1]], schema=pyarrow.parquet.read_schema(raw.settings['metadata']))
    with pytest.raises(RecordError, match=f'{rows[1]["patch_id"]} is listed before; remove one'):
        copy.source()
    assert len(copy.source(on_error='skip').skips) == 1


def test_wrong_tables_and_folders(raw, tmp_path):
    with pytest.raises(InputError, match=r'config.archive.metadata'):
        raw.source(metadata='')
    with pytest.raises(InputError, match=r'nowhere: the metadata table is missing'):
        raw.source(metadata=str(tmp_path / 'nowhere'))
    (tmp_path / 'text').write_text('patch_id')
    with pytest.raises(InputError, match=r'text: cannot be read as a Parquet table'):
        raw.source(metadata=str(tmp_path / 'text'))
    other = tmp_path / 'other.parquet'
    pyarrow.parquet.write_table(pyarrow.table({'patch_id': ['a'], 'labels': [['b']]}), other)
    with pytest.raises(InputError, match=r'no column split, country, .*found: patch_id, labels\); give'):
        raw.source(metadata=str(other))
    with pytest.raises(InputError, match=r'snow_cloud_metadata=.* only read together with with_snow_cloud'):
        raw.source(snow_cloud_metadata='x')
    with pytest.raises(InputError, match=r's1_root: no folder here has a name starting with S1'):
        raw.source(s1_root=str(raw.folder))
    with pytest.raises(InputError, match=r'nowhere: maps_root: no such folder'):
        raw.source(reference_maps=True, maps_root=str(tmp_path / 'nowhere'))


def shift(file: Path):
    with rasterio.open(file) as dataset:
        transform = dataset.transform @ type(dataset.transform).translation(1, 0)
    rewrite(file, transform=transform)


FILES = {
    'band': (lambda a, s1, s2: a.file(s2, 'B8A').unlink(), r'_B8A\.tif: B8A: the file is missing'),
    'cut': (
        lambda a, s1, s2: a.file(s1, 'VH').write_bytes(a.file(s1, 'VH').read_bytes()[:20_000]),
        r'_VH\.tif: VH: cannot be read in full',
    ),
    'dtype': (
        lambda a, s1, s2: rewrite(a.file(s2, 'B02'), pixels(a.file(s2, 'B02')).astype(np.float32)),
        r'_B02\.tif: B02 dtype: float32, expected uint16',
    ),
    'size': (
        lambda a, s1, s2: rewrite(a.file(s2, 'B01'), np.ones((120, 120), np.uint16)),
        r'_B01\.tif: B01 size: \(120, 120\), expected \(20, 20\)',
    ),
    'place': (
        lambda a, s1, s2: [shift(a.file(s1, band)) for band in ('VV', 'VH')],
        r's2_10m position: .* but the Sentinel-1 patch has',
    ),
    'power': (
        lambda a, s1, s2: [
            rewrite(a.file(s1, band), 10 ** (pixels(a.file(s1, band)) / 10)) for band in ('VV', 'VH')
        ],
        r's1 \(VV, VH\): no negative value',
    ),
    'patch': (
        lambda a, s1, s2: shutil.rmtree(a.file(s1, 'VV').parent),
        r'S1\w+: folder: the patch is missing',
    ),
    'map': (lambda a, s1, s2: a.map(s2).unlink(), r'_reference_map\.tif: reference_map: the file is missing'),
    'map_place': (lambda a, s1, s2: shift(a.map(s2)), r'reference_map position: .* but the images have'),
    'map_codes': (
        lambda a, s1, s2: rewrite(a.map(s2), classes_of_map(pixels(a.map(s2))).astype(np.uint16) + 1),
        r'_reference_map\.tif: reference_map: \[\d+.*\], no CORINE level-3 codes',
    ),
}


@pytest.mark.parametrize('case', FILES)
def test_files_that_cannot_be_used(case, raw, tmp_path):
    damage, message = FILES[case]
    item = raw.source().splits['train'][0]
    s2_name, s1_name = item.values[:2]
    copy = Raw(tmp_path, {})
    for file in (raw.file(s1_name, 'VV'), raw.file(s2_name, 'B02'), raw.map(s2_name)):
        shutil.copytree(file.parent, tmp_path / file.parent.relative_to(raw.folder))
    damage(copy, s1_name, s2_name)
    roots = {key: str(tmp_path / Path(raw.settings[key]).name) for key in ('s1_root', 's2_root')}
    source = raw.source(reference_maps=True)
    read_here = functools.partial(source.read.func, **roots, maps_root=str(tmp_path / pairs.MAPS))
    source.read(item)
    with pytest.raises(RecordError, match=message) as caught:
        read_here(item)
    assert '\n' not in str(caught.value) and ';' in str(caught.value)


def test_damaged_pairs_are_one_error_or_listed_skips(raw, dataset, tmp_path):
    copy = raw.copy(tmp_path / 'copy')
    rows = copy.rows() + copy.rows(pairs.SNOW_CLOUD)
    copy.file(rows[0]['patch_id'], 'B12').unlink()
    shutil.rmtree(copy.file(rows[1]['s1_name'], 'VV').parent)
    with pytest.raises(InputError, match=r'the (file|patch) is missing'):
        sharded.convert(copy.source(**EVERYTHING), tmp_path / 'fail')
    assert not (tmp_path / 'fail' / 'bigearthnet_v2' / '1.0.0').exists()
    source = copy.source('skip', **EVERYTHING)
    folder, report = sharded.convert(source, tmp_path / 'skip', on_error='skip')
    assert {skip['record'] for skip in report['skips']} == {row['patch_id'] for row in rows[:2]}
    left = by_name(read(folder, '+'.join(report['splits'])))
    whole = by_name(read(dataset[0], 'train+val+test'))
    assert left.keys() == whole.keys() - {row['patch_id'].encode() for row in rows[:2]}
    assert_same_records(left.values(), [whole[name] for name in left])


def test_links_out_of_the_archive_are_not_followed(raw, tmp_path):
    source, copy = raw.source(), raw.copy(tmp_path / 'copy')
    item = source.splits['train'][0]
    patch = copy.file(item.values[0], 'B02').parent
    shutil.move(patch, tmp_path / 'elsewhere')
    patch.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(RecordError, match=r'leads out of .*BigEarthNet-S2'):
        copy.source().read(item)
