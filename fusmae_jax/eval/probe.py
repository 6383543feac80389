"""The commands `linear_probe` and `knn`: frozen features of a data set, and what can be read off them.

Features are extracted once; nothing here ever changes a weight of the encoder. What reads them off (linear
heads, or the labels of the nearest neighbours) is given training labels and, at most, a way to judge scores
of the validation split; of the test split it is given the features alone. Test labels are looked at in one
place only: where the scores of heads that are settled already are measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import InputError
from fusmae_jax.eval import calibration_report, cells, knn, linear_probe
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.config import Knn, LinearProbe, check, metric_of, recipe_of
from fusmae_jax.eval.features import Features, make_extractor
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.regression import restored, standardised, target_scale
from fusmae_jax.eval.task import LabelledSet, entrants, measure, open_task, validation

FEATURES = 'features'


class Variant(NamedTuple):
    """One pooled feature of the three splits, with or without a norm before the head."""

    pooled: str
    norm: bool
    train: Features
    val: Features | None  # None where nothing has to be settled
    test: Features


class ProbeOutcome(NamedTuple):
    """What one label subset led to."""

    scores: dict[int, np.ndarray]  # head seed -> (test records, classes)
    chosen: dict[str, float]
    heads: dict[str, np.ndarray]  # what is stored of it
    at_edge: bool = False  # the learning rate settled on is the lowest or highest of the sweep
    validation: Mapping[int, np.ndarray] = {}  # head seed -> (validation records, classes)
    # (targets,) test records that got the mean of the labelled ones, none of their neighbours having a value
    filled: np.ndarray | None = None


class ProbeArm(NamedTuple):
    """A system with one choice of sensors, feature and norm: a line of the table for each label fraction."""

    variant: Variant
    fields: dict[str, Any]  # of its rows
    stem: str  # of the names of its heads
    baseline: bool


def run_linear_probe(config: LinearProbe, workdir: epath.PathLike) -> int:
    """Trains linear heads on frozen features and writes a row for each metric; returns the exit code 0.

    Into the workdir: `rows-linear.jsonl`; `differences-linear.jsonl`, the paired differences from the
    baselines; `features/`, what the encoder gave; `heads/`, what was learned.

    Raises:
        InputError: settings, checkpoint and data do not fit together.
    """
    return _run(config, epath.Path(workdir), 'linear')


def run_knn(config: Knn, workdir: epath.PathLike) -> int:
    """Scores test records by their nearest neighbours; see `run_linear_probe`; there are no heads."""
    return _run(config, epath.Path(workdir), 'knn')


def _run(config: LinearProbe | Knn, workdir: epath.Path, name: str) -> int:
    check(config)
    task, drawn = open_task(config, isinstance(config, LinearProbe) and config.calibration.alpha > 0)
    evaluated = cells.evaluate(
        config,
        task,
        drawn,
        _arms(config, workdir, name),
        lambda arm, parts, about: _cell(config, task, arm, parts, about, workdir),
        lambda parts, about: cells.prior(config, task, parts, about),
        workdir,
        name,
        lambda done: calibration_report.write(done, workdir, name),
    )
    calibration_report.show(evaluated, workdir, name)
    return 0


def _arms(config: LinearProbe | Knn, workdir: epath.Path, name: str) -> Iterator[ProbeArm]:
    """Features are read or extracted here, once for all label fractions."""
    data, probing = config.data, isinstance(config, LinearProbe)
    norms = config.batch_norm if isinstance(config, LinearProbe) else (config.standardise,)
    method = {
        'method': name,
        'preset': recipe_of(config) if isinstance(config, LinearProbe) else config.preset,
        'head_seeds': config.head_seeds if isinstance(config, LinearProbe) else (),
        'sweep': _sweep(config),
        'settled_on': f'{data.val_split}, {metric_of(config)}' if probing else None,
    }
    for entrant in entrants(config):
        system, modalities = entrant.system, entrant.modalities
        extractor = make_extractor(system, data, modalities, config.features, config.encoder, config.image)
        for line in extractor.notes:
            logging.info('%s', line)
        train, test = (extractor(split, workdir / FEATURES) for split in (data.train_split, data.test_split))
        # Neighbours settle nothing, so their validation split is not even read.
        val = extractor(data.val_split, workdir / FEATURES) if probing else None
        for pooled in extractor.names:
            # Band statistics have units, so they are always scaled.
            for norm in norms if system.model else (True,):
                yield ProbeArm(
                    Variant(pooled, norm, train[pooled], val[pooled] if val else None, test[pooled]),
                    {**entrant.fields, **extractor.row_fields(), **method}
                    | {'pooled': pooled, 'batch_norm': norm},
                    f'{entrant.kind}-{"+".join(modalities)}-{pooled}{"-bn" if norm else ""}',
                    entrant.baseline,
                )


def _cell(
    config: LinearProbe | Knn,
    task: LabelledSet,
    arm: ProbeArm,
    positions: Mapping[int, np.ndarray],
    about: Mapping[str, Any],
    workdir: epath.Path,
) -> Cell:
    """All label subsets of one arm at one fraction."""
    # F1 needs a decision: a share of neighbours above one half, a logit above 0.
    labels, threshold = task.train.labels, 0.5
    if isinstance(config, LinearProbe):
        judge, threshold = validation(config, task), 0.0
        outcomes = {
            seed: probe(config, arm.variant, part, labels[part], judge, task.classes)
            for seed, part in positions.items()
        }
    else:
        outcomes = {
            seed: neighbours(config, arm.variant, part, labels[part], task.classes)
            for seed, part in positions.items()
        }
    measures = {
        (seed, head): measure(task, task.test, scores, config.data.kind, threshold)
        for seed, outcome in outcomes.items()
        for head, scores in outcome.scores.items()
    }
    if edges := sum(outcome.at_edge for outcome in outcomes.values()):
        logging.info(
            '%s, %s: %d of %d label subsets settled on the lowest or highest learning rate of the sweep',
            *(arm.fields['system'], arm.variant.pooled, edges, len(outcomes)),
        )
    files = {seed: f'{arm.stem}-{about["label_fraction"]:g}-{seed}.npz' for seed in outcomes}
    for seed, outcome in outcomes.items():
        store(outcome, workdir / cells.HEADS / files[seed])
    names = next(iter(outcomes.values())).chosen
    chosen = {name: tuple(outcome.chosen[name] for outcome in outcomes.values()) for name in names}
    fields = {**about, **arm.fields, 'chosen': chosen}
    if isinstance(config, Knn):
        fields |= _filled(config, task, outcomes)
    runs = cells.summarise(measures, task.test.clusters, config.intervals)
    calibrated = None
    if isinstance(config, LinearProbe) and config.calibration.alpha:
        calibrated = _calibrated(config, task, arm.variant, outcomes, fields)
    heads = tuple(files.values()) if isinstance(config, LinearProbe) else ()
    return Cell(fields, runs, arm.baseline, calibrated, heads)


def _calibrated(
    config: LinearProbe,
    task: LabelledSet,
    variant: Variant,
    outcomes: Mapping[int, ProbeOutcome],
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    logits = {
        (seed, head): calibration_report.Logits(outcome.validation[head], scores)
        for seed, outcome in outcomes.items()
        for head, scores in outcome.scores.items()
    }
    assert variant.val is not None
    return calibration_report.line(config, task, logits, (variant.val.valid, variant.test.valid), fields)


def _sweep(config: LinearProbe | Knn) -> dict[str, tuple[float, ...]]:
    if isinstance(config, Knn):
        return {'k': (float(config.k),), 'temperature': (config.temperature,)}
    decay = 'weight_decay' if config.decay == 'decoupled' else f'weight_decay ({config.decay})'
    fixed = {'epochs': (config.epochs,), 'batch_size': (float(config.batch_size),)}
    if config.data.kind == 'single_label':
        fixed['label_smoothing'] = (config.label_smoothing,)
    return {'learning_rate': config.learning_rates, decay: config.weight_decays} | fixed


def probe(
    config: LinearProbe,
    variant: Variant,
    positions: np.ndarray,
    labels: np.ndarray,
    judge: Callable[[np.ndarray], float],
    names: Sequence[str] = (),
) -> ProbeOutcome:
    """Trains a sweep of linear heads, settles it on the validation split, scores the test split.

    `names` are those of the columns of `labels`, for what is said of them.
    """
    assert variant.val is not None
    swept = linear_probe.points(config.learning_rates, config.weight_decays, config.head_seeds)
    train = _labelled(variant.train, positions)
    scale = fit_scale(train) if variant.norm else None
    recipe = linear_probe.make_recipe(config.data.kind, config.label_smoothing, config.decay)
    order = linear_probe.batch_order(len(positions), config.batch_size, config.epochs)
    # All points of the sweep are one program: they share the matrix product and the order of the batches.
    units = None
    if config.data.kind == 'regression':
        units = target_scale(labels, names)
        labels = standardised(labels, units)
    heads = linear_probe.train(scaled(train, scale), labels, order, swept, recipe)
    if units is not None:
        # Heads say numbers in the units of the data from here on, stored ones too.
        heads = linear_probe.in_units(heads, units)
    val, test = scaled(variant.val, scale), scaled(variant.test, scale)
    settled = linear_probe.settle(heads, swept, val, judge)
    points = list(settled.heads.values())
    stored = {'kernel': np.asarray(heads.kernel)[:, points], 'bias': np.asarray(heads.bias)[points]}
    stored['seed'] = np.array(list(settled.heads))
    stored |= {} if scale is None else scale._asdict()
    return ProbeOutcome(
        {seed: linear_probe.scores(heads, test, point) for seed, point in settled.heads.items()},
        {'learning_rate': settled.learning_rate, 'weight_decay': settled.weight_decay},
        stored,
        settled.at_edge,
        {seed: linear_probe.scores(heads, val, point) for seed, point in settled.heads.items()},
    )


def neighbours(
    config: Knn, variant: Variant, positions: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()
) -> ProbeOutcome:
    """Scores the test split by the labels of the nearest training records; nothing is settled.

    `names` are those of the columns of `labels`, for what is said of them.
    """
    train = _labelled(variant.train, positions)
    scale = fit_scale(train) if variant.norm else None
    bank, queries = scaled(train, scale), scaled(variant.test, scale)
    if config.data.kind != 'regression':
        return ProbeOutcome({0: knn.knn_scores(queries, bank, labels, config.k, config.temperature)}, {}, {})
    # About their mean: a float32 sum of large numbers would lose what varies.
    units = target_scale(labels, names)
    means = knn.knn_means(queries, bank, standardised(labels, units), config.k, config.temperature)
    nothing = np.isnan(means)
    # Left out they would make the question easier for this system than for all others.
    scores = restored(np.where(nothing, 0, means), units)
    return ProbeOutcome({0: scores}, {}, {}, filled=nothing.sum(axis=0))


def _filled(
    config: Knn, task: LabelledSet, outcomes: Mapping[int, ProbeOutcome]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each target how many test records got the mean of the labelled ones, a number a label subset."""
    each = [outcome.filled for outcome in outcomes.values() if outcome.filled is not None]
    if not np.any(each):
        return {}
    counts = {name: tuple(column.tolist()) for name, column in zip(task.classes, np.transpose(each))}
    for name, numbers in counts.items():
        if any(numbers):
            logging.warning(
                '%s: of %s test records %s have no neighbour with a value, and get the mean of the labelled '
                'ones; raise k=%d or take more labels',
                *(name, f'{len(task.test.keys):,}', '/'.join(map(str, numbers)), config.k),
            )
    return {'filled': {name: numbers for name, numbers in counts.items() if any(numbers)}}


def fit_scale(train: Features) -> Scale:
    """The statistics of labelled training features, over the records with a valid pixel alone.

    Raises:
        InputError: there is no such record.
    """
    if not train.valid.any():
        raise InputError(
            f'batch_norm or standardise: none of {len(train.valid)} labelled training records has a valid '
            'pixel, so there are no statistics to scale with; take more labels or give other sensors'
        )
    return linear_probe.batch_norm(train.values[train.valid])


def scaled(features: Features, scale: Scale | None) -> np.ndarray:
    """The values (records, width) as a head is given them; those of a record without a valid pixel are 0.

    A head gives such a record its bias, which is the most that can be said of it. Scaled like the others it
    would lie at -mean / std, further out than any.
    """
    if scale is None:
        return features.values
    return np.where(features.valid[:, None], scale(features.values), np.float32(0))


def _labelled(features: Features, positions: np.ndarray) -> Features:
    return Features(features.values[positions], features.valid[positions])


def store(outcome: ProbeOutcome, file: epath.Path) -> None:
    """Writes the heads of an outcome, if it has any; whole or not at all."""
    if not outcome.heads:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_npz(file, outcome.heads | {name: np.array(x) for name, x in outcome.chosen.items()})
