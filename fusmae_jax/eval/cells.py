"""Evaluated systems as result rows, as a printed table, and as paired differences."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fusmae_jax import __version__, storage
from fusmae_jax.eval import intervals, replicates
from fusmae_jax.eval.evaluation_config import Intervals, Task
from fusmae_jax.eval.intervals import Interval, Replicates
from fusmae_jax.eval.metrics import MultiLabel, SingleLabel, evaluate
from fusmae_jax.eval.row import ALL, Row, metric_fields, number_fields
from fusmae_jax.eval.task import Labelled

ROWS, DIFFERENCES = 'rows-{}.jsonl', 'differences-{}.jsonl'  # of a command: 'linear', 'knn'


class Runs(NamedTuple):
    """A metric of the same system for several label subsets and head seeds."""

    each: dict[tuple[int, int], dict[str, float]]  # (subset, head) -> metric -> value
    mean: Replicates | None  # over the runs, resample by resample; None without intervals
    intervals: dict[str, Interval]  # of that mean


class Cell(NamedTuple):
    """One line of a table."""

    about: dict[str, Any]  # fields of its rows
    runs: Runs
    baseline: bool


def summarise(
    measures: Mapping[tuple[int, int], MultiLabel | SingleLabel],
    clusters: np.ndarray | None,
    settings: Intervals,
) -> Runs:
    """The runs of one system over label subsets and head seeds."""
    each = {key: evaluate(one).values for key, one in measures.items()}
    if clusters is None or not settings.replicates:
        names = next(iter(each.values()))
        means = {name: float(np.mean([one[name] for one in each.values()])) for name in names}
        none = (np.nan, np.nan, intervals.LEVEL, 0, 0, 0)
        return Runs(each, None, {name: Interval(value, *none) for name, value in means.items()})
    mean = intervals.average(
        [intervals.resample(one, clusters, settings.replicates, settings.seed) for one in measures.values()]
    )
    return Runs(each, mean, intervals.intervals(mean))


def task_fields(data: Task, task: Labelled, settings: Intervals) -> dict[str, Any]:
    """The fields of a row that all systems share."""
    positives = task.test.labels.sum(axis=0)
    return {
        'code_version': __version__,
        'dataset': task.contract.dataset,
        'dataset_version': task.contract.version,
        'dataset_fingerprint': task.contract.fingerprint,
        'split': data.test_split,
        'records': len(task.test.keys),
        'classes': task.classes,
        'without_positives': tuple(name for name, n in zip(task.classes, positives) if not n),
        'train_split': data.train_split,
        'bootstrap_seed': settings.seed,
        'cluster': settings.cluster if settings.replicates and settings.cluster else 'none',
    }


def label_fields(fraction: float, draw: str, subsets: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """The fields of a row that tell what was learned from."""
    return {
        'label_fraction': fraction,
        'train_records': len(next(iter(subsets.values()))),
        'draw': draw if fraction < 1 else ALL,
        'draw_seeds': tuple(subsets) if fraction < 1 else (),
    }


def rows(cell: Cell) -> list[Row]:
    """A row for each metric."""
    result = []
    for name, interval in cell.runs.intervals.items():
        values: dict[tuple[int, ...], float] = {key: metrics[name] for key, metrics in cell.runs.each.items()}
        spread = intervals.spread(values) if np.isfinite(list(values.values())).all() else None
        metric = metric_fields(name)
        hot = metric['metric'] == 'f1' and metric['averaging'] in ('micro', 'macro')
        about = cell.about | metric | {'threshold': 0.5 if hot else None}
        result.append(Row(**about, **(number_fields(interval, spread) | {'runs': len(values)})))
    return result


def write(cells: Sequence[Cell], workdir: epath.Path, command: str) -> None:
    """All rows and all differences from the baselines, a line each; whole or not at all."""
    lines = [row.to_json() for cell in cells for row in rows(cell)]
    _replace(workdir / ROWS.format(command), lines)
    _replace(workdir / DIFFERENCES.format(command), [json.dumps(one) for one in differences(cells)])
    replicates.write([(cell.about, cell.runs.mean) for cell in cells], workdir, command)


def _replace(file: epath.Path, lines: Sequence[str]) -> None:
    storage.write_text(file, ''.join(f'{line}\n' for line in lines))


def differences(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """System minus baseline at the same labels and modalities, paired resample by resample.

    Where a baseline has the same pooled feature and scaling it is compared with that one.
    """
    found = []
    for cell in cells:
        for other in cells if not cell.baseline else []:
            if other.baseline and cell.runs.mean and other.runs.mean and _comparable(cell, other):
                paired = intervals.intervals(intervals.difference(cell.runs.mean, other.runs.mean))
                found.append(
                    {name: cell.about[name] for name in ('label_fraction', 'modalities', 'pooled')}
                    | {name: cell.about[name] for name in ('batch_norm', 'method')}
                    | {'system': cell.about['system'], 'minus': other.about['system']}
                    | {'metrics': {name: _finite(one) for name, one in paired.items()}}
                )
    return found


def _comparable(cell: Cell, other: Cell) -> bool:
    own, its = cell.about, other.about
    if own['label_fraction'] != its['label_fraction']:
        return False
    if its['modalities'] and own['modalities'] != its['modalities']:
        return False
    alone = not its['checkpoints']  # band statistics and class shares have one cell
    return alone or all(own[name] == its[name] for name in ('pooled', 'batch_norm'))


def _finite(interval: Interval) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in interval._asdict().items()}


def table(cells: Sequence[Cell], metrics: Sequence[str]) -> str:
    """The cells as text: estimate, interval, and the range over runs where there are several."""
    head = ['system', 'modalities', 'feature', 'labels', *metrics, 'chosen']
    lines = [head]
    for cell in cells:
        about = cell.about
        norm = ' + BN' if about['batch_norm'] else ''
        chosen = (f'{name} {_several(values)}' for name, values in about['chosen'].items())
        lines.append(
            [
                about['system'],
                '+'.join(about['modalities']) or '-',
                f'{about["pooled"]}{norm}' if about['pooled'] else '-',
                f'{about["label_fraction"]:.0%} ({about["train_records"]:,})',
                *(_number(cell.runs, name) for name in metrics),
                ', '.join(chosen) or '-',
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(x.ljust(w) for x, w in zip(line, widths)).rstrip() for line in lines)


def _number(runs: Runs, name: str) -> str:
    one = runs.intervals[name]
    text = f'{100 * one.estimate:.2f}'
    if one.low == one.low:
        text += f' [{100 * one.low:.2f}, {100 * one.high:.2f}]'
    values = [100 * metrics[name] for metrics in runs.each.values()]
    return f'{text} ({min(values):.2f}..{max(values):.2f}, {len(values)} runs)' if len(values) > 1 else text


def _several(values: Sequence[float]) -> str:
    return '/'.join(f'{value:g}' for value in dict.fromkeys(values))
