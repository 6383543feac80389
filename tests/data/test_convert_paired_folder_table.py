"""The CSV table beside a user's own GeoTIFFs: pairs, splits, facts and labels, and what cannot be used."""

import csv
from pathlib import Path

import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.paired_folder import labels, pairs
from fusmae_jax.shipped.data.paired_folder.settings import Archive
from fusmae_jax.shipped.data.paired_folder.table import COLUMNS
from fusmae_jax.shipped.data.records import RecordError
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


# Three of these hold commas, as in the nomenclature of BigEarthNet.
WOOD, LAND = (
    'Transitional woodland, shrub',
    'Land principally occupied by agriculture, with natural vegetation',
)
CLASSES = ('Arable land', LAND, 'Marine waters', 'Pastures', WOOD, 'Beaches, dunes, sands')
IMAGES = [('Marine waters',), ('Arable land', LAND, WOOD), (LAND, 'Pastures'), ('Beaches, dunes, sands',), ()]


def labels_of(cells, **settings):
    archive = Archive(table='t.csv', **settings)
    rows = [{'labels': cell} for cell in cells]
    classes_of = labels.reader(archive, Path('t.csv'), rows, ())
    return [classes_of(row, f'row {number}') for number, row in enumerate(rows, 2)]


def printed_by_numpy(names):
    return '[' + '\n '.join(map(repr, names)) + ']'


WAYS = {
    'semicolons': ('; '.join, {}),
    'commas, classes named': (', '.join, {'classes': CLASSES}),
    'commas without a space, classes named': (
        lambda names: ','.join(names).replace(', ', ','),
        {'classes': CLASSES},
    ),
    'bars, separator named': ('|'.join, {'labels_separator': '|'}),
    'a Python list': (lambda names: repr(list(names)), {}),
    'a tuple': (lambda names: repr(tuple(names)), {}),
    'a list of JSON': (lambda names: repr(list(names)).replace("'", '"'), {}),
    'a NumPy array': (printed_by_numpy, {}),
    'digits': (lambda names: ''.join('01'[c in names] for c in CLASSES), {'classes': CLASSES}),
    'a list of digits': (lambda names: str([int(c in names) for c in CLASSES]), {'classes': CLASSES}),
}


@pytest.mark.parametrize('way', WAYS)
def test_a_column_is_read_as_it_is_meant(way):
    write, settings = WAYS[way]
    assert labels_of([write(names) for names in IMAGES], **settings) == [
        tuple(sorted(names)) for names in IMAGES
    ]


def test_a_column_for_each_class():
    columns = ('s1', 's2', *CLASSES)
    archive = Archive(table='t.csv', classes=CLASSES)
    assert labels.class_columns(Path('t.csv'), columns, COLUMNS, archive) == CLASSES
    rows = [{c: ('0', '1')[c in names] for c in CLASSES} for names in IMAGES]
    rows[0] = {c: ('0.0', 'True')[c in IMAGES[0]] for c in CLASSES}
    classes_of = labels.reader(archive, Path('t.csv'), rows, CLASSES)
    assert [{*classes_of(row, 'row')} for row in rows] == [{*names} for names in IMAGES]
    with pytest.raises(RecordError, match="row 2, Pastures: 'maybe'; the column of a class holds 0 or 1"):
        classes_of(rows[0] | {'Pastures': 'maybe'}, 'row 2')


@pytest.mark.parametrize(
    ('columns', 'settings', 'message'),
    [
        (('s2', 'wood', 'lake'), {}, r"column 'wood' is not known; .*classes=\('wood', 'lake'\)"),
        (('s2', 'labels', 'wood'), {'classes': ('wood',)}, "there is a column 'labels' too"),
        (('s2', 'wood'), {'classes': ('wood', 'lake')}, "column 'lake' is missing"),
        (('s2', 'clouds'), {}, "column 'clouds' is not known; did you mean 'cloud'"),
    ],
)
def test_columns_of_classes_have_to_be_named(columns, settings, message):
    """A column of 0 and 1 may be anything: a flag that somebody kept must not become a class."""
    archive, rows = Archive(table='t.csv', **settings), [dict.fromkeys(columns, '1')]
    with pytest.raises(InputError, match=f't.csv: table: .*{message}'):
        check_columns(archive, columns, rows)


def check_columns(archive, columns, rows):
    file = Path('t.csv')
    flags = labels.class_columns(file, columns, COLUMNS, archive)
    raise labels.unknown_column(file, next(c for c in columns if c not in (*COLUMNS, *flags)), rows, COLUMNS)


@pytest.mark.parametrize(
    ('cells', 'settings', 'message'),
    [
        (['a, b', 'a'], {}, r"'a, b' can be one class or several parted by ','; set .*labels_separator=','"),
        (['a|b'], {}, 'parted by .|.'),
        (['a;b', 'a, b'], {}, "'a, b' can be one class or several"),
        (['clear road', 'road', 'clear water', 'water', 'clear'], {}, "parted by ' '"),
        (['a+b', 'b+c', 'a+c', 'a+b+c'], {}, "parted by '.'"),
        ([', '.join(names) for names in IMAGES], {'labels_separator': ','}, 'two classes, or one whose name'),
        (['0110', '0001'], {}, r"'0110' looks like one digit a class, 4 in all, but .*classes is empty"),
        (['0110', '1'], {'classes': tuple('abcd')}, '1 or 4 in all, but .* zeros'),
        (['0', '1'], {}, 'or these texts, if they are names'),
        (['[1, 0]', '[0, 1]'], {}, 'one digit a class, 2 in all'),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(cells, settings, message):
    with pytest.raises(InputError, match=f"t.csv: table: column 'labels': .*{message}"):
        labels_of(cells, **settings)


@pytest.mark.parametrize(
    ('cell', 'settings', 'message'),
    [
        ('[3, 17]', {}, r"'\[3, 17\]' is no list of texts"),
        ("['a'", {'classes': ('a',)}, 'valid: a'),
        ('nan', {}, 'stands for no value; leave the cell empty'),
        ('wod', {'classes': ('wood',)}, "'wod'; did you mean 'wood'"),
        ('a, b', {'classes': ('a', 'b', 'a, b')}, 'can be .* or .*labels_separator'),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(cell, settings, message):
    with pytest.raises(RecordError, match=f'row 2, labels: .*{message}'):
        labels_of([cell], **settings)


@pytest.mark.parametrize(
    ('cells', 'settings'),
    [
        (CLASSES, {'labels_separator': ';'}),  # one class an image, commas and all
        (['Mixed forest', 'Broad-leaved forest', 'Inland wetlands', 'Inland waters'], {}),
        ([f'class_{i}' for i in range(9)], {}),
        (['0', '1'], {'classes': ('0', '1')}),
        (['7', '12', '3'], {}),
    ],
)
def test_names_of_their_own_stay_whole(cells, settings):
    assert labels_of(cells, **settings) == [(cell,) for cell in cells]
