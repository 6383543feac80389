"""The command `reliance`: how much a model relies on each sensor, class by class (or target by target) and
block by block.

A linear head is trained on clean images of all sensors and then, unchanged, shown test images of which one
sensor is missing, comes from another scene, or lies under a synthetic cloud.
"""

import json
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import __version__, storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval import linear_probe
from fusmae_jax.eval.features import Extractor, Features
from fusmae_jax.eval.finetune.stored import own_head
from fusmae_jax.eval.intervals import Replicates, average, resample
from fusmae_jax.eval.metrics import Measure, multi_label
from fusmae_jax.eval.probe import ProbeOutcome, Variant, probe, scaled
from fusmae_jax.eval.reliance import report
from fusmae_jax.eval.reliance.attention import Shares
from fusmae_jax.eval.reliance.config import Reliance, as_probe, check, encoder
from fusmae_jax.eval.reliance.features import Disturbed
from fusmae_jax.eval.reliance.inputs import other_cluster
from fusmae_jax.eval.task import (
    LabelledSet,
    check_clusters,
    leaks,
    measure,
    read_task,
    subsets,
    validation,
)

SETTINGS, FEATURES = 'settings-reliance.json', 'features'


class CheckpointReliance(NamedTuple):
    """What was measured of one checkpoint."""

    name: str
    scores: dict[str, Replicates]  # condition -> average precisions, or R2 and errors; mean over the seeds
    attention: list[dict[str, Shares]]  # of each block; empty where it was not asked for


def run_reliance(config: Reliance, workdir: epath.PathLike) -> int:
    """Measures every checkpoint; returns the exit code 0.

    Into the workdir: `reliance.csv`, the average precision of each class under each condition, or R2 and RMSE
    of each number to predict; `attention.csv`, the shares of attention between sensors; `reliance.png`, both
    as a figure; `settings-reliance.json`, the protocol; `features/`, what the encoders gave for train and
    validation.

    Raises:
        InputError: settings, checkpoints and data do not fit together.
    """
    check(config)
    workdir = epath.Path(workdir)
    task = read_task(config.data, config.intervals.cluster)
    check_clusters(config, task.test)
    other = other_cluster(task.test.clusters, config.shuffle_seed)
    measured: list[CheckpointReliance] = []
    about: list[dict[str, Any]] = []
    for index in range(len(config.checkpoints)):
        checkpoint, fields = _checkpoint(config, index, task, other, workdir)
        if checkpoint.name in [done.name for done in measured]:
            raise InputError(f'names: two checkpoints are called {checkpoint.name!r}; set config.names')
        measured.append(checkpoint)
        about.append(fields)
    workdir.mkdir(parents=True, exist_ok=True)
    protocol = _protocol(config, task) | {'systems': about}
    storage.write_text(workdir / SETTINGS, json.dumps(protocol, indent=2) + '\n')
    scores = {checkpoint.name: checkpoint.scores for checkpoint in measured}
    attention = {checkpoint.name: checkpoint.attention for checkpoint in measured if checkpoint.attention}
    report.write(workdir, scores, attention, task, config.intervals)
    return 0


def _checkpoint(
    config: Reliance, index: int, task: LabelledSet, other: np.ndarray, workdir: epath.Path
) -> tuple[CheckpointReliance, dict[str, Any]]:
    settings = encoder(config, index)
    system = open_system(settings.checkpoint, settings)
    assert system.model is not None
    modalities = tuple(system.model.config.model.modalities)
    if len(modalities) < 2:
        raise InputError(f'{settings.checkpoint}: a model of {modalities[0]} alone; give one of two sensors')
    extractor = Extractor(system, config.data, modalities, (config.head.feature,), settings)
    assert extractor.fitted is not None
    disturbed = Disturbed(config, system, extractor.fitted)
    logging.info('%s: features of %d conditions', system.name, len(disturbed.conditions))
    outcome = _head(config, task, extractor, workdir, settings.checkpoint)
    features = disturbed.features(other)
    scores = {
        condition: _scores(config, task, outcome, features[condition]) for condition in disturbed.conditions
    }
    shares = disturbed.attention() if config.attention_records else []
    fitted = extractor.fitted.config
    return CheckpointReliance(system.name, scores, shares), {
        'system': system.name,
        'checkpoint': system.fingerprint,
        'absent': fitted.model.fusion.absent,
        'modalities': modalities,
        'image': fitted.model.image_size,
        'chosen': outcome.chosen,
        'leaks': leaks(config.data, system.seen),
        'accepted': extractor.fitted.shifts,
    }


def _head(
    config: Reliance, task: LabelledSet, extractor: Extractor, workdir: epath.Path, checkpoint: str
) -> ProbeOutcome:
    """Heads on clean images of all sensors, one a seed; the test split is not looked at."""
    if config.head.own:
        # Fine-tuned with it: nothing is learned here.
        return ProbeOutcome({}, {}, _own(config, task, checkpoint))
    settings, name = as_probe(config), config.head.feature
    train, val = (
        extractor(split, workdir / FEATURES)[name]
        for split in (config.data.train_split, config.data.val_split)
    )
    # What a head is tested on comes later, condition by condition.
    nothing = val._replace(values=val.values[:0], valid=val.valid[:0])
    variant = Variant(name, config.head.batch_norm, train, val, nothing)
    drawn = subsets(config.data, task, config.head.fraction, config.head.draw, (config.head.draw_seed,))
    (positions,) = drawn.values()
    labels = task.train.labels[positions]
    return probe(settings, variant, positions, labels, validation(settings, task), task.classes)


def _own(config: Reliance, task: LabelledSet, checkpoint: str) -> dict[str, np.ndarray]:
    return own_head(checkpoint, config.head.feature, config.data.labels, task.classes)


def _scores(config: Reliance, task: LabelledSet, outcome: ProbeOutcome, features: Features) -> Replicates:
    """The metrics of the heads on some features of the test split, resample by resample."""
    heads = linear_probe.Heads(*(jnp.asarray(outcome.heads[name]) for name in ('kernel', 'bias')))
    normed = 'mean' in outcome.heads
    scale = linear_probe.Scale(outcome.heads['mean'], outcome.heads['std']) if normed else None
    given = scaled(features, scale)
    runs = [
        resample(
            _measure(task, linear_probe.scores(heads, given, point), config.data.kind),
            task.test.clusters,
            config.intervals.replicates,
            config.intervals.seed,
        )
        for point in range(len(outcome.heads['seed']))
    ]
    return average(runs)


def _measure(task: LabelledSet, scores: np.ndarray, kind: str) -> Measure:
    """Scores that rank records class by class, or numbers to predict.

    A class is ranked by logits, or by probabilities where classes exclude each other.
    """
    if kind == 'regression':
        return measure(task, task.test, scores, kind, 0.0)
    # Across records a class is ranked by its share, which the other logits of the record belong to.
    if kind == 'single_label':
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = scores / scores.sum(axis=1, keepdims=True)
    return multi_label(scores, task.test.labels, task.classes, threshold=0.0, names=task.test.keys)


def _protocol(config: Reliance, task: LabelledSet) -> dict[str, Any]:
    """What the numbers stand on."""
    return {
        'code_version': __version__,
        'dataset': task.contract.dataset,
        'dataset_version': task.contract.version,
        'dataset_fingerprint': task.contract.fingerprint,
        'records': {split.name: len(split.keys) for split in (task.train, task.val, task.test)},
        'settings': to_dict(config),
    }
