"""Numbers from finished stages: the seeds of a system together, and its paired differences from others."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusmae_jax.encoders.settings import PRIOR
from fusmae_jax.errors import InputError
from fusmae_jax.eval import cells, intervals, row
from fusmae_jax.eval.intervals import Replicates
from fusmae_jax.eval.row import ResultRow, require_same_protocol
from fusmae_jax.tables import recipes
from fusmae_jax.tables.config import OF_CLASSES, PER_CLASS, StudyTable, seeds_of
from fusmae_jax.tables.plan import StudyPlan
from fusmae_jax.tables.recipes import FILES
from fusmae_jax.tables.stages import Stage, state

Sensors = tuple[str, ...]
# How a system is read, in which it may differ from what it is compared with.
OWN = (
    *('method', 'preset', 'head_seeds', 'pooled', 'batch_norm', 'sweep', 'settled_on', 'modalities'),
    *('absent', 'image', 'statistics', 'accepted'),
)


class Number(NamedTuple):
    """One number of a table, as a share; None where undefined or without intervals."""

    estimate: float | None
    low: float | None
    high: float | None
    lowest: float | None  # of the single runs
    highest: float | None
    runs: int
    seeds: int  # pretrainings among these runs


class MeasuredSystem(NamedTuple):
    """A system that was given some sensors in a task: its pretraining seeds together."""

    rows: tuple[Mapping[str, ResultRow], ...]  # metric -> row, one of these a seed
    mean: Replicates | None  # over the seeds, resample by resample


class StudyCell(NamedTuple):
    """What there is of a system in a task."""

    note: str  # why there are no numbers; '' if there are
    by_sensors: Mapping[Sensors, MeasuredSystem]


def collect(plan: StudyPlan, failed: Mapping[str, str]) -> dict[tuple[str, str], StudyCell]:
    """(task, system) -> what there is of it; `failed` tells the errors of stages by their names."""
    results = {}
    for task in plan.config.tasks:
        for system in plan.config.systems:
            sensors = plan.sensors(task, system)
            stages = (
                [plan.cell(task, system, seed) for seed in seeds_of(plan.config, system)] if sensors else []
            )
            note = '' if sensors else 'not part of it'
            note = note or next(filter(None, (_note(stage, failed) for stage in stages)), '')
            command = FILES[recipes.command(plan.config, task, system)] if sensors else ''
            prior = plan.config.systems[system].baseline == PRIOR
            by_sensors = (
                {} if note else {names: _measured(stages, command, names, prior) for names in sensors}
            )
            results[task, system] = StudyCell(note, by_sensors)
    return results


def _note(stage: Stage, failed: Mapping[str, str]) -> str:
    """Why a stage, or one that it needs, has no result; '' if it has."""
    progress = state(stage)
    # First: a finished stage counts, whatever has become of what it needed.
    if progress == 'complete':
        return ''
    if progress == 'changed':
        return 'settings changed'
    # The reason nearest to the start is told: what comes after it follows from it.
    for needed in stage.needs:
        if note := _note(needed, failed):
            return note
    if stage.name in failed:
        return 'failed'
    return 'begun' if progress == 'begun' and not stage.blocked else 'not run'


def _measured(stages: Sequence[Stage], command: str, sensors: Sensors, prior: bool) -> MeasuredSystem:
    rows, means = [], []
    for stage in stages:
        file = stage.folder / cells.ROWS.format(command)
        if not file.exists():
            raise InputError(f'{file}: missing though the stage is complete; remove {stage.folder}')
        lines = file.read_text().splitlines()
        every = [row.from_json(line, f'{file}, line {i + 1}') for i, line in enumerate(lines)]
        rows.append({_metric(r): r for r in every if _wanted(r.method, r.modalities, sensors, prior)})
        if not rows[-1]:
            raise InputError(f'{file}: no rows of {"+".join(sensors)}; remove {stage.folder}')
        means += [
            stored.replicates
            for stored in intervals.read_replicates(stage.folder, command)
            if _wanted(stored.about['method'], stored.about['modalities'], sensors, prior)
        ]
    # Without the resamples of one seed there is no mean over the seeds.
    return MeasuredSystem(tuple(rows), intervals.average(means) if len(means) == len(stages) else None)


def _wanted(method: str, modalities: Sensors, sensors: Sensors, prior: bool) -> bool:
    return method == 'prior' if prior else method != 'prior' and set(modalities) == set(sensors)


def _metric(row: ResultRow) -> str:
    """The name that `metrics.py` gives it."""
    if row.label is not None:
        return f'{row.metric}/{row.label}'
    return row.metric if row.averaging == 'none' else f'{row.metric}_{row.averaging}'


def number(measured: MeasuredSystem, metric: str, table: StudyTable) -> Number:
    """A metric over all seeds.

    Raises:
        InputError: the rows do not have it.
    """
    names = names_of(metric, table)
    for name in names:
        if name not in measured.rows[0]:
            raise InputError(f'tables: metric {name!r} is not among those of the rows')
    picked = [[each[name] for name in names] for each in measured.rows]
    runs = sum(of_seed[0].runs for of_seed in picked)
    estimates = [r.estimate for of_seed in picked for r in of_seed]
    if any(x is None for x in estimates):
        return Number(None, None, None, None, None, runs, len(picked))
    estimate = float(np.mean([x for x in estimates if x is not None]))
    low, high = _interval(measured, names, picked)
    lowest, highest = _range(picked)
    return Number(estimate, low, high, lowest, highest, runs, len(picked))


def names_of(metric: str, table: StudyTable) -> list[str]:
    """The metrics of rows that a metric of a table is the mean of."""
    return [f'{PER_CLASS}{name}' for name in table.classes] if metric == OF_CLASSES else [metric]


def _interval(
    measured: MeasuredSystem, names: Sequence[str], picked: Sequence[Sequence[ResultRow]]
) -> tuple[float | None, float | None]:
    if measured.mean is not None:
        interval = intervals.intervals(mean_of(measured.mean, names))['']
        return _known(interval.low), _known(interval.high)
    if len(picked) == len(names) == 1:
        return picked[0][0].low, picked[0][0].high
    return None, None


def _range(picked: Sequence[Sequence[ResultRow]]) -> tuple[float | None, float | None]:
    """Over the runs of all seeds; a mean over classes has no range."""
    ends = [(r.lowest, r.highest) for of_seed in picked for r in of_seed]
    if len(picked[0]) > 1 or any(x is None for end in ends for x in end):
        return None, None
    return min(low for low, _ in ends if low is not None), max(high for _, high in ends if high is not None)


def mean_of(replicates: Replicates, names: Sequence[str]) -> Replicates:
    """The mean over some metrics, resample by resample, under the name ''."""
    estimate = float(np.mean([replicates.estimate[name] for name in names]))
    values = np.mean([replicates.values[name] for name in names], axis=0)
    return Replicates({'': estimate}, {'': values}, replicates.clusters, replicates.resamples)


def difference(
    first: MeasuredSystem, second: MeasuredSystem, metric: str, table: StudyTable
) -> Number | None:
    """First minus second, paired; None if either was evaluated without intervals.

    Raises:
        InputError: they were not evaluated on the same records, classes and labelled subsets.
    """
    if first.mean is None or second.mean is None:
        return None
    for name in names_of(metric, table):
        require_same_protocol([rows[name] for system in (first, second) for rows in system.rows], OWN)
    left, right = (mean_of(m.mean, names_of(metric, table)) for m in (first, second) if m.mean is not None)
    interval = intervals.intervals(intervals.difference(left, right))['']
    seeds = max(len(first.rows), len(second.rows))
    return Number(
        _known(interval.estimate), _known(interval.low), _known(interval.high), None, None, 0, seeds
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
