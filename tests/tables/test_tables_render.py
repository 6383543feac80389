"""Where numbers stand: tasks below one another, columns, labels, and what the paper is quoted for."""

import csv
import io

import numpy as np
import pytest

from fusmae_jax.eval.intervals import Replicates
from fusmae_jax.eval.row import ResultRow
from fusmae_jax.tables import render
from fusmae_jax.tables.collect import MeasuredSystem, Number, StudyCell
from fusmae_jax.tables.config import StudySystem, StudyTable, StudyTask, Tables
from fusmae_jax.tables.published import SEN12MS, published
from tests.support.result_rows import VALUES

RADAR, OPTICAL, BOTH = ('s1',), ('s2',), ('s1', 's2')
METRIC = 'ap_micro'
SYSTEMS = {'xae': StudySystem('XAE', published='XAE'), 'random': StudySystem('untrained')}
TASKS = {
    'few': StudyTask('1 %', columns=(OPTICAL,)),
    'many': StudyTask('100 %', columns=(RADAR, OPTICAL, BOTH)),
    'plain': StudyTask(columns=(RADAR, BOTH)),
}
LEVELS = {RADAR: 0.5, OPTICAL: 0.6, BOTH: 0.9}


def measured(value):
    ends = dict.fromkeys(('low', 'high', 'lowest', 'highest'), value)
    row = ResultRow(**(VALUES | ends | {'estimate': value}))
    return MeasuredSystem(
        ({METRIC: row},), Replicates({METRIC: value}, {METRIC: np.full(3, value)}, 7, 'same')
    )


def cells(config, note=''):
    """Every system in every task, with the numbers of the sensors that the task has."""
    result = {}
    for task, about in config.tasks.items():
        for i, system in enumerate(config.systems):
            some = {} if note else {names: measured(LEVELS[names] - 0.1 * i) for names in about.columns}
            result[task, system] = StudyCell(note, some)
    return result


def study(table, tasks=TASKS):
    return Tables({}, SYSTEMS, tasks, {'one': table})


def below(*tasks, **more):
    return StudyTable('One', tuple(SYSTEMS), tasks, True, against='random', **more)


def shown(grid):
    """label -> {sensors: estimate, or the word}."""
    return {
        line.label: {
            '+'.join(column.sensors): pytest.approx(x.estimate) if isinstance(x, Number) else x
            for column, x in zip(grid.columns, line.numbers)
        }
        for line in grid.lines
    }


def test_the_columns_are_those_of_all_tasks_in_their_order():
    config = study(below('few', 'many'))
    grid = render.grid(config, config.tables['one'], cells(config))
    assert [c.sensors for c in grid.columns] == [OPTICAL, RADAR, BOTH]
    lines = shown(grid)
    assert lines['XAE, 1 %'] == {'s2': 0.6, 's1': '-', 's1+s2': '-'}
    assert lines['XAE, 100 %'] == {'s2': 0.6, 's1': 0.5, 's1+s2': 0.9}
    assert lines['untrained, 100 %'] == {'s2': 0.5, 's1': 0.4, 's1+s2': 0.8}
    assert '| XAE, 1 % | 60.0 [60.0, 60.0] (60.0 to 60.0) | - | - |' in render.markdown(config, grid)


def test_sensors_that_a_task_does_not_have_are_not_called_not_run():
    config = study(below('few', 'many'))
    lines = shown(render.grid(config, config.tables['one'], cells(config, note='not run')))
    assert lines['XAE, 1 %'] == {'s2': 'not run', 's1': '-', 's1+s2': '-'}
    assert lines['XAE, 100 %'] == dict.fromkeys(('s2', 's1', 's1+s2'), 'not run')


@pytest.mark.parametrize('make', [render.grid, render.minus, render.fusion])
def test_every_line_says_its_task_where_there_are_several(make):
    config = study(below('many', 'plain'))
    labels = [line.label for line in make(config, config.tables['one'], cells(config)).lines]
    assert len(set(labels)) == len(labels)
    assert labels[:2] == ['XAE, 100 %', 'XAE, plain']  # a task without a label by its name
    for alone in (below('many'), StudyTable('One', tuple(SYSTEMS), ('many', 'plain'), against='random')):
        config = study(alone)
        labels = [line.label for line in make(config, alone, cells(config)).lines]
        assert labels == (['XAE'] if make is render.minus else ['XAE', 'untrained'])


def test_differences_and_gains_are_those_of_the_task_of_their_line():
    config = study(below('few', 'many'))
    one = config.tables['one']
    differences = shown(render.minus(config, one, cells(config)))
    assert differences['XAE, 1 %'] == {'s2': 0.1, 's1': '-', 's1+s2': '-'}
    assert differences['XAE, 100 %'] == {'s2': 0.1, 's1': 0.1, 's1+s2': 0.1}
    gains = shown(render.fusion(config, one, cells(config)))
    assert gains['XAE, 1 %'] == {'s2': '-', 's1': '-'}  # there is no line of both sensors to compare with
    assert gains['XAE, 100 %'] == {'s2': pytest.approx(0.3), 's1': pytest.approx(0.4)}


PAPER = {
    'whole': StudyTask('whole images', columns=(OPTICAL, RADAR), published=SEN12MS),
    'crops': StudyTask('four crops', columns=(OPTICAL, RADAR), published=SEN12MS),
    'linear': StudyTask('1 %', columns=(RADAR, BOTH), published='linear_1'),
}


def quoted(table):
    """Lines of the CSV that quote a number of the paper."""
    config = study(table, PAPER)
    grid = render.grid(config, table, cells(config, note='not run'))
    text = render.to_csv([('one', 'numbers', grid)])
    return [
        line for line in csv.DictReader(io.StringIO(text)) if line['source'] != 'here' and line['estimate']
    ]


@pytest.mark.parametrize('down', [True, False])
def test_a_number_of_no_stated_sensor_is_quoted_once(down):
    lines = quoted(StudyTable('One', ('xae',), ('whole', 'crops'), down, ('top1', 'f1_weighted')))
    about = [(line['source'], line['task'], line['sensors'], line['metric']) for line in lines]
    assert about == [('v2', 'whole', 's2', 'top1'), ('v2', 'whole', 's2', 'f1_weighted')]
    assert float(lines[0]['estimate']) == published('v2', 'XAE')[SEN12MS, None, 'top1'] / 100
    assert all('sensor not stated' in line['note'] and 'arXiv' in line['note'] for line in lines)


def test_a_number_of_a_stated_sensor_stands_under_it():
    lines = quoted(StudyTable('One', ('xae',), ('whole', 'linear'), True))
    assert [(line['task'], line['sensors']) for line in lines] == [('linear', 's1'), ('linear', 's1+s2')]
    assert {line['note'] for line in lines} == {'arXiv 2401.02764'}


def test_two_systems_of_one_name_in_the_paper_are_quoted_each():
    table = StudyTable('One', ('xae', 'again'), ('whole',), True, ('top1',))
    config = Tables({}, {**SYSTEMS, 'again': StudySystem('again', published='XAE')}, PAPER, {'one': table})
    grid = render.grid(config, table, cells(config, note='not run'))
    assert [line.system for line in grid.lines if line.source == 'v2'] == ['xae', 'again']
