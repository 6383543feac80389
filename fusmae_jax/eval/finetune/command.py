"""The command `finetune`: encoder and linear head trained together, settled on validation, tested once.

Three passes. Every point (system, modalities, feature, labelled records, seed, learning rate) is trained;
then the validation split settles the learning rates; only then are records of the test split read, and
scored by the points that were settled on.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.encoders.settings import PRIOR
from fusmae_jax.encoders.systems import fit
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.eval import calibration_report, cells, crops
from fusmae_jax.eval.calibration_report import Logits
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.finetune import rows
from fusmae_jax.eval.finetune.config import RECIPE, Finetune, Tuning, check
from fusmae_jax.eval.finetune.objective import network
from fusmae_jax.eval.finetune.point import (
    TEST_SCORES,
    VAL_SCORES,
    Judge,
    Trained,
    forget,
    has_weights,
    scores_of,
    train,
)
from fusmae_jax.eval.finetune.rows import NAME
from fusmae_jax.eval.finetune.stored import Keep, keep, keep_linear
from fusmae_jax.eval.finetune.train import Point, Trainer, make_plan
from fusmae_jax.eval.metrics import Measure
from fusmae_jax.eval.regression import target_scale
from fusmae_jax.eval.task import LabelledSet, entrants, measure, open_task, validation
from fusmae_jax.input.source import Source

POINTS, SWEEP = 'points', f'sweep-{NAME}.json'
Run = tuple[int, int]  # label draw, seed


class TaskKind(NamedTuple):
    """What is learned: the parts in which fine-tunings differ."""

    name: str  # of the method, and in the names of its files
    check: Callable[[Any], None]
    open: Callable[[Any], tuple[LabelledSet, dict[float, dict[int, np.ndarray]]]]
    # From the settings, the task and the folder of the points to the arms.
    arms: Callable[[Any, LabelledSet, epath.Path], Iterator['TuningArm']]
    source: Callable[[Any, Trainer, str], Any]  # the records of a split
    judge: Callable[[Any, LabelledSet], Judge]  # of scores of the validation split
    measure: Callable[[Any, LabelledSet, np.ndarray], Measure]  # of scores of the test split
    prior: Callable[..., Cell]


class SettledPoint(NamedTuple):
    """A point of the rate that was settled on."""

    step: int  # whose weights are tested
    folder: epath.Path


# From the points that were settled on, and the fields of their rows, to a line of `calibration_report`.
Calibrate = Callable[[Mapping[Run, SettledPoint], Mapping[str, Any]], dict[str, Any]]


class TuningArm(NamedTuple):
    """A system with one choice of modalities and feature: a line of the table for each label fraction."""

    trainer: Trainer
    fields: dict[str, Any]  # of its rows
    identity: dict[str, Any]  # of its points
    folder: epath.Path
    baseline: bool
    keeper: Keep  # of what is left of a settled point beside its weights
    calibrate: Calibrate | None = None  # where it is asked for


class PointJob(NamedTuple):
    """A point and where it lives."""

    point: Point
    folder: epath.Path
    run: Run


class Swept(NamedTuple):
    """An arm at one label fraction: its points and what came of them."""

    arm: TuningArm
    jobs: list[PointJob]
    trained: list[Trained]

    @property
    def name(self) -> str:
        """Of the arm."""
        return self.arm.folder.name

    def mean(self, rate: float) -> float:
        """The metric of the validation split, mean over the runs at a learning rate."""
        values = [t.value for job, t in zip(self.jobs, self.trained) if job.point.learning_rate == rate]
        return float(np.mean(values))


def run_finetune(
    config: Finetune, workdir: epath.PathLike, *, points: epath.PathLike = '', rate: float = 0.0
) -> int:
    """Fine-tunes for labels of whole images; see `run_tuning`."""
    return run_tuning(IMAGES, config, workdir, points=points, rate=rate)


def run_tuning(
    kind: TaskKind, config: Any, workdir: epath.PathLike, *, points: epath.PathLike = '', rate: float = 0.0
) -> int:
    """Fine-tunes, and writes a row for each metric; returns the exit code 0. Run again, it goes on.

    Into the workdir: `rows-finetune.jsonl`; `differences-finetune.jsonl`, the paired differences from the
    baselines; `points/`, with the weights that were settled on, their scores of the test split, and the
    encoder as one file (`stored.py`).

    Args:
        kind: what is learned.
        config: the run.
        workdir: see above.
        points: where the points are instead.
        rate: one of the learning rates, where something else has settled the sweep.

    Raises:
        InputError: settings, checkpoint and data do not fit together, or the workdir holds another run.
        DivergedError: no learning rate of a sweep came to an end.
    """
    workdir = epath.Path(workdir)
    kind.check(config)
    task, drawn = kind.open(config)
    arms = list(kind.arms(config, task, epath.Path(points) if points else workdir / POINTS))
    workdir.mkdir(parents=True, exist_ok=True)
    evaluated: list[Cell] = []
    for fraction, positions in drawn.items():
        swept = _sweep(kind, config, task, arms, fraction, positions)
        means = _means(config, swept)
        rates = dict.fromkeys(means, rate)
        if not rate:
            rates = settle(config.learning_rates, means, config.settle == 'all')
        shared = cells.task_fields(config.data, task, config.intervals)
        shared |= cells.label_fields(fraction, config.labels.draw, positions)
        for arm in swept:
            evaluated.append(_cell(kind, config, task, arm, rates[arm.name], shared))
            cells.write(evaluated, workdir, kind.name, config)
            calibration_report.write(evaluated, workdir, kind.name)
        if PRIOR in config.encoder.baselines:
            evaluated.append(kind.prior(config, task, positions, shared))
            cells.write(evaluated, workdir, kind.name, config)
    cells.show(evaluated, config.data.kind, workdir, kind.name)
    calibration_report.show(evaluated, workdir, kind.name)
    return 0


def sweep(config: Finetune, workdir: epath.PathLike) -> None:
    """Trains every point, and writes what validation says of each learning rate; no test record is read.

    For runs of one label fraction whose rate is settled together with that of others
    (`settled`); `run_finetune` then takes `workdir / 'points'` and the rate.
    """
    workdir = epath.Path(workdir)
    check(config)
    task, drawn = open_task(config)
    arms = list(_arms(config, task, workdir / POINTS))
    ((fraction, positions),) = drawn.items()
    swept = _sweep(IMAGES, config, task, arms, fraction, positions)
    write_sweep(workdir, config.learning_rates, _means(config, swept))


def _sweep(
    kind: TaskKind,
    config: Any,
    task: LabelledSet,
    arms: Sequence[TuningArm],
    fraction: float,
    positions: Mapping[int, np.ndarray],
) -> list[Swept]:
    """Trains every point of every arm at one label fraction."""
    jobs = [_jobs(config, task, arm, fraction, positions) for arm in arms]
    return [Swept(arm, points, _train(kind, config, task, arm, points)) for arm, points in zip(arms, jobs)]


def _means(config: Tuning, swept: Sequence[Swept]) -> dict[str, list[float]]:
    """Arm -> its mean at each learning rate."""
    return {arm.name: [arm.mean(rate) for rate in config.learning_rates] for arm in swept}


def _arms(config: Finetune, task: LabelledSet, folder: epath.Path) -> Iterator[TuningArm]:
    contract = task.contract
    for entrant in entrants(config):
        system, modalities = entrant.system, entrant.modalities
        if system.parts:
            raise InputError(f'encoder.checkpoint: {system.name} has several encoders; fine-tuning takes one')
        assert system.model is not None
        view = crops.view_contract(contract, config.image)
        fitted = fit(system.model, view, modalities, config.encoder, config.data.path)
        for line in fitted.notes:
            logging.info('%s', line)
        fields = entrant.fields | rows.system_fields(config, fitted, view)
        for feature in config.features:
            net = network(system, fitted, contract, config, feature, len(task.classes))
            trainer = Trainer(config, net, system.model.params['encoder'])
            yield TuningArm(
                trainer,
                fields | rows.method_fields(config, feature),
                rows.identity(config, task, system, fitted, RECIPE, feature=feature),
                folder / f'{entrant.kind}-{"+".join(modalities)}-{feature}',
                entrant.baseline,
                functools.partial(keep_linear, system, fitted, view, config.data, feature),
                functools.partial(_calibrated, config, task, trainer) if config.calibration.alpha else None,
            )


def _jobs(
    config: Any, task: LabelledSet, arm: TuningArm, fraction: float, positions: Mapping[int, np.ndarray]
) -> list[PointJob]:
    """Every point of an arm at one label fraction."""
    jobs, regression = [], config.data.kind == 'regression'
    for draw, part in positions.items():
        labels = task.train.labels[part]
        scale = target_scale(labels, task.classes) if regression else None
        plan = make_plan(config, len(part), arm.trainer.mesh.size)
        steps = [plan.batch, plan.ends[-1]]  # fewer records than a batch: it depends on the devices
        for seed in config.head_seeds:
            for rate in config.learning_rates:
                about = rows.point_identity(arm.identity, part, labels, rate, seed, steps)
                folder = arm.folder / f'{fraction:g}-draw{draw}-seed{seed}-lr{rate:g}'
                jobs.append(PointJob(Point(rate, seed, part, labels, about, scale), folder, (draw, seed)))
    return jobs


def _train(
    kind: TaskKind, config: Any, task: LabelledSet, arm: TuningArm, jobs: list[PointJob]
) -> list[Trained]:
    """Trains what is not trained yet."""
    judge = kind.judge(config, task)
    train_split = kind.source(config, arm.trainer, config.data.train_split)
    val_split = kind.source(config, arm.trainer, config.data.val_split)
    return [train(arm.trainer, train_split, val_split, job.point, judge, job.folder) for job in jobs]


def _cell(
    kind: TaskKind,
    config: Any,
    task: LabelledSet,
    swept: Swept,
    rate: float,
    shared: Mapping[str, Any],
) -> Cell:
    """The settled points of an arm on the test split; the weights of all others are removed."""
    arm = swept.arm
    test = kind.source(config, arm.trainer, config.data.test_split)
    settled = [(job, t) for job, t in zip(swept.jobs, swept.trained) if job.point.learning_rate == rate]
    measures, points = {}, {}
    for job, trained in settled:
        step = trained.step
        scores = scores_of(arm.trainer, test, step, job.folder, point=job.point)
        # An earlier sweep that settled on another rate has removed these weights.
        if scores is None or (arm.calibrate and not has_weights(job.folder, step)):
            forget(job.folder, weights_only=False)
            (again,) = _train(kind, config, task, arm, [job])
            step = again.step
            scores = scores_of(arm.trainer, test, step, job.folder, point=job.point)
        assert scores is not None
        keep(arm.trainer, arm.keeper, job.point, step, job.folder, arm.calibrate is not None)
        measures[job.run] = kind.measure(config, task, job.point.in_units(scores))
        points[job.run] = SettledPoint(step, job.folder)
    # Only now: a run that is killed before settles anew, and may need any of them.
    for job in swept.jobs:
        if job.point.learning_rate != rate:
            forget(job.folder, weights_only=True)
    chosen: dict[str, tuple[float, ...]] = {'learning_rate': (rate,)}
    if config.epoch == 'best':
        chosen['epoch'] = tuple(float(trained.epoch) for _, trained in settled)
    about = {**shared, **arm.fields, 'chosen': chosen}
    runs = cells.summarise(measures, task.test.clusters, config.intervals)
    return Cell(about, runs, arm.baseline, arm.calibrate and arm.calibrate(points, about))


def _calibrated(
    config: Finetune,
    task: LabelledSet,
    trainer: Trainer,
    points: Mapping[Run, SettledPoint],
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Learns from the scores of the validation split, and measures on those of the test split."""
    splits = {VAL_SCORES: config.data.val_split, TEST_SCORES: config.data.test_split}
    sources = {name: _source(config, trainer, split) for name, split in splits.items()}

    def scores_on(some: SettledPoint, name: str) -> np.ndarray:
        scores = scores_of(trainer, sources[name], some.step, some.folder, name)
        assert scores is not None
        return scores

    logits = {run: Logits(*(scores_on(some, name) for name in sources)) for run, some in points.items()}
    val, test = (trainer.measured(source) for source in sources.values())
    return calibration_report.line(config, task, logits, (val, test), fields)


def _source(config: Finetune, trainer: Trainer, split: str) -> Source:
    return Source(config.data.path, split, trainer.fields)


def _measure(config: Finetune, task: LabelledSet, scores: np.ndarray) -> Measure:
    return measure(task, task.test, scores, config.data.kind, 0.0)


def _open(config: Finetune) -> tuple[LabelledSet, dict[float, dict[int, np.ndarray]]]:
    return open_task(config, config.calibration.alpha > 0)


IMAGES = TaskKind(NAME, check, _open, _arms, _source, validation, _measure, cells.prior)


def settle(rates: Sequence[float], means: Mapping[str, Sequence[float]], together: bool) -> dict[str, float]:
    """The learning rate of each arm: the best of its own means, or of the means over all arms.

    A rate at which a run diverged (-inf) is out; of equal rates the first is taken.

    Args:
        rates: the sweep.
        means: arm -> validation metric at each rate, mean over its runs.
        together: one rate for all arms.

    Raises:
        DivergedError: every rate is out.
    """
    if together:
        shared = [float(x) for x in np.mean(list(means.values()), axis=0)]
        means = dict.fromkeys(means, shared)
    for arm, values in means.items():
        if max(values) == -np.inf:
            raise DivergedError(
                f'{arm}: updates were not finite at every learning rate of {tuple(rates)}; try lower ones'
            )
        if len(rates) > 1 and int(np.argmax(values)) in (0, len(rates) - 1):
            logging.info('%s: settled on the first or last learning rate of the sweep', arm)
    return {arm: rates[int(np.argmax(values))] for arm, values in means.items()}


def write_sweep(folder: epath.Path, rates: Sequence[float], means: Mapping[str, Sequence[float]]) -> None:
    """The means of a sweep, for `settled`: whole or not at all."""
    arms = {arm: [None if x == -np.inf else float(x) for x in values] for arm, values in means.items()}
    storage.write_json(folder / SWEEP, {'learning_rates': list(rates), 'means': arms})


def settled(folders: Sequence[epath.Path]) -> float:
    """One learning rate for the systems of several folders, every arm of each counting the same.

    Raises:
        InputError: a sweep that is missing, damaged or of other rates.
        DivergedError: at every rate some run diverged.
    """
    sweeps = {folder: _read_sweep(folder / SWEEP) for folder in folders}
    rates = [tuple(sweep['learning_rates']) for sweep in sweeps.values()]
    if len(set(rates)) > 1:
        raise InputError(f'{folders[0]}: sweeps of different learning rates {sorted(set(rates))}')
    means = {
        f'{folder}, {arm}': [-np.inf if x is None else x for x in values]
        for folder, sweep in sweeps.items()
        for arm, values in sweep['means'].items()
    }
    return next(iter(settle(rates[0], means, together=True).values()))


def _read_sweep(file: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
        return {name: values[name] for name in ('learning_rates', 'means')}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f'{file}: not a sweep that can be read ({error!r}); remove {file.parent}') from error
