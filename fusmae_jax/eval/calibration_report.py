"""What calibration says of a head: a line for each cell, and a picture of confidence against accuracy.

Of a linear head, temperature and label sets are learned from the validation split and looked at on the test
split; both are of the records with a valid pixel. A record without one gets every label as its set. Of heads
of maps there is the temperature alone (`dense/calibration.py`).
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fusmae_jax import storage
from fusmae_jax.eval import calibration, cells
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.config import Intervals, LinearProbe
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.intervals import KEYS
from fusmae_jax.eval.metrics import Measure
from fusmae_jax.eval.task import LabelledSet

LINES, PICTURE = cells.CALIBRATION
COLUMNS = 3  # of panels in the picture
Run = tuple[int, int]  # label draw, seed of the head
Calibrated = LinearProbe | Finetune  # settings of what gives logits


class Logits(NamedTuple):
    """Of one head."""

    val: np.ndarray  # (validation records, classes)
    test: np.ndarray  # (test records, classes)


class Learned(NamedTuple):
    """What the validation split says of a head."""

    temperature: float
    threshold: float  # of the label sets, for the probabilities as they are


def line(
    config: Calibrated,
    task: LabelledSet,
    logits: Mapping[Run, Logits],
    valid: tuple[np.ndarray, np.ndarray],
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """How far the heads of a cell can be believed, before and after the temperature of each.

    Args:
        config: the run.
        task: its labels, with the clusters of validation and test.
        logits: of each run.
        valid: records of validation and of test that have a valid pixel.
        fields: of the cell's rows.
    """
    kind, settings = _kind(config), config.calibration
    learned = {run: _learn(config, task, some.val, valid[0]) for run, some in logits.items()}
    before, after, sets = {}, {}, {}
    labels, clusters = task.test.labels, task.test.clusters
    for run, some in logits.items():
        temperature, threshold = learned[run]
        before[run] = calibration.reliability(some.test, labels, kind, bins=settings.bins)
        after[run] = calibration.reliability(some.test, labels, kind, temperature, settings.bins)
        given = calibration.label_sets(calibration.probabilities(some.test, kind), threshold)
        sets[run] = calibration.coverage(calibration.abstaining(given, valid[1]), labels, clusters)
    measured = stages(before, after, clusters, config.intervals)
    measured['metrics'] |= intervals_of(sets, clusters, config.intervals)
    return {
        **{name: fields[name] for name in KEYS},
        'promised': 1 - settings.alpha,
        'temperatures': [run.temperature for run in learned.values()],
        # JSON has no infinity: None is a set of all labels, where there are too few clusters to promise less.
        'thresholds': [run.threshold if math.isfinite(run.threshold) else None for run in learned.values()],
        'abstained': int(np.sum(~valid[1])),
        **measured,
    }


def stages(
    before: Mapping[Run, Any], after: Mapping[Run, Any], clusters: np.ndarray | None, settings: Intervals
) -> dict[str, dict[str, Any]]:
    """Metrics and diagrams of a line, from the reliability of each run before and after its temperature."""
    measures = {'before': before, 'after': after}
    measured = {stage: intervals_of(runs, clusters, settings) for stage, runs in measures.items()}
    return {
        'metrics': {
            f'{name}_{stage}': intervals[name]
            for stage, intervals in measured.items()
            for name in ('ece', 'surprise')
        },
        'diagrams': {
            stage: _diagram(next(iter(runs.values())), measured[stage]) for stage, runs in measures.items()
        },
    }


def _diagram(measure: calibration.Binned, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bins of the first run, each with the share that was right: the mean over the runs, its interval."""
    return [
        some._asdict() | {'right': measured[f'right/{some.number}']} for some in calibration.filled(measure)
    ]


def _kind(config: Calibrated) -> calibration.Kind:
    return 'single_label' if config.data.kind == 'single_label' else 'multi_label'


def _learn(config: Calibrated, task: LabelledSet, logits: np.ndarray, valid: np.ndarray) -> Learned:
    kind, labels, clusters = _kind(config), task.val.labels[valid], task.val.clusters
    assert clusters is not None
    misfit = calibration.misfit(calibration.probabilities(logits[valid], kind), labels)
    return Learned(
        calibration.fit_temperature(logits[valid], labels, kind),
        calibration.set_threshold(misfit, clusters[valid], config.calibration.alpha),
    )


def intervals_of(
    measures: Mapping[Run, Measure], clusters: np.ndarray | None, settings: Intervals
) -> dict[str, Any]:
    """Metric -> its interval over the test split, of the mean over the runs; None for what is undefined."""
    whole = cells.summarise(measures, clusters, settings).intervals
    return {
        name: {key: None if value != value else value for key, value in interval._asdict().items()}
        for name, interval in whole.items()
    }


def write(evaluated: Sequence[Cell], workdir: epath.Path, command: str) -> None:
    """A JSON line for each cell that was calibrated; no file if none was, and no picture of other ones."""
    # `show` draws it anew when all is there.
    (workdir / PICTURE.format(command)).unlink(missing_ok=True)
    lines = _lines(evaluated)
    if not lines:
        (workdir / LINES.format(command)).unlink(missing_ok=True)
    else:
        text = ''.join(f'{json.dumps(values, allow_nan=False)}\n' for values in lines)
        storage.write_text(workdir / LINES.format(command), text)


def show(evaluated: Sequence[Cell], workdir: epath.Path, command: str) -> None:
    """Draws the picture, and prints the numbers and where they are; nothing if no cell was calibrated."""
    lines = _lines(evaluated)
    if not lines:
        return
    storage.write_bytes(workdir / PICTURE.format(command), figure(lines))
    print()
    for values in lines:
        print(_sentence(values))
    print(f'calibration  {workdir / LINES.format(command)}, {workdir / PICTURE.format(command)}')


def _lines(evaluated: Sequence[Cell]) -> list[dict[str, Any]]:
    return [cell.calibration for cell in evaluated if cell.calibration]


def _title(values: Mapping[str, Any]) -> str:
    norm = ' + BN' if values['batch_norm'] else ''
    share = f'{values["label_fraction"]:.0%} of the labels'
    return f'{values["system"]}, {"+".join(values["modalities"])}, {values["pooled"]}{norm}, {share}'


def _sentence(values: Mapping[str, Any]) -> str:
    metrics = values['metrics']
    text = {
        name: _number(metrics[name]) for name in metrics if name in ('ece_before', 'ece_after', 'coverage')
    }
    temperature = f'temperature {np.mean(values["temperatures"]):.2f}'
    learned = f'{_title(values)}: {temperature}, ECE {text["ece_before"]} to {text["ece_after"]}'
    if 'promised' not in values:
        return learned
    sets = f'label sets hold {text["coverage"]} (promised {values["promised"]:.0%})'
    if None in values['thresholds']:
        sets = 'label sets: too few clusters in validation to promise anything but all labels'
    size = f'{metrics["set_size"]["estimate"]:.1f} labels each'
    return f'{learned}, {sets}, {size}'


def _number(interval: Mapping[str, Any]) -> str:
    text = f'{interval["estimate"]:.3f}'
    return text if interval['low'] is None else f'{text} [{interval["low"]:.3f}, {interval["high"]:.3f}]'


def figure(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with a reliability diagram for each line: the share that was right against confidence, by bin."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    rows = -(-len(lines) // COLUMNS)
    columns = min(COLUMNS, len(lines))
    size = (4.2 * columns, 4.4 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout='constrained')
    for axis in axes.flat[len(lines) :]:
        axis.set_axis_off()
    for axis, values in zip(axes.flat, lines):
        axis.plot([0, 1], [0, 1], ':', color='0.5', lw=1)
        for name, bins in values['diagrams'].items():
            label = f'{name} temperature, ECE {values["metrics"][f"ece_{name}"]["estimate"]:.3f}'
            # A bin that other runs leave empty has no mean over the runs.
            points = [(some['confidence'], some['right']) for some in bins]
            points = [(x, right) for x, right in points if right['estimate'] is not None]
            y = [right['estimate'] for _, right in points]
            ends = [
                [
                    abs(at - (right[end] if right[end] is not None else at))
                    for at, (_, right) in zip(y, points)
                ]
                for end in ('low', 'high')
            ]
            axis.errorbar([x for x, _ in points], y, yerr=ends, fmt='o-', ms=4, lw=1, label=label)
        axis.set_title(_title(values), fontsize=8, wrap=True)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel='confidence', ylabel='share that was right', aspect='equal')
        axis.legend(fontsize=7, loc='upper left')
    out = io.BytesIO()
    fig.savefig(out, format='png', dpi=110)
    plt.close(fig)
    return out.getvalue()
