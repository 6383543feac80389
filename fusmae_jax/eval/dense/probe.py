"""The command `dense_probe`: heads on the frozen tokens of an encoder, a class for each pixel.

Tokens of a whole data set have no room, so they are not stored: each step encodes its batch once, and all
heads of the sweep (learning rates x weight decays x seeds) learn from it side by side. The encoder is never
changed. The validation split settles the sweep; the test split is read once, with what was settled.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fusmae_jax.eval import calibration_report, cells
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.dense import calibration
from fusmae_jax.eval.dense.calibration import Calibrated, Run
from fusmae_jax.eval.dense.config import DenseProbe, check
from fusmae_jax.eval.dense.features import chosen, open_reader
from fusmae_jax.eval.dense.prober import Prober
from fusmae_jax.eval.dense.rows import check_square, method_fields, system_fields
from fusmae_jax.eval.dense.stored import TEMPERATURE, bands_of, describe, write_head
from fusmae_jax.eval.dense.task import map_of, measured, open_maps, prior
from fusmae_jax.eval.metrics import Measure
from fusmae_jax.eval.task import LabelledSet, entrants

NAME = 'dense_probe'


class Arm(NamedTuple):
    """A system with one choice of sensors."""

    prober: Prober
    fields: dict[str, Any]  # of its rows
    stem: str  # of the names of its heads
    about: dict[str, Any]  # of its heads, where they can be used on other images
    baseline: bool


def run_dense_probe(config: DenseProbe, workdir: epath.PathLike) -> int:
    """Trains heads on frozen tokens and writes a row for each metric; returns the exit code 0.

    Into the workdir: `rows-dense_probe.jsonl`; `differences-dense_probe.jsonl`, the paired differences from
    the baselines; `heads/`, what was learned; if asked for, `calibration-dense_probe.jsonl` and its picture.

    Raises:
        InputError: settings, checkpoint and data do not fit together.
        DivergedError: every head of a sweep diverged.
    """
    workdir = epath.Path(workdir)
    check(config)
    task, drawn = open_maps(config)
    evaluated = cells.evaluate(
        config,
        task,
        drawn,
        _arms(config, task),
        lambda arm, parts, about: _cell(config, task, arm, parts, about, workdir),
        lambda parts, about: prior(config, task, parts, about),
        workdir,
        NAME,
        lambda done: calibration_report.write(done, workdir, NAME),
    )
    calibration_report.show(evaluated, workdir, NAME)
    return 0


def _arms(config: DenseProbe, task: LabelledSet) -> Iterator[Arm]:
    data, contract = config.data, task.contract
    size = map_of(data, contract).size
    for entrant in entrants(config):
        reader = open_reader(config, contract, entrant, config.augment, size)
        if config.rot90:
            check_square(contract, reader.fields, size)
        prober = Prober(config, task, reader)
        fields = system_fields(reader.fitted, entrant.modalities, contract)
        fields |= method_fields(config, NAME, reader.words, prober.head.kind)
        fields['batch_norm'] = prober.standardised
        stem = f'{entrant.kind}-{"+".join(entrant.modalities)}'
        about = {}
        if reader.fitted:
            model = reader.fitted.config.model
            about = describe(
                prober.head,
                entrant.system.fingerprint,
                tuple(model.modalities),
                chosen(config.layers, reader.fitted.config, entrant.system.name),
                model.fusion.absent,
                config.encoder.stats,
                map_of(data, contract),
                2 if config.earlier else 1,
                reader.fitted.shifts,
                bands_of(contract, reader.fitted.config),
            )
        yield Arm(prober, entrant.fields | fields, stem, about, entrant.baseline)


def _cell(
    config: DenseProbe,
    task: LabelledSet,
    arm: Arm,
    parts: Mapping[int, np.ndarray],
    about: Mapping[str, Any],
    workdir: epath.Path,
) -> Cell:
    """All label subsets of one arm at one fraction."""
    measures: dict[Run, Measure] = {}
    calibrated: dict[Run, Calibrated] = {}
    files: list[str] = []

    def keep(seed: int, counts: dict[int, np.ndarray], stored: dict[str, np.ndarray]) -> None:
        for head, scores in counts.items():
            measures[seed, head] = measured(config.data, task, scores)
        if config.calibration.pixels:
            fitted = arm.prober.calibrate(stored)
            calibrated.update({(seed, head): one for head, one in zip(counts, fitted)})
            stored = stored | {TEMPERATURE: np.array([one.temperature for one in fitted])}
        files.append(f'{arm.stem}-{about["label_fraction"]:g}-{seed}.npz')
        write_head(workdir / cells.HEADS / files[-1], stored, arm.about)

    settled = arm.prober.of_subsets(parts, arm.stem, keep)
    runs = cells.summarise(measures, task.test.clusters, config.intervals)
    fields = {**about, **arm.fields, 'chosen': settled}
    line = calibration.line(calibrated, task, config.intervals, fields) if calibrated else None
    return Cell(fields, runs, arm.baseline, line, tuple(files))
