"""Labels in the ways that tables write them: read as they are meant, or refused by column and setting."""

from pathlib import Path

import pytest

from data.paired_folder import labels
from data.paired_folder.entries import COLUMNS
from data.paired_folder.settings import Archive
from data.records import RecordError
from fusmae_jax.errors import InputError

# Three of these hold commas, as in the nomenclature of BigEarthNet.
WOOD, LAND = (
    'Transitional woodland, shrub',
    'Land principally occupied by agriculture, with natural vegetation',
)
CLASSES = ('Arable land', LAND, 'Marine waters', 'Pastures', WOOD, 'Beaches, dunes, sands')
IMAGES = [('Marine waters',), ('Arable land', LAND, WOOD), (LAND, 'Pastures'), ('Beaches, dunes, sands',), ()]


def read(cells, **settings):
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
    assert read([write(names) for names in IMAGES], **settings) == [tuple(sorted(names)) for names in IMAGES]


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
        read(cells, **settings)


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
        read([cell], **settings)


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
    assert read(cells, **settings) == [(cell,) for cell in cells]
