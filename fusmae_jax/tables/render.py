"""Tables as text: Markdown to read, LaTeX to print, CSV to compute with."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fusmae_jax.tables.collect import Cell, Number, Sensors, difference, number
from fusmae_jax.tables.config import OF_CLASSES, Table, Tables
from fusmae_jax.tables.published import SOURCE, VERSIONS, published

HERE, NO_NUMBER = 'here', '-'
SHORT = {
    'ap_micro': 'mAP micro',
    'ap_macro': 'mAP macro',
    'f1_micro': 'F1 micro',
    'f1_macro': 'F1 macro',
    'top1': 'top-1',
    'top3': 'top-3',
    'precision_weighted': 'precision',
    'recall_weighted': 'recall',
    'f1_weighted': 'F1',
    OF_CLASSES: 'AP of these classes',
}


class Column(NamedTuple):
    """What stands under one another."""

    task: str  # '' where the line names the task
    sensors: Sensors
    metric: str


class Line(NamedTuple):
    """What stands side by side."""

    label: str
    source: str  # HERE, or the version of the paper
    system: str
    task: str  # '' where the column names it
    numbers: tuple[Number | str, ...]  # one a column; a word where there is no number


class Grid(NamedTuple):
    """A table, filled in."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


def grid(config: Tables, table: Table, found: Mapping[tuple[str, str], Cell]) -> Grid:
    """The table with the numbers of the paper under those of the same system here."""
    columns = _columns(config, table)
    lines = []
    for system in table.systems:
        for task in table.tasks if table.below else ('',):
            label = config.systems[system].label or system
            label += f', {config.tasks[task].label}' if table.below and len(table.tasks) > 1 else ''
            numbers = tuple(_number(table, found[c.task or task, system], c) for c in columns)
            lines.append(Line(label, HERE, system, task, numbers))
            lines += _published(config, system, task, columns)
    return Grid(table.title, columns, tuple(lines))


def minus(config: Tables, table: Table, found: Mapping[tuple[str, str], Cell]) -> Grid:
    """The paired differences of the systems from `table.against`."""
    columns = _columns(config, table)
    lines = []
    for system in (name for name in table.systems if name != table.against):
        for task in table.tasks if table.below else ('',):
            numbers = []
            for column in columns:
                pair = [found[column.task or task, name] for name in (system, table.against)]
                sides = [cell.by_sensors.get(column.sensors) for cell in pair]
                one, other = sides
                paired = difference(one, other, column.metric, table) if one and other else None
                numbers.append(paired or NO_NUMBER)
            lines.append(Line(config.systems[system].label or system, HERE, system, task, tuple(numbers)))
    against = config.systems[table.against].label or table.against
    return Grid(f'{table.title}: paired differences from {against}', columns, tuple(lines))


def fusion(config: Tables, table: Table, found: Mapping[tuple[str, str], Cell]) -> Grid:
    """The paired gains of all sensors over each one; a column says which one they are over."""
    columns = tuple(c for c in _columns(config, table) if len(c.sensors) == 1)
    lines = []
    for system in table.systems:
        for task in table.tasks if table.below else ('',):
            numbers = []
            for column in columns:
                there = found[column.task or task, system].by_sensors
                whole = next((there[names] for names in there if len(names) > 1), None)
                alone = there.get(column.sensors)
                paired = difference(whole, alone, column.metric, table) if whole and alone else None
                numbers.append(paired or NO_NUMBER)
            lines.append(Line(config.systems[system].label or system, HERE, system, task, tuple(numbers)))
    return Grid(f'{table.title}: paired gains of all sensors over the one named', columns, tuple(lines))


def _columns(config: Tables, table: Table) -> tuple[Column, ...]:
    tasks = ('',) if table.below else table.tasks
    shown = config.tasks[table.tasks[0]].columns
    return tuple(
        Column(task, names, metric)
        for task in tasks
        for names in (config.tasks[task].columns if task else shown)
        for metric in table.metrics
    )


def _number(table: Table, cell: Cell, column: Column) -> Number | str:
    if cell.note:
        return NO_NUMBER if cell.note == 'not part of it' else cell.note
    measured = cell.by_sensors.get(column.sensors)
    return number(measured, column.metric, table) if measured else NO_NUMBER


def _published(config: Tables, system: str, task: str, columns: Sequence[Column]) -> list[Line]:
    """The lines of the paper for a system, the newest version first; none without numbers."""
    lines = []
    for version in VERSIONS:
        known = published(version, config.systems[system].published)
        numbers: list[Number | str] = []
        for column in columns:
            name = config.tasks[column.task or task].published
            values = [known.get((name, sensors, column.metric)) for sensors in (column.sensors, None)]
            value = next((x for x in values if x is not None), None)
            numbers.append(NO_NUMBER if value is None else Number(value / 100, None, None, None, None, 0, 0))
        if any(isinstance(x, Number) for x in numbers):
            lines.append(Line(f'... paper, {version}', version, system, task, tuple(numbers)))
    return lines


def head(config: Tables, column: Column, one_metric: bool) -> str:
    """The words over a column."""
    parts = [config.tasks[column.task].label if column.task else '', '+'.join(column.sensors).upper()]
    parts.append('' if one_metric else SHORT.get(column.metric, column.metric.removeprefix('ap/')))
    return ', '.join(filter(None, parts))


def text(value: Number | str, signed: bool = False) -> str:
    """In percent: estimate [95 % interval] (range over runs)."""
    if isinstance(value, str):
        return value
    if value.estimate is None:
        return 'undefined'
    sign = '+' if signed else ''
    words = f'{100 * value.estimate:{sign}.1f}'
    if value.low is not None and value.high is not None:
        words += f' [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]'
    if value.runs > 1 and value.lowest is not None and value.highest is not None:
        words += f' ({100 * value.lowest:.1f} to {100 * value.highest:.1f})'
    return words


def markdown(config: Tables, grid: Grid, signed: bool = False) -> str:
    """A table as GitHub shows it."""
    rows = _rows(config, grid, signed)
    rule = ['---'] * len(rows[0])
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in [rows[0], rule, *rows[1:]])


def latex(config: Tables, grid: Grid, signed: bool = False) -> str:
    """A tabular with the rules of booktabs; intervals are smaller than estimates."""
    rows = [[_escape(cell) for cell in cells] for cells in _rows(config, grid, signed)]
    for cells in rows[1:]:
        cells[1:] = [_small(cell) for cell in cells[1:]]
    body = [' & '.join(cells) + r' \\' for cells in rows]
    start = rf'\begin{{tabular}}{{l{"r" * (len(rows[0]) - 1)}}}'
    return '\n'.join([start, r'\toprule', body[0], r'\midrule', *body[1:], r'\bottomrule', r'\end{tabular}'])


def _rows(config: Tables, grid: Grid, signed: bool) -> list[list[str]]:
    one = len({column.metric for column in grid.columns}) == 1
    rows = [['system', *(head(config, column, one) for column in grid.columns)]]
    return rows + [[line.label, *(text(x, signed) for x in line.numbers)] for line in grid.lines]


def _small(cell: str) -> str:
    number, space, rest = cell.partition(' ')
    return rf'{number}{space}{{\scriptsize {rest}}}' if space and number[-1].isdigit() else cell


def _escape(cell: str) -> str:
    for sign in '&%_#':
        cell = cell.replace(sign, f'\\{sign}')
    return cell


CSV = ('table', 'kind', 'system', 'label', 'source', 'task', 'sensors', 'metric')


def to_csv(config: Tables, grids: Sequence[tuple[str, str, Grid]]) -> str:
    """A line for each number: (table, kind, grid); shares between 0 and 1, in full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow([*CSV, *Number._fields, 'note'])
    for table, kind, one in grids:
        for line in one.lines:
            for column, value in zip(one.columns, line.numbers):
                about = [table, kind, line.system, line.label, line.source, column.task or line.task]
                about += ['+'.join(column.sensors), column.metric]
                empty = [''] * len(Number._fields)
                numbers = ['' if x is None else x for x in value] if isinstance(value, Number) else empty
                source = SOURCE if line.source != HERE else ''
                writer.writerow([*about, *numbers, value if isinstance(value, str) else source])
    return stream.getvalue()
