"""Result rows: complete or refused, the same after JSON, and compared under one protocol only."""

import dataclasses
import json

import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.eval import row
from fusmae_jax.eval.intervals import Interval, Spread
from fusmae_jax.eval.row import ResultRow, from_json, require_same_protocol, same_protocol
from tests.support.result_rows import VALUES

# What does not apply is None, and what cannot be said too.
BARE = {
    'checkpoints': (),
    'leaks': None,
    'label_fraction': 1.0,
    'draw': 'all',
    'draw_seeds': (),
    'pooled': None,
    'batch_norm': None,
    'sweep': {},
    'chosen': {},
    'settled_on': None,
    'modalities': (),
    'absent': None,
    'metric': 'f1',
    'averaging': 'macro',
    'threshold': 0.5,
    'estimate': None,
    'low': None,
    'high': None,
    'lowest': None,
    'highest': None,
}
OF_CLASS = {'averaging': 'class', 'label': 'Transitional woodland/shrub'}


ERROR = OF_CLASS | {'metric': 'rmse', 'unit': 't/ha', 'estimate': 31.5, 'low': 28.0, 'high': 40.0}
ERROR |= {'lowest': 30.0, 'highest': 33.0}


def changed(**changes):
    return ResultRow(**(VALUES | changes))


def text(**changes):
    return json.dumps({'format': row.FORMAT} | VALUES | changes)


@pytest.mark.parametrize('changes', [{}, BARE, OF_CLASS, ERROR])
def test_json_gives_the_same_row_back(changes):
    written = changed(**changes)
    line = written.to_json()
    assert '\n' not in line
    assert from_json(line, 'rows.jsonl') == written


@pytest.mark.parametrize('field', VALUES)
def test_every_field_is_required(field):
    with pytest.raises(TypeError, match=field):
        ResultRow(**{name: value for name, value in VALUES.items() if name != field})
    line = json.loads(text())
    del line[field]
    with pytest.raises(InputError, match=rf'rows.jsonl: not a result row\n  - {field} is missing'):
        from_json(json.dumps(line), 'rows.jsonl')


def test_the_fields_are_those_that_a_reader_asks_for():
    fields = {f.name: f.default for f in dataclasses.fields(ResultRow)}
    assert list(VALUES) == [name for name, default in fields.items() if default is dataclasses.MISSING]
    assert set(fields) - set(VALUES) == {'unit', 'filled'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'records': '119825'}, "records must be a whole number, found '119825'"),
        ({'records': 1.5}, 'records must be a whole number'),
        ({'draw_seeds': [0, True]}, r'draw_seeds must be tuple\[int, ...\], found \(0, True\)'),
        ({'classes': [1, 2]}, r'classes must be tuple\[str, ...\]'),
        ({'split': ''}, "split must be a word, found ''"),
        ({'split': None}, 'split must be a word, found None'),
        ({'pooled': ''}, "pooled must be .*None, found ''"),
        ({'estimate': float('nan')}, 'estimate must be .*found nan'),
        ({'level': True}, 'level must be a finite number'),
        ({'leaks': {'any': 'many'}}, 'leaks must be'),
        ({'sweep': {'learning_rate': 0.1}}, 'sweep must be'),
        ({'metric': 'map'}, "metric must be one of ap, f1, .*, found 'map'"),
        ({'metrics': 'ap'}, "metrics is not a field; did you mean 'metric'"),
        ({'format': 0}, 'not a result row of format 1'),
    ],
)
def test_wrong_types_and_unknown_fields_are_refused(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        from_json(text(**changes), 'rows.jsonl')
    assert str(caught.value).startswith('rows.jsonl: ')


@pytest.mark.parametrize('line', ['{', '[]', '3', ''])
def test_text_that_is_no_row_is_refused(line):
    with pytest.raises(InputError, match=r'rows.jsonl: not '):
        from_json(line, 'rows.jsonl')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'records': 0}, 'records and runs must be 1 or more'),
        ({'train_records': -1}, 'train_records and clusters must be 0'),
        ({'classes': ()}, 'classes must be named'),
        ({'classes': ('a', 'a')}, 'classes must be named, each once'),
        ({'without_positives': ('Airports',)}, 'among the classes'),
        ({'label_fraction': 1.5}, r'must lie in \(0, 1\]'),
        ({'label_fraction': 1.0}, "draw must be 'all' for the label fraction 1"),
        ({'draw': 'all', 'draw_seeds': ()}, "draw must be 'all' for the label fraction 1, and for no other"),
        ({'draw_seeds': ()}, 'draw_seeds must be given'),
        ({'averaging': 'class'}, 'label must be one of the classes'),
        ({'label': 'Pastures'}, 'for the averaging class only'),
        ({'metric': 'f1'}, 'threshold must be given for micro and macro F1'),
        ({'threshold': 0.5}, 'and for nothing else'),
        ({'low': None}, 'low and high must both be given'),
        ({'low': 0.8}, 'low and high must both be given, in this order'),
        ({'lowest': 0.9}, 'lowest and highest must both'),
        ({'estimate': 72.2}, r'must lie in \[0, 1\]'),
        ({'clusters': 1}, 'two clusters or more'),
        ({'undefined': 1000}, 'replicates that are defined'),
        ({'leaks': {'records': 5}}, '`any` among them'),
    ],
)
def test_rows_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        changed(**changes)


def test_errors_have_a_unit_and_ranges_of_their_own():
    assert json.loads(changed(**ERROR).to_json())['unit'] == 't/ha'
    assert not {'unit', 'filled'} & set(json.loads(changed().to_json()))  # rows of shares are as they were
    below = OF_CLASS | {'metric': 'r2', 'estimate': -3.5, 'low': -4.0, 'lowest': -5.0}
    assert changed(**below).estimate == -3.5
    for changes, message in (
        (ERROR | {'low': -1.0}, r'must lie in \[0, inf\]'),
        (below | {'high': 1.5}, r'must lie in \[-inf, 1\]'),
        ({'unit': 'm'}, 'unit must be given for errors alone'),
    ):
        with pytest.raises(InputError, match=message):
            changed(**changes)
    assert 'unit' in same_protocol(changed(**ERROR), changed(**ERROR | {'unit': 'kg/m2'}))


def test_all_problems_are_told_at_once():
    with pytest.raises(InputError) as caught:
        changed(estimate=2.0, records=0, clusters=1)
    assert str(caught.value).count('\n  - ') == 3


def test_the_fields_of_a_metric_name():
    names = {
        'ap_micro': ('ap', 'micro', None),
        'f1_macro': ('f1', 'macro', None),
        'precision_weighted': ('precision', 'weighted', None),
        'top3': ('top3', 'none', None),
        'ap/Transitional woodland/shrub': ('ap', 'class', 'Transitional woodland/shrub'),
    }
    assert {name: tuple(row.metric_fields(name).values()) for name in names} == names


def test_the_fields_of_an_interval():
    interval = Interval(0.6, 0.5, 0.7, 0.95, 1000, 3, 56)
    single = changed(**row.number_fields(interval))
    assert (single.estimate, single.low, single.high, single.undefined) == (0.6, 0.5, 0.7, 3)
    assert (single.lowest, single.highest, single.runs) == (0.6, 0.6, 1)
    many = changed(**row.number_fields(interval, Spread(0.6, 0.55, 0.66, 15)))
    assert (many.lowest, many.highest, many.runs) == (0.55, 0.66, 15)
    nan = float('nan')
    nothing = changed(**row.number_fields(Interval(nan, nan, nan, 0.95, 1000, 1000, 56)))
    assert nothing.estimate is nothing.low is nothing.high is nothing.lowest is None
    with pytest.raises(InputError, match=r'the runs have the mean 0\.5'):
        row.number_fields(interval, Spread(0.5, 0.4, 0.6, 15))


def test_rows_of_one_protocol_are_compared():
    other = changed(
        system='random init',
        checkpoints=(),
        leaks=None,
        estimate=0.5,
        low=0.4,
        high=0.6,
        lowest=0.5,
        highest=0.5,
        code_version='0.2.0',
        chosen={'learning_rate': (0.1,), 'weight_decay': (0.0,)},
    )
    assert same_protocol(changed(), other) == []
    require_same_protocol([changed(), other, other])


@pytest.mark.parametrize(
    'changes',
    [
        {'split': 'val'},
        {'averaging': 'macro'},
        {'label_fraction': 0.1},
        {'draw': 'stratified'},
        {'classes': VALUES['classes'][::-1]},
        {'sweep': {'learning_rate': (0.01,), 'weight_decay': (0.0,)}},
        {'absent': 'bypass', 'modalities': ('s1',)},
        {'statistics': 'dataset'},
        {'cluster': 'S2 scene', 'clusters': 125},
        {'dataset_fingerprint': '0' * 16},
    ],
)
def test_rows_of_different_protocols_are_not(changes):
    other = changed(system='another', **changes)
    assert set(same_protocol(changed(), other)) == set(changes)
    assert same_protocol(changed(), other, varying=list(changes)) == []
    require_same_protocol([changed(), other], varying=list(changes))
    field = next(iter(changes))
    message = rf"{field}: .* for 'Fus-MAE XAE, independent masks', .* for 'another'"
    with pytest.raises(InputError, match=message):
        require_same_protocol([changed(), changed(), other])


def test_only_the_protocol_can_be_varied():
    with pytest.raises(InputError, match="'modality' is not part of the protocol; did you mean 'modalities'"):
        same_protocol(changed(), changed(), varying=['modality'])
