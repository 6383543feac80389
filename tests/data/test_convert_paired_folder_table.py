"""The CSV table beside a user's own GeoTIFFs: pairs, labels, splits and facts, and what cannot be used."""

import csv
from pathlib import Path

import pytest

from data import sharded
from data.paired_folder import pairs
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from tests.support.data_fixtures import read
from tests.support.paired_folder_files import S2, archive, optical, pair, put, radar


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


def test_a_table_with_quotes_and_a_byte_order_mark(tmp_path):
    pair(tmp_path, 'a, b')
    with (tmp_path / 'pairs.csv').open('w', newline='', encoding='utf-8-sig') as stream:
        csv.writer(stream).writerows([['s1', 's2'], ['a, b.tif', 'a, b.tif']])
    source = pairs.source(archive(tmp_path, table=str(tmp_path / 'pairs.csv')))
    assert len(source.splits['train']) == 4


def rows_to(file: Path, rows):
    with file.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_table_gives_pairs_labels_splits_and_facts(tmp_path):
    for name in ('r1', 'r2', 'r3'):
        put(tmp_path / 's1' / f'{name}.tif', radar(24), ('VV', 'VH'))
        put(tmp_path / 's2' / 'north' / f'opt_{name}.tif', optical(24), S2)
    times = {'s1_time': '2024-06-30T05:10:31Z', 's2_time': '2024-06-30T12:00:00+02:00'}
    rows = [
        {'s1': f'{n}.tif', 's2': f'north/opt_{n}.tif', 'labels': labels, 'split': split, **times}
        | {'id': key, 'country': 'Austria', 'snow': '1', 'scene': 'alps'}
        for n, labels, split, key in (
            ('r1', 'wood; lake', 'train', 'one'),
            ('r2', '', 'train', ''),
            ('r3', 'lake', 'test', ''),
        )
    ]
    rows[1]['s1_time'] = ''
    rows_to(tmp_path / 'pairs.csv', rows)
    settings = archive(tmp_path, table=str(tmp_path / 'pairs.csv'))
    folder, report = sharded.convert(pairs.source(settings), tmp_path / 'out')
    train, test = ({r['name'].decode(): r for r in read(folder, s)} for s in ('train', 'test'))
    assert {*train} == {'one_0_0', 'north/opt_r2_0_0'} and {*test} == {'north/opt_r3_0_0'}
    assert contract.read(folder).classes == {'labels': ('lake', 'wood')}
    one, two = train['one_0_0'], train['north/opt_r2_0_0']
    assert one['labels'].tolist() == [1, 1] and two['labels'].tolist() == [0, 0]
    assert (one['s1_time'], one['s2_time'], two['s1_time']) == (1719724231, 1719741600, -1)
    assert (one['country'], one['snow'], one['scene']) == (b'Austria', 1, b'alps')
    assert (one['s1_name'], one['s2_name']) == (b'r1_0_0', b'north/opt_r1_0_0')
    assert report['splits']['train']['labels']['labels'] == {'lake': 1, 'wood': 1}
    order = archive(tmp_path, table=settings.table, classes=('wood', 'sea', 'lake'))
    assert pairs.source(order).schema.classes['labels'] == ('wood', 'sea', 'lake')
