"""Tables as text: Markdown to read, LaTeX to print, CSV to compute with."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fusmae_jax.eval.row import ALL, ResultRow
from fusmae_jax.tables.collect import Number, Sensors, StudyCell, difference, number
from fusmae_jax.tables.config import OF_CLASSES, StudyTable, Tables
from fusmae_jax.tables.published import SOURCE, VERSIONS, published

HERE, NO_NUMBER = 'here', '-'
UNSTATED = 'sensor not stated'
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


class TableColumn(NamedTuple):
    """What stands under one another."""

    task: str  # '' where the line names the task
    sensors: Sensors
    metric: str


class TableLine(NamedTuple):
    """What stands side by side."""

    label: str
    source: str  # HERE, or the version of the paper
    system: str
    task: str  # '' where the column names it
    numbers: tuple[Number | str, ...]  # one a column; a word where there is no number
    notes: tuple[str, ...] = ()  # what the CSV says beside each of them; () is nothing


class FilledTable(NamedTuple):
    """A table, filled in."""

    title: str
    columns: tuple[TableColumn, ...]
    lines: tuple[TableLine, ...]


def grid(config: Tables, table: StudyTable, results: Mapping[tuple[str, str], StudyCell]) -> FilledTable:
    """The table with the numbers of the paper under those of the same system here."""
    columns = _columns(config, table)
    lines: list[TableLine] = []
    # A number whose sensor the paper does not state stands once, in the first cell that it fits.
    quoted: set[tuple[str, ...]] = set()
    for system, task, label in _labelled(config, table, table.systems):
        numbers = tuple(
            _number(table, results[c.task or task, system], c) if _has(config, task, c) else NO_NUMBER
            for c in columns
        )
        lines.append(TableLine(label, HERE, system, task, numbers))
        lines += _published(config, system, task, columns, quoted)
    return FilledTable(table.title, columns, tuple(lines))


def minus(config: Tables, table: StudyTable, results: Mapping[tuple[str, str], StudyCell]) -> FilledTable:
    """The paired differences of the systems from `table.against`."""
    columns = _columns(config, table)
    lines = []
    others = [name for name in table.systems if name != table.against]
    for system, task, label in _labelled(config, table, others):
        numbers = []
        for column in columns:
            pair = [results[column.task or task, name] for name in (system, table.against)]
            first, second = (cell.by_sensors.get(column.sensors) for cell in pair)
            paired = difference(first, second, column.metric, table) if first and second else None
            numbers.append(paired or NO_NUMBER)
        lines.append(TableLine(label, HERE, system, task, tuple(numbers)))
    against = config.systems[table.against].label or table.against
    return FilledTable(f'{table.title}: paired differences from {against}', columns, tuple(lines))


def fusion(config: Tables, table: StudyTable, results: Mapping[tuple[str, str], StudyCell]) -> FilledTable:
    """The paired gains of all sensors over each one; a column says which one they are over."""
    columns = tuple(c for c in _columns(config, table) if len(c.sensors) == 1)
    lines = []
    for system, task, label in _labelled(config, table, table.systems):
        numbers = []
        for column in columns:
            there = results[column.task or task, system].by_sensors
            # What one sensor adds shows between evaluations of one system, so the pair is within a line.
            whole = next((there[names] for names in there if len(names) > 1), None)
            alone = there.get(column.sensors)
            paired = difference(whole, alone, column.metric, table) if whole and alone else None
            numbers.append(paired or NO_NUMBER)
        lines.append(TableLine(label, HERE, system, task, tuple(numbers)))
    return FilledTable(
        f'{table.title}: paired gains of all sensors over the one named', columns, tuple(lines)
    )


def _columns(config: Tables, table: StudyTable) -> tuple[TableColumn, ...]:
    """Task by task; with tasks below one another, all sensors that any of them has, each once."""
    sideways = {task: config.tasks[task].columns for task in table.tasks}
    if table.below:
        sideways = {'': tuple(dict.fromkeys(names for columns in sideways.values() for names in columns))}
    return tuple(
        TableColumn(task, names, metric)
        for task, columns in sideways.items()
        for names in columns
        for metric in table.metrics
    )


def _has(config: Tables, task: str, column: TableColumn) -> bool:
    """Whether a column stands for sensors of its task, or else of the task of the line."""
    return column.task != '' or column.sensors in config.tasks[task].columns


def _labelled(config: Tables, table: StudyTable, systems: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """System, task ('' where the columns name it) and label of every line that is not the paper's."""
    for system in systems:
        label = config.systems[system].label or system
        for task in table.tasks if table.below else ('',):
            of_task = f', {config.tasks[task].label or task}' if table.below and len(table.tasks) > 1 else ''
            yield system, task, label + of_task


def _number(table: StudyTable, cell: StudyCell, column: TableColumn) -> Number | str:
    if cell.note:
        return NO_NUMBER if cell.note == 'not part of it' else cell.note
    measured = cell.by_sensors.get(column.sensors)
    return number(measured, column.metric, table) if measured else NO_NUMBER


def _published(
    config: Tables, system: str, task: str, columns: Sequence[TableColumn], quoted: set[tuple[str, ...]]
) -> list[TableLine]:
    """The lines of the paper for a system, the newest version first; none without numbers.

    A number whose sensor the paper does not state is one number: it stands in the first cell that it fits and
    is added to `quoted`, which the lines of a table share.
    """
    lines = []
    for version in VERSIONS:
        known = published(version, config.systems[system].published)
        numbers: list[Number | str] = []
        notes = []
        for column in columns:
            name = config.tasks[column.task or task].published if _has(config, task, column) else ''
            value, note = known.get((name, column.sensors, column.metric)), SOURCE
            unstated, once = known.get((name, None, column.metric)), (system, version, name, column.metric)
            if value is None and unstated is not None and once not in quoted:
                quoted.add(once)
                value, note = unstated, f'{SOURCE}, {UNSTATED}'
            numbers.append(NO_NUMBER if value is None else Number(value / 100, None, None, None, None, 0, 0))
            notes.append(note)
        if any(isinstance(x, Number) for x in numbers):
            label = f'... paper, {version}'
            lines.append(TableLine(label, version, system, task, tuple(numbers), tuple(notes)))
    return lines


def head(config: Tables, column: TableColumn, one_metric: bool) -> str:
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


def markdown(config: Tables, grid: FilledTable, signed: bool = False) -> str:
    """A table as GitHub shows it."""
    rows = _rows(config, grid, signed)
    rule = ['---'] * len(rows[0])
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in [rows[0], rule, *rows[1:]])


def latex(config: Tables, grid: FilledTable, signed: bool = False) -> str:
    """A tabular with the rules of booktabs; intervals are smaller than estimates."""
    rows = [[_escape(cell) for cell in cells] for cells in _rows(config, grid, signed)]
    for cells in rows[1:]:
        cells[1:] = [_small(cell) for cell in cells[1:]]
    body = [' & '.join(cells) + r' \\' for cells in rows]
    start = rf'\begin{{tabular}}{{l{"r" * (len(rows[0]) - 1)}}}'
    return '\n'.join([start, r'\toprule', body[0], r'\midrule', *body[1:], r'\bottomrule', r'\end{tabular}'])


def _rows(config: Tables, grid: FilledTable, signed: bool) -> list[list[str]]:
    one_metric = len({column.metric for column in grid.columns}) == 1
    rows = [['system', *(head(config, column, one_metric) for column in grid.columns)]]
    return rows + [[line.label, *(text(x, signed) for x in line.numbers)] for line in grid.lines]


def _small(cell: str) -> str:
    number, space, rest = cell.partition(' ')
    return rf'{number}{space}{{\scriptsize {rest}}}' if space and number[-1].isdigit() else cell


def _escape(cell: str) -> str:
    for sign in '&%_#':
        cell = cell.replace(sign, f'\\{sign}')
    return cell


CSV = ('table', 'kind', 'system', 'label', 'source', 'task', 'sensors', 'metric')


def to_csv(grids: Sequence[tuple[str, str, FilledTable]]) -> str:
    """A line for each number: (table, kind, grid); shares between 0 and 1, in full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow([*CSV, *Number._fields, 'note'])
    for table, kind, grid in grids:
        for line in grid.lines:
            notes = line.notes or ('',) * len(line.numbers)
            for column, value, note in zip(grid.columns, line.numbers, notes):
                about = [table, kind, line.system, line.label, line.source, column.task or line.task]
                about += ['+'.join(column.sensors), column.metric]
                empty = [''] * len(Number._fields)
                numbers = ['' if x is None else x for x in value] if isinstance(value, Number) else empty
                writer.writerow([*about, *numbers, value if isinstance(value, str) else note])
    return stream.getvalue()


def protocol(config: Tables, results: Mapping[tuple[str, str], StudyCell]) -> str:
    """A paragraph for each task that has numbers, and a line for each system in it."""
    parts = []
    for task, about in config.tasks.items():
        rows = {
            system: [next(iter(each.values())) for m in cell.by_sensors.values() for each in m.rows]
            for (name, system), cell in results.items()
            if name == task and cell.by_sensors
        }
        if rows:
            lines = [_task_words(about.label or task, next(iter(rows.values()))[0])]
            lines += [
                f'- {config.systems[name].label or name}: {_system_words(of_system)}'
                for name, of_system in rows.items()
            ]
            parts.append('\n'.join(lines))
    return '\n\n'.join(parts) or 'No task has numbers yet.'


def _task_words(label: str, row: ResultRow) -> str:
    without = f' ({", ".join(row.without_positives)} without positives)' if row.without_positives else ''
    drawn = 'all'
    if row.draw != ALL:
        drawn = f'{row.label_fraction:.0%}, {row.draw}, subsets {", ".join(map(str, row.draw_seeds))}'
    interval = (
        f'intervals over {row.clusters:,} clusters ({row.cluster}), {row.replicates:,} resamples'
        if row.low is not None
        else 'no intervals'
    )
    return (
        f'**{label}**: {row.dataset} {row.dataset_version} ({row.dataset_fingerprint}), split {row.split}, '
        f'{row.records:,} records, {len(row.classes)} classes{without}; {row.train_records:,} labelled '
        f'records ({drawn}) of {row.train_split}; {interval}; code {row.code_version}'
    )


def _system_words(rows: Sequence[ResultRow]) -> str:
    row = rows[0]
    if row.method == 'prior':
        return 'the shares of the classes among the labelled records'
    leaks = 'leaks unknown' if row.leaks is None else f'{row.leaks["any"]:,} test records seen in pretraining'
    chosen = {
        name: '/'.join(f'{x:g}' for x in sorted({x for r in rows for x in r.chosen.get(name, ())}))
        for name in row.chosen
    }
    words = [
        f'{row.method}, preset {row.preset}',
        f'feature {row.pooled}{" + batch norm" if row.batch_norm else ""}',
        '; '.join(f'{name} {"/".join(f"{x:g}" for x in tried)}' for name, tried in row.sweep.items()),
        f'image {row.image}',
        f'statistics {row.statistics}',
        f'absent sensor {row.absent}' if row.absent else '',
        f'accepted {", ".join(row.accepted)}' if row.accepted else '',
        '; '.join(f'{name} {x}' for name, x in chosen.items()) + f' (settled on {row.settled_on})'
        if chosen
        else '',
        leaks,
        f'weights {", ".join(dict.fromkeys(x for r in rows for x in r.checkpoints))}'
        if row.checkpoints
        else '',
    ]
    return '; '.join(filter(None, words))
