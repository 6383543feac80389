"""The commands `linear_probe` and `knn`: frozen features of a data set, and what can be read off them.

Features are extracted once; nothing here ever changes a weight of the encoder. Test labels are looked at in
one place only: where the scores of heads that are settled already are measured.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.eval import cells, readout
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.evaluation_config import Knn, LinearProbe, check, metric_of, recipe_of
from fusmae_jax.eval.features import Extractor
from fusmae_jax.eval.late_fusion import Extractors, make_extractor
from fusmae_jax.eval.measure import values
from fusmae_jax.eval.metrics import train_prior
from fusmae_jax.eval.readout import Method, Outcome, Variant
from fusmae_jax.eval.task import Labelled, leaks, measure, read_task, subsets

FEATURES, HEADS, CONFIG = 'features', 'heads', 'settings-{}.json'
HEADLINE = {'multi_label': ('ap_micro', 'ap_macro'), 'single_label': ('top1', 'top3', 'f1_weighted')}


def run_linear_probe(config: LinearProbe, workdir: epath.PathLike) -> int:
    """Trains linear heads on frozen features and writes a row for each metric; returns the exit code 0.

    Into the workdir: `rows-linear.jsonl`; `differences-linear.jsonl`, the paired differences from the
    baselines; `features/`, what the encoder gave; `heads/`, what was learned.

    Raises:
        InputError: settings, checkpoint and data do not fit together.
    """
    check(config)
    return _run(config, epath.Path(workdir), functools.partial(readout.probe, config))


def run_knn(config: Knn, workdir: epath.PathLike) -> int:
    """Scores test records by their nearest neighbours; see `run_linear_probe`; there are no heads."""
    check(config)
    return _run(config, epath.Path(workdir), functools.partial(readout.neighbours, config))


def _run(config: LinearProbe | Knn, workdir: epath.Path, method: Method) -> int:
    cluster = config.intervals.cluster if config.intervals.replicates else ''
    task = read_task(config.data, cluster)
    for split in (task.train, task.val, task.test):
        logging.info('%s: %s records', split.name, f'{len(split.keys):,}')
    workdir.mkdir(parents=True, exist_ok=True)
    name = _name(config)
    storage.write_json(workdir / CONFIG.format(name), to_dict(config))
    found: list[Cell] = []
    for cell in _cells(config, workdir, task, method):
        found.append(cell)
        cells.write(found, workdir, name)  # what is there survives an interruption
        print(cells.table([cell], HEADLINE[config.data.kind]).split('\n')[1], flush=True)
    print()
    print(cells.table(found, HEADLINE[config.data.kind]))
    print(f'rows         {workdir / cells.ROWS.format(name)}')
    print(f'differences  {workdir / cells.DIFFERENCES.format(name)}')
    return 0


def _name(config: LinearProbe | Knn) -> str:
    return 'linear' if isinstance(config, LinearProbe) else 'knn'


def _cells(config: LinearProbe | Knn, workdir: epath.Path, task: Labelled, method: Method) -> Iterator[Cell]:
    """Every system, modality subset, pooled feature, norm and label fraction, one after the other."""
    shared = cells.task_fields(config.data, task, config.intervals)
    drawn = {
        fraction: subsets(config.data, task, fraction, config.labels.draw, config.labels.seeds)
        for fraction in config.labels.fractions
    }
    norms = config.batch_norm if isinstance(config, LinearProbe) else (config.standardise,)
    kinds = [config.encoder.checkpoint, *config.encoder.baselines]
    for kind in dict.fromkeys(k for k in kinds if k != PRIOR):
        baseline = kind != config.encoder.checkpoint
        system = open_system(kind, config.encoder)
        about = shared | {
            'system': system.name,
            'checkpoints': (system.fingerprint,) if system.fingerprint else (),
            'leaks': leaks(config.data, system.seen),
            'method': _name(config),
            'preset': _preset(config),
        }
        for modalities in config.encoder.modalities:
            extractor = make_extractor(
                system, config.data, modalities, config.features, config.encoder, config.image
            )
            for line in extractor.notes:
                logging.info('%s', line)
            seen = about | extractor.row_fields()
            # Band statistics have units, so they are always scaled.
            for variant in _variants(config, extractor, workdir, norms if system.model else (True,)):
                for fraction, positions in drawn.items():
                    labelled = cells.label_fields(fraction, config.labels.draw, positions)
                    where = workdir / HEADS / f'{_slug(kind, config)}-{"+".join(modalities)}'
                    yield _cell(config, task, method, variant, positions, seen | labelled, baseline, where)
    if PRIOR in config.encoder.baselines:
        for fraction, positions in drawn.items():
            labelled = cells.label_fields(fraction, config.labels.draw, positions)
            yield _prior(config, task, positions, shared | labelled)


def _preset(config: LinearProbe | Knn) -> str:
    return recipe_of(config) if isinstance(config, LinearProbe) else config.preset


def _slug(kind: str, config: LinearProbe | Knn) -> str:
    return kind if kind in (RANDOM, BANDS) else 'checkpoint'


def _variants(
    config: LinearProbe | Knn, extractor: Extractor | Extractors, workdir: epath.Path, norms: Sequence[bool]
) -> Iterator[Variant]:
    data = config.data
    splits = {split: extractor(split, workdir / FEATURES) for split in (data.train_split, data.test_split)}
    needs_val = isinstance(config, LinearProbe)
    val = extractor(data.val_split, workdir / FEATURES) if needs_val else None
    for pooled in extractor.names:
        for norm in norms:
            train, test = splits[data.train_split][pooled], splits[data.test_split][pooled]
            yield Variant(pooled, norm, train, val[pooled] if val else None, test)


def _cell(
    config: LinearProbe | Knn,
    task: Labelled,
    method: Method,
    variant: Variant,
    positions: Mapping[int, np.ndarray],
    about: dict[str, Any],
    baseline: bool,
    where: epath.Path,
) -> Cell:
    """All label subsets of one variant at one fraction."""
    val = functools.partial(_value, config, task) if isinstance(config, LinearProbe) else None
    outcomes = {seed: method(variant, part, task.train.labels[part], val) for seed, part in positions.items()}
    probing = isinstance(config, LinearProbe)
    threshold = 0.0 if probing else 0.5
    measures = {
        (seed, head): measure(task, task.test, scores, config.data.kind, threshold)
        for seed, outcome in outcomes.items()
        for head, scores in outcome.scores.items()
    }
    if edges := sum(outcome.at_edge for outcome in outcomes.values()):
        logging.info(
            '%s, %s: %d of %d label subsets settled on the lowest or highest learning rate of the sweep',
            *(about['system'], variant.pooled, edges, len(outcomes)),
        )
    name = f'{variant.pooled}{"-bn" if variant.norm else ""}-{about["label_fraction"]:g}'
    for seed, outcome in outcomes.items():
        readout.store(outcome, where.parent / f'{where.name}-{name}-{seed}.npz')
    about = about | {
        'pooled': variant.pooled,
        'batch_norm': variant.norm,
        'head_seeds': config.head_seeds if isinstance(config, LinearProbe) else (),
        'sweep': _sweep(config),
        'chosen': {n: tuple(o.chosen[n] for o in outcomes.values()) for n in _first(outcomes).chosen},
        'settled_on': f'{task.val.name}, {metric_of(config)}' if isinstance(config, LinearProbe) else None,
    }
    return Cell(about, cells.summarise(measures, task.test.clusters, config.intervals), baseline)


def _value(config: LinearProbe, task: Labelled, logits: np.ndarray) -> float:
    """The metric of the validation split that settles a sweep."""
    return values(measure(task, task.val, logits, config.data.kind, 0.0))[metric_of(config)]


def _first(outcomes: Mapping[int, Outcome]) -> Outcome:
    return next(iter(outcomes.values()))


def _sweep(config: LinearProbe | Knn) -> dict[str, tuple[float, ...]]:
    if isinstance(config, Knn):
        return {'k': (float(config.k),), 'temperature': (config.temperature,)}
    decay = 'weight_decay' if config.decay == 'decoupled' else f'weight_decay ({config.decay})'
    fixed = {'epochs': (config.epochs,), 'batch_size': (float(config.batch_size),)}
    if config.data.kind == 'single_label':
        fixed['label_smoothing'] = (config.label_smoothing,)
    return {'learning_rate': config.learning_rates, decay: config.weight_decays} | fixed


def _prior(
    config: LinearProbe | Knn, task: Labelled, positions: Mapping[int, np.ndarray], about: dict[str, Any]
) -> Cell:
    """The shares of the classes among the labelled records, the same scores for every record."""
    measures = {
        (seed, 0): measure(
            task, task.test, train_prior(task.train.labels[part], len(task.test.keys)), config.data.kind, 0.5
        )
        for seed, part in positions.items()
    }
    about = about | {
        'system': 'train prior',
        'checkpoints': (),
        'leaks': leaks(config.data, open_system(BANDS, config.encoder).seen),
        'method': 'prior',
        'preset': 'none',
        'modalities': (),
        'absent': None,
        'image': 'none',
        'statistics': 'none',
        'accepted': (),
        'pooled': None,
        'batch_norm': None,
        'head_seeds': (),
        'sweep': {},
        'chosen': {},
        'settled_on': None,
    }
    return Cell(about, cells.summarise(measures, task.test.clusters, config.intervals), True)
