"""Evaluated systems as result rows, as a printed table, and as paired differences."""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath

from fusmae_jax import __version__, storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.encoders.settings import BANDS, PRIOR
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.eval import intervals
from fusmae_jax.eval.config import Evaluation, Intervals, Task
from fusmae_jax.eval.intervals import Interval, Replicates
from fusmae_jax.eval.metrics import Measure, train_prior, values
from fusmae_jax.eval.regression import target_scale
from fusmae_jax.eval.row import ALL, PIXELWISE, ResultRow, metric_fields, number_fields
from fusmae_jax.eval.task import LabelledSet, leaks, measure

# What is printed of a run.
HEADLINE = {
    'multi_label': ('ap_micro', 'ap_macro'),
    'single_label': ('top1', 'top3', 'f1_weighted'),
    'segmentation': ('iou_macro', 'f1_macro', 'accuracy'),
    'regression': ('r2_macro',),
    'map_regression': ('r2_macro',),
}
PRINTED = 2  # targets whose own metrics are printed as well

# Of a command: 'linear', 'knn'.
ROWS, DIFFERENCES, SETTINGS = 'rows-{}.jsonl', 'differences-{}.jsonl', 'settings-{}.json'
CALIBRATION = ('calibration-{}.jsonl', 'calibration-{}.png')
HEADS, KEPT = 'heads', 'heads-{}.json'  # folder of several commands, and which of its files are of one
Arm = TypeVar('Arm')  # what a command evaluates: a system with one choice of sensors


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
    calibration: dict[str, Any] | None = None  # a line of `calibration_report`, where it was asked for
    heads: tuple[str, ...] = ()  # files in HEADS


def summarise(
    measures: Mapping[tuple[int, int], Measure],
    clusters: np.ndarray | None,
    settings: Intervals,
) -> Runs:
    """The runs of one system over label subsets and head seeds."""
    each = {key: values(scored) for key, scored in measures.items()}
    if clusters is None or not settings.replicates:
        names = next(iter(each.values()))
        means = {name: float(np.mean([run[name] for run in each.values()])) for name in names}
        none = (np.nan, np.nan, intervals.LEVEL, 0, 0, 0)
        return Runs(each, None, {name: Interval(value, *none) for name, value in means.items()})
    # Averaged in each resample: the interval is that of the mean, not the mean of the intervals.
    mean = intervals.average(
        [
            intervals.resample(scored, clusters, settings.replicates, settings.seed)
            for scored in measures.values()
        ]
    )
    return Runs(each, mean, intervals.intervals(mean))


def evaluate(
    config: Evaluation,
    task: LabelledSet,
    drawn: Mapping[float, Mapping[int, np.ndarray]],
    arms: Iterable[Arm],
    cell: Callable[[Arm, Mapping[int, np.ndarray], Mapping[str, Any]], Cell],
    floor: Callable[[Mapping[int, np.ndarray], Mapping[str, Any]], Cell],
    workdir: epath.Path,
    command: str,
    also: Callable[[Sequence[Cell]], None] = lambda cells: None,
) -> list[Cell]:
    """Every arm at every label fraction, then the floor: rows, differences, and what `also` writes of them.

    All of it is written again after every cell, so that what is there survives an interruption. Heads of an
    earlier run that this one has not written again are removed at the end.

    Args:
        config: the run, which is written with the rows.
        task: its labels.
        drawn: positions of the labelled records, by label fraction and seed of the draw.
        arms: systems with one choice of sensors each, opened one after the other.
        cell: from an arm, positions by seed, and the fields of a row that tell of data and labels.
        floor: from the latter two; where it is among the baselines.
        workdir: where everything is written.
        command: what the files are named after.
        also: takes the cells so far.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    shared = task_fields(config.data, task, config.intervals)
    about = {f: shared | label_fields(f, config.labels.draw, parts) for f, parts in drawn.items()}
    of_arms = (cell(arm, parts, about[f]) for arm in arms for f, parts in drawn.items())
    floors = drawn.items() if PRIOR in config.encoder.baselines else ()
    evaluated: list[Cell] = []
    before = _known_heads(workdir, command)
    for each in itertools.chain(of_arms, (floor(parts, about[f]) for f, parts in floors)):
        evaluated.append(each)
        write(evaluated, workdir, command, config)
        also(evaluated)
        _know_heads(before | {name for cell in evaluated for name in cell.heads}, workdir, command)
        print(table([each], headline(config.data.kind, [each])).split('\n')[1], flush=True)
    heads = {name for cell in evaluated for name in cell.heads}
    for name in before - heads:
        (workdir / HEADS / name).unlink(missing_ok=True)
    _know_heads(heads, workdir, command)
    print()
    show(evaluated, config.data.kind, workdir, command)
    return evaluated


def _known_heads(workdir: epath.Path, command: str) -> set[str]:
    """Files in HEADS that runs of this command have left."""
    file = workdir / KEPT.format(command)
    return set(storage.read_json(file, 'remove it')) if file.exists() else set()


def _know_heads(names: set[str], workdir: epath.Path, command: str) -> None:
    if names or (workdir / KEPT.format(command)).exists():
        storage.write_json(workdir / KEPT.format(command), sorted(names))


def prior(
    config: Evaluation, task: LabelledSet, positions: Mapping[int, np.ndarray], about: Mapping[str, Any]
) -> Cell:
    """The shares of the classes among the labelled records, or the mean of their targets, for every record.

    Args:
        config: the run.
        task: its labels.
        positions: of the labelled records, by the seed of their draw.
        about: the fields of a row that tell of the data and the labels.
    """
    measures = {}
    for seed, part in positions.items():
        labels, records = task.train.labels[part], len(task.test.keys)
        if config.data.kind == 'regression':
            scores = np.broadcast_to(target_scale(labels, task.classes).mean, (records, len(task.classes)))
        else:
            scores = train_prior(labels, records)
        measures[seed, 0] = measure(task, task.test, scores, config.data.kind, 0.5)
    return without_image(config, task, measures, about, 'train prior', 'prior')


def without_image(
    config: Evaluation,
    task: LabelledSet,
    measures: Mapping[tuple[int, int], Measure],
    about: Mapping[str, Any],
    system: str,
    method: str,
) -> Cell:
    """The cell of a system that looks at no image, from its measures on the test split."""
    fields = {
        'system': system,
        'leaks': leaks(config.data, open_system(BANDS, config.encoder).seen),
        'method': method,
        **dict.fromkeys(('preset', 'image', 'statistics'), 'none'),
        **dict.fromkeys(('checkpoints', 'modalities', 'accepted', 'head_seeds'), ()),
        **dict.fromkeys(('absent', 'pooled', 'batch_norm', 'settled_on')),
        **{'sweep': {}, 'chosen': {}},
    }
    runs = summarise(measures, task.test.clusters, config.intervals)
    return Cell({**about, **fields}, runs, True)


def task_fields(data: Task, task: LabelledSet, settings: Intervals) -> dict[str, Any]:
    """The fields of a row that all systems share, and the `units` of targets, of which each row has one."""
    labels = task.test.labels
    positives = np.isfinite(labels).sum(axis=0) if task.units else labels.sum(axis=0)
    return {
        **({'units': dict(zip(task.classes, task.units))} if task.units else {}),
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


def rows(cell: Cell) -> list[ResultRow]:
    """A row for each metric."""
    result = []
    for name, interval in cell.runs.intervals.items():
        runs: dict[tuple[int, ...], float] = {key: metrics[name] for key, metrics in cell.runs.each.items()}
        spread = intervals.spread(runs) if np.isfinite(list(runs.values())).all() else None
        metric = metric_fields(name)
        hot = metric['metric'] == 'f1' and metric['averaging'] in ('micro', 'macro')
        hot &= cell.about['method'] not in PIXELWISE
        about = cell.about | metric | {'threshold': 0.5 if hot else None}
        if units := about.pop('units', None):
            unit = units[metric['label']] if metric['metric'] in ('rmse', 'mae') else ''
            about |= {'unit': unit or None}
        about['filled'] = cell.about.get('filled', {}).get(metric['label'], ())
        result.append(ResultRow(**about, **(number_fields(interval, spread) | {'runs': len(runs)})))
    return result


def write(cells: Sequence[Cell], workdir: epath.Path, command: str, config: Any) -> None:
    """All rows and all differences from the baselines, a line each; each file whole or not at all.

    The settings come with them: a run that is refused, or stopped before, leaves those of earlier rows.
    """
    lines = [row.to_json() for cell in cells for row in rows(cell)]
    storage.write_json(workdir / SETTINGS.format(command), to_dict(config))
    _replace(workdir / ROWS.format(command), lines)
    _replace(workdir / DIFFERENCES.format(command), [json.dumps(row) for row in differences(cells)])
    intervals.write_replicates([(cell.about, cell.runs.mean) for cell in cells], workdir, command)


def show(cells: Sequence[Cell], kind: str, workdir: epath.Path, command: str) -> None:
    """Prints the table of a finished run and where its rows are."""
    print(table(cells, headline(kind, cells)))
    print(f'rows         {workdir / ROWS.format(command)}')
    print(f'differences  {workdir / DIFFERENCES.format(command)}')


def headline(kind: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The metrics that are printed; of few targets their own as well."""
    if kind not in ('regression', 'map_regression') or len(cells[0].about['classes']) > PRINTED:
        return HEADLINE[kind]
    return tuple(name for name in cells[0].runs.intervals if name != 'r2_macro')


def _replace(file: epath.Path, lines: Sequence[str]) -> None:
    storage.write_text(file, ''.join(f'{line}\n' for line in lines))


def differences(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """System minus baseline at the same labels and modalities, paired resample by resample.

    Where a baseline has the same pooled feature and scaling it is compared with that one.
    """
    lines = []
    for cell in cells:
        for other in cells if not cell.baseline else []:
            if other.baseline and cell.runs.mean and other.runs.mean and _comparable(cell, other):
                paired = intervals.intervals(intervals.difference(cell.runs.mean, other.runs.mean))
                metrics = {name: interval._asdict() for name, interval in paired.items()}
                for numbers in metrics.values():
                    # JSON has no NaN, which alone does not equal itself.
                    numbers |= {key: None for key, value in numbers.items() if value != value}
                same = ('label_fraction', 'modalities', 'pooled', 'batch_norm', 'method')
                lines.append(
                    {name: cell.about[name] for name in same}
                    | {'system': cell.about['system'], 'minus': other.about['system'], 'metrics': metrics}
                )
    return lines


def _comparable(cell: Cell, other: Cell) -> bool:
    about, baseline = cell.about, other.about
    if about['label_fraction'] != baseline['label_fraction']:
        return False
    if baseline['modalities'] and about['modalities'] != baseline['modalities']:
        return False
    # Band statistics and class shares have one cell, whatever was read off the encoder.
    alone = not baseline['checkpoints']
    return alone or all(about[name] == baseline[name] for name in ('pooled', 'batch_norm'))


def table(cells: Sequence[Cell], metrics: Sequence[str]) -> str:
    """The cells as text: estimate, interval, and the range over runs where there are several."""
    head = ['system', 'modalities', 'feature', 'labels', *metrics, 'chosen']
    lines = [head]
    for cell in cells:
        about = cell.about
        norm = ' + BN' if about['batch_norm'] else ''
        chosen = (
            f'{name} {"/".join(f"{value:g}" for value in dict.fromkeys(values))}'
            for name, values in about['chosen'].items()
        )
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
    interval = runs.intervals[name]
    # Errors are in the units of the data, all others are shares.
    errors = name.startswith(('rmse/', 'mae/'))

    def shown(value: float) -> str:
        return f'{value:.4g}' if errors else f'{100 * value:.2f}'

    text = shown(interval.estimate)
    # NaN, which equals nothing, where there are no intervals.
    if interval.low == interval.low:
        text += f' [{shown(interval.low)}, {shown(interval.high)}]'
    values = [metrics[name] for metrics in runs.each.values()]
    if len(values) == 1:
        return text
    return f'{text} ({shown(min(values))}..{shown(max(values))}, {len(values)} runs)'
