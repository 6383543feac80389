"""The command `attentive_probe`: what can be read off frozen tokens, not only off their mean.

The protocol is that of `linear_probe`: label fractions, sensors, a sweep settled on the validation split, the
test split read once with what was settled, cluster intervals and paired differences. Tokens are not stored:
each step encodes its batch once, and all heads of the sweep learn from it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.eval import cells
from fusmae_jax.eval.attentive.config import AttentiveProbe, check
from fusmae_jax.eval.attentive.prober import make_prober, token_reader
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.config import metric_of
from fusmae_jax.eval.dense.rows import system_fields
from fusmae_jax.eval.metrics import Measure
from fusmae_jax.eval.prober import Prober
from fusmae_jax.eval.task import LabelledSet, entrants, measure, open_task

NAME = 'attentive'


class Arm(NamedTuple):
    """A system with one choice of sensors."""

    prober: Prober
    fields: dict[str, Any]  # of its rows
    stem: str  # of the names of its heads
    baseline: bool


def run_attentive_probe(config: AttentiveProbe, workdir: epath.PathLike) -> int:
    """Trains heads on frozen tokens and writes a row for each metric; returns the exit code 0.

    Into the workdir: `rows-attentive.jsonl`; `differences-attentive.jsonl`, the paired differences from the
    baselines; `heads/`, what was learned.

    Raises:
        InputError: settings, checkpoint and data do not fit together.
        DivergedError: every head of a sweep diverged.
    """
    workdir = epath.Path(workdir)
    check(config)
    task, drawn = open_task(config)
    cells.evaluate(
        config,
        task,
        drawn,
        _arms(config, task),
        lambda arm, parts, about: _cell(config, task, arm, parts, about, workdir),
        lambda parts, about: cells.prior(config, task, parts, about),
        workdir,
        NAME,
    )
    return 0


def _arms(config: AttentiveProbe, task: LabelledSet) -> Iterator[Arm]:
    method = {
        'method': NAME,
        'preset': config.preset,
        'pooled': f'attention of {config.queries} quer{"y" if config.queries == 1 else "ies"}',
        'batch_norm': config.standardise,
        'head_seeds': config.head_seeds,
        'sweep': _sweep(config),
        'settled_on': f'{config.data.val_split}, {metric_of(config)}',
    }
    for entrant in entrants(config):
        reader = token_reader(entrant.system, task.contract, entrant.modalities, config)
        assert reader.fitted is not None
        for line in reader.fitted.notes:
            logging.info('%s', line)
        yield Arm(
            make_prober(config, task, reader),
            entrant.fields | system_fields(reader.fitted, entrant.modalities, task.contract) | method,
            f'{entrant.kind}-{"+".join(entrant.modalities)}-attentive',
            entrant.baseline,
        )


def _cell(
    config: AttentiveProbe,
    task: LabelledSet,
    arm: Arm,
    parts: Mapping[int, np.ndarray],
    about: Mapping[str, Any],
    workdir: epath.Path,
) -> Cell:
    """All label subsets of one arm at one fraction."""
    measures: dict[tuple[int, int], Measure] = {}
    files: list[str] = []

    def keep(seed: int, scores: dict[int, np.ndarray], stored: dict[str, np.ndarray]) -> None:
        for head, logits in scores.items():
            measures[seed, head] = measure(task, task.test, logits, config.data.kind, 0.0)
        files.append(f'{arm.stem}-{about["label_fraction"]:g}-{seed}.npz')
        file = workdir / cells.HEADS / files[-1]
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_npz(file, stored)

    chosen = arm.prober.of_subsets(parts, arm.stem, keep)
    runs = cells.summarise(measures, task.test.clusters, config.intervals)
    return Cell({**about, **arm.fields, 'chosen': chosen}, runs, arm.baseline, heads=tuple(files))


def _sweep(config: AttentiveProbe) -> dict[str, tuple[float, ...]]:
    fixed = {'epochs': (config.epochs,), 'batch_size': (float(config.batch_size),)}
    fixed['queries'] = (float(config.queries),)
    if config.data.kind == 'single_label':
        fixed['label_smoothing'] = (config.label_smoothing,)
    return {'learning_rate': config.learning_rates, 'weight_decay': config.weight_decays} | fixed
