"""The command `finetune`: encoder and linear head trained together, settled on validation, tested once.

Three passes. Every point (system, modalities, feature, labelled records, seed, learning rate) is trained;
then the validation split settles the learning rates; only then are records of the test split read, and
scored by the points that were settled on.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.encoders.settings import PRIOR, RANDOM
from fusmae_jax.encoders.systems import fit, open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval import cells, views
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.evaluation_config import metric_of
from fusmae_jax.eval.finetune import rows
from fusmae_jax.eval.finetune.config import Finetune, as_probe, check
from fusmae_jax.eval.finetune.objective import network
from fusmae_jax.eval.finetune.point import Trained, forget, test_scores, train
from fusmae_jax.eval.finetune.rows import NAME
from fusmae_jax.eval.finetune.settle import settle, write
from fusmae_jax.eval.finetune.train import Point, Trainer, make_plan
from fusmae_jax.eval.measure import values
from fusmae_jax.eval.task import Labelled, measure, read_task, subsets
from fusmae_jax.input.source import Source

POINTS, CONFIG = 'points', f'settings-{NAME}.json'
HEADLINE = {'multi_label': ('ap_micro', 'ap_macro'), 'single_label': ('top1', 'top3', 'f1_weighted')}
Run = tuple[int, int]  # label draw, seed


class Arm(NamedTuple):
    """A system with one choice of modalities and feature: a line of the table for each label fraction."""

    trainer: Trainer
    fields: dict[str, Any]  # of its rows
    identity: dict[str, Any]  # of its points
    folder: epath.Path
    baseline: bool


class Job(NamedTuple):
    """A point and where it lives."""

    point: Point
    folder: epath.Path
    run: Run


class _Prepared(NamedTuple):
    """What a run is about: its records, its label subsets by fraction, and its arms."""

    task: Labelled
    drawn: dict[float, dict[int, np.ndarray]]
    arms: list[Arm]


def run_finetune(
    config: Finetune, workdir: epath.PathLike, *, points: epath.PathLike = '', rate: float = 0.0
) -> int:
    """Fine-tunes, and writes a row for each metric; returns the exit code 0. Run again, it goes on.

    Into the workdir: `rows-finetune.jsonl`; `differences-finetune.jsonl`, the paired differences from the
    baselines; `points/`, with the weights that were settled on and their scores of the test split.

    Args:
        config: the run.
        workdir: see above.
        points: where the points are instead.
        rate: one of the learning rates, where something else has settled the sweep.

    Raises:
        InputError: settings, checkpoint and data do not fit together, or the workdir holds another run.
        DivergedError: no learning rate of a sweep came to an end.
    """
    workdir = epath.Path(workdir)
    task, drawn, arms = _prepare(config, epath.Path(points) if points else workdir / POINTS)
    workdir.mkdir(parents=True, exist_ok=True)
    storage.write_json(workdir / CONFIG, to_dict(config))
    found: list[Cell] = []
    for fraction, positions in drawn.items():
        jobs, trained, means = _swept(config, task, arms, fraction, positions)
        rates = dict.fromkeys(means, rate)
        if not rate:
            rates = settle(config.learning_rates, means, config.settle == 'all')
        shared = cells.task_fields(config.data, task, config.intervals)
        shared |= cells.label_fields(fraction, config.labels.draw, positions)
        for arm, of, came in zip(arms, jobs, trained):
            found.append(_cell(config, task, arm, of, came, rates[arm.folder.name], shared))
            cells.write(found, workdir, NAME)
        if PRIOR in config.encoder.baselines:
            found.append(rows.prior(config, task, positions, shared))
            cells.write(found, workdir, NAME)
    print(cells.table(found, HEADLINE[config.data.kind]))
    print(f'rows         {workdir / cells.ROWS.format(NAME)}')
    print(f'differences  {workdir / cells.DIFFERENCES.format(NAME)}')
    return 0


def sweep(config: Finetune, workdir: epath.PathLike) -> None:
    """Trains every point, and writes what validation says of each learning rate; no test record is read.

    For runs of one label fraction whose rate is settled together with that of others
    (`settle.settled`); `run_finetune` then takes `workdir / 'points'` and the rate.
    """
    workdir = epath.Path(workdir)
    task, drawn, arms = _prepare(config, workdir / POINTS)
    ((fraction, positions),) = drawn.items()
    _, _, means = _swept(config, task, arms, fraction, positions)
    write(workdir, config.learning_rates, means)


def _prepare(config: Finetune, points: epath.Path) -> _Prepared:
    check(config)
    task = read_task(config.data, config.intervals.cluster if config.intervals.replicates else '')
    for split in (task.train, task.val, task.test):
        logging.info('%s: %s records', split.name, f'{len(split.keys):,}')
    drawn = {
        fraction: subsets(config.data, task, fraction, config.labels.draw, config.labels.seeds)
        for fraction in config.labels.fractions
    }
    return _Prepared(task, drawn, list(_arms(config, task, points)))


def _swept(
    config: Finetune,
    task: Labelled,
    arms: Sequence[Arm],
    fraction: float,
    positions: Mapping[int, np.ndarray],
) -> tuple[list[list[Job]], list[list[Trained]], dict[str, list[float]]]:
    """The points of each arm at one label fraction, what came of them, and their means at each rate."""
    jobs = [_jobs(config, task, arm, fraction, positions) for arm in arms]
    trained = [_train(config, task, arm, of) for arm, of in zip(arms, jobs)]
    means = {
        arm.folder.name: [
            float(np.mean([c.value for job, c in zip(of, came) if job.point.learning_rate == rate]))
            for rate in config.learning_rates
        ]
        for arm, of, came in zip(arms, jobs, trained)
    }
    return jobs, trained, means


def _arms(config: Finetune, task: Labelled, folder: epath.Path) -> Iterator[Arm]:
    encoder, contract = config.encoder, task.contract
    kinds = [encoder.checkpoint, *encoder.baselines]
    for kind in dict.fromkeys(kind for kind in kinds if kind != PRIOR):
        system = open_system(kind, encoder)
        if system.parts:
            raise InputError(f'encoder.checkpoint: {system.name} has several encoders; fine-tuning takes one')
        assert system.model is not None
        for modalities in encoder.modalities:
            view = views.view_contract(contract, config.image)
            fitted = fit(system.model, view, modalities, encoder, config.data.path)
            for line in fitted.notes:
                logging.info('%s', line)
            fields = rows.system_fields(config, system, fitted, view)
            for feature in config.features:
                net = network(system, fitted, contract, config, feature, len(task.classes))
                slug = 'random' if kind == RANDOM else 'checkpoint'
                yield Arm(
                    Trainer(config, net, system.model.params['encoder']),
                    fields | rows.method_fields(config, task, feature),
                    rows.identity(config, task, system, fitted, feature),
                    folder / f'{slug}-{"+".join(modalities)}-{feature}',
                    kind != encoder.checkpoint,
                )


def _jobs(
    config: Finetune, task: Labelled, arm: Arm, fraction: float, positions: Mapping[int, np.ndarray]
) -> list[Job]:
    """Every point of an arm at one label fraction."""
    jobs = []
    for draw, part in positions.items():
        labels = task.train.labels[part]
        plan = make_plan(config, len(part), arm.trainer.mesh.size)
        steps = [plan.batch, plan.ends[-1]]  # fewer records than a batch: it depends on the devices
        for seed in config.head_seeds:
            for rate in config.learning_rates:
                about = rows.point_identity(arm.identity, part, labels, rate, seed, steps)
                folder = arm.folder / f'{fraction:g}-draw{draw}-seed{seed}-lr{rate:g}'
                jobs.append(Job(Point(rate, seed, part, labels, about), folder, (draw, seed)))
    return jobs


def _train(config: Finetune, task: Labelled, arm: Arm, jobs: list[Job]) -> list[Trained]:
    """Trains what is not trained yet."""
    data, metric = config.data, metric_of(as_probe(config))
    train_split = Source(data.path, data.train_split, arm.trainer.fields)
    val_split = Source(data.path, data.val_split, arm.trainer.fields)

    def judge(scores: np.ndarray) -> float:
        return values(measure(task, task.val, scores, data.kind, 0.0))[metric]

    return [train(arm.trainer, train_split, val_split, job.point, judge, job.folder) for job in jobs]


def _cell(
    config: Finetune,
    task: Labelled,
    arm: Arm,
    jobs: list[Job],
    trained: list[Trained],
    rate: float,
    shared: Mapping[str, Any],
) -> Cell:
    """The settled points of an arm on the test split; the weights of all others are removed."""
    test = Source(config.data.path, config.data.test_split, arm.trainer.fields)
    own = {job.run: (job, came) for job, came in zip(jobs, trained) if job.point.learning_rate == rate}
    measures = {}
    for run, (job, came) in own.items():
        scores = test_scores(arm.trainer, test, came, job.folder)
        if scores is None:  # an earlier sweep settled on another rate and removed these weights
            forget(job.folder, weights_only=False)
            (again,) = _train(config, task, arm, [job])
            scores = test_scores(arm.trainer, test, again, job.folder)
        assert scores is not None
        measures[run] = measure(task, task.test, scores, config.data.kind, 0.0)
    for job in jobs:
        if job.point.learning_rate != rate:
            forget(job.folder, weights_only=True)
    chosen: dict[str, tuple[float, ...]] = {'learning_rate': (rate,)}
    if config.epoch == 'best':
        chosen['epoch'] = tuple(float(came.epoch) for _, came in own.values())
    about = {**shared, **arm.fields, 'chosen': chosen}
    return Cell(about, cells.summarise(measures, task.test.clusters, config.intervals), arm.baseline)
