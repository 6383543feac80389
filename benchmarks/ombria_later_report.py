"""Tables of what came after the choice of `ombria_ablations.py`: more pairs, another start, patch sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ombria_ablations_report as report
from benchmarks.ombria_ablation_runs import COMPARED, REFERENCE, RUNS, SEEDS, SIZES, Ablation, untrained
from benchmarks.ombria_probe import INPUTS, LEVELS, SHARES
from fusmae_jax.eval.intervals import intervals

TEXT = """
## More pairs, and a start from EuroSAT

Added when the test regions had been opened, and choosing nothing: the chosen run with 576 real pairs of a
desert besides OMBRIA's 874 (`--pairs`), with its optical side started from a masked autoencoder that was
trained for {eurosat:,} steps on 18,900 EuroSAT images (`--images`), and with both. Of the latter
everything is taken that the two models share: the projection of optical patches, all blocks of the encoder
but the cross-attention of the first, CLS, norms, and the decoder of that sensor but for its cross-attention.
As many steps as before. Test regions, mean of {seeds} pretraining seeds.

Over the same encoder untrained, S1+S2:

{gains}

Over the chosen run, seed by seed; in the last column each seed with 1 % of the labels:

{differences}

## Sizes of patches, on the validation regions

As in the table of ablations, whose base has 40 px and 25 patches of 8 px (256 m). Here a sensor has 100
patches of 128 m; for the probe, four of them are averaged into one of 256 m, so that labels are the same.
Pretrained minus untrained:

{sizes}

The average precision behind these differences, and that of the base:

{levels}

What radar is worth to masked optical patches, of all runs of both sections, as above (seed 0):

{radar}
"""
HEAD = ['run', 'level', *(f'{share:.0%}' for share in SHARES)]


def text(
    workdir: Path,
    scores: Mapping[str, report.Scores],
    region: np.ndarray,
    lines: list[dict[str, Any]],
    steps: int,
) -> str:
    """The sections, with what there is.

    Args:
        workdir: of the study.
        scores: those of `val` and `test`.
        region: of the test images.
        lines: where every number is noted for the CSV.
        steps: of the masked autoencoder of EuroSAT.
    """
    compared = {REFERENCE: RUNS[REFERENCE], **COMPARED}
    return TEXT.format(
        eurosat=steps,
        seeds=len(SEEDS),
        gains=gains(scores['test'], compared, lines),
        differences=differences(scores['test'], lines),
        sizes=report.ablations(scores['val'], lines, SIZES),
        levels=levels(scores['val'], {'base': RUNS['base'], **SIZES}, lines),
        radar=report.radar(workdir, region, lines, {**COMPARED, **SIZES}),
    )


def gains(scores: report.Scores, runs: Mapping[str, Ablation], lines: list[dict[str, Any]]) -> str:
    """A row for each run and level: minus the encoder untrained."""
    rows = [HEAD]
    for name, run in runs.items():
        bare = [untrained(name, seed) for seed in SEEDS]
        for level in LEVELS:
            cells = _cells(scores, name, bare, level, INPUTS[-1], lines, 'gain')
            rows.append([run.about, level, *(cell for cell, _ in cells)])
    return report.table(rows)


def differences(scores: report.Scores, lines: list[dict[str, Any]]) -> str:
    """A row for each run, level and input: minus the chosen run."""
    rows = [[*HEAD[:2], 'inputs', *HEAD[2:], 'seeds, 1%']]
    before = [f'{REFERENCE}-{seed}' for seed in SEEDS]
    for name, run in COMPARED.items():
        for level, inputs in ((level, inputs) for level in LEVELS for inputs in INPUTS):
            cells = _cells(scores, name, before, level, inputs, lines, 'over the chosen run')
            values, seeds = [cell for cell, _ in cells], cells[0][1]
            each = ', '.join(f'{100 * x:+.1f}' for x in seeds)
            rows.append([run.about, level, '+'.join(inputs).upper(), *values, each])
    return report.table(rows)


def levels(scores: report.Scores, runs: Mapping[str, Ablation], lines: list[dict[str, Any]]) -> str:
    """A row for each run, pretrained and not, and level: its score of seed 0."""
    rows = [['run', 'weights', *HEAD[1:]]]
    for name, run in runs.items():
        for weights, system in (('pretrained', f'{name}-0'), ('untrained', untrained(name, 0))):
            for level in LEVELS:
                cells = ['not run'] * len(SHARES)
                if scores.has(system):
                    cells = [_score(scores, system, level, share, lines) for share in SHARES]
                rows.append([run.about, weights, level, *cells])
    return report.table(rows)


def _score(scores: report.Scores, system: str, level: str, share: float, lines: list[dict[str, Any]]) -> str:
    one = intervals(scores.replicates(system, level, INPUTS[-1], share))[report.METRIC]
    return report.line(lines, one, 'val', system, level, '+'.join(INPUTS[-1]), f'{share:g}', 'score')


def _cells(
    scores: report.Scores,
    name: str,
    others: Sequence[str],
    level: str,
    inputs: tuple[str, ...],
    lines: list[dict[str, Any]],
    what: str,
) -> list[tuple[str, tuple[float, ...]]]:
    """Share by share the difference of a run as a cell, and its value for each seed."""
    systems = [f'{name}-{seed}' for seed in SEEDS]
    if not scores.has(*systems, *others):
        return [('not run', ())] * len(SHARES)
    cells = []
    for share in SHARES:
        one = scores.minus(systems, others, level, inputs, share)
        about = ('test', name, level, '+'.join(inputs), f'{share:g}', what)
        cells.append((report.line(lines, one.interval, *about), one.seeds))
    return cells
