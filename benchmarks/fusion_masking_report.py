"""The table and the figure of `fusion_masking.py`, from what its working directory holds."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusmae_jax import storage
from fusmae_jax.shipped.configs import tables
from fusmae_jax.tables.collect import Number, StudyCell, collect, difference, number
from fusmae_jax.tables.plan import StudyPlan

INPUTS = (('s1',), ('s2',), ('s1', 's2'))
METRIC, TASK = 'ap_micro', 'linear'
COMMAND = 'python -m benchmarks.fusion_masking --npz=ombria_train.npz --workdir=runs/fusion_masking'
WORDS = {'generated': 'generated pairs', 'ombria': 'OMBRIA'}
HEAD = ('set', 'fusion', 'masks', 'inputs', 'what', 'estimate', 'low', 'high', 'note')
TEXT = """# Fusion x masking

{fusions} kinds of fusion under {strategies} kinds of masks, one pretraining each: {possible} of {every}
combinations can be.

    {command}

runs what is missing; the table and the figure are written again, byte by byte, from the working directory by

    python -m benchmarks.fusion_masking --workdir=runs/fusion_masking --report

Little training, so that each data set takes some 20 minutes of one core: {steps} steps of {batch} pairs,
40 px, patch 8 (25 patches a sensor), {ratio:.0%} masked, width 64, depth 3, decoders 64 wide and 1 deep, one
seed (study {digests}). It ranks nothing that is trained to
its end. The settings were fixed before a test image was looked at. `not run`, `begun`: a cell that is
left for the next call.

- **generated pairs**: 2,000 of `data/generate` (BigEarthNet's layout), 19 classes, mAP micro; intervals over
  scenes.
- **OMBRIA**: real pairs before and after floods, in 8 bits: is one of the 64 patches of an image more than
  half flooded? Average precision; intervals over regions. Pretrained on all pairs of the training regions.

Linear head on the mean patch token: features standardised, all labels of the training split, 100 epochs,
learning rate and weight decay settled on the validation split. In percent, with the 95 % interval of a
bootstrap (1,000 resamples). `gain` is S1+S2 minus the same encoder untrained, paired; XAD and XAE&D have the
encoders of `joint` and XAE, since their second fusion stands behind the encoder. A gain in bold excludes 0.
The interval does not cover the seed.

![Gains over untrained weights](fusion_masking.png)

{table}

## Combinations that cannot be

{refused}
"""


class Row(NamedTuple):
    """A line of the table: scores and gains of each set by inputs; a word where there is no score."""

    fusion: str
    masks: str
    scores: Mapping[tuple[str, tuple[str, ...]], Number | str]  # (set, inputs) -> number
    gains: Mapping[tuple[str, tuple[str, ...]], Number | None]


def write(results: Path, plans: Mapping[str, StudyPlan]) -> str:
    """Writes `fusion_masking.md`, `.csv` and `.png`; returns the text."""
    found = list(rows(plans))
    refused = [(key, why) for key, why in tables.cells().items() if why]
    example = next(iter(plans.values()))
    settings = dict(line.split('=', 1) for line in tables.BRIEF)
    text = TEXT.format(
        fusions=len(tables.FUSIONS),
        strategies=len(tables.STRATEGIES),
        possible=len(tables.cells()) - len(refused),
        every=len(tables.cells()),
        command=COMMAND,
        steps=settings['train.steps'],
        batch=settings['train.batch_size'],
        ratio=_ratio(example),
        digests=', '.join(f'{name} {plan.digest}' for name, plan in plans.items()),
        table=table(found, tuple(plans)),
        refused='\n'.join(f'- {tables.FUSIONS[fusion]}, {masks}: {why}' for (fusion, masks), why in refused),
    )
    results.mkdir(parents=True, exist_ok=True)
    storage.write_text(results / 'fusion_masking.csv', to_csv(found))
    figure(found, tuple(plans), results / 'fusion_masking.png')
    storage.write_text(results / 'fusion_masking.md', text)
    return text


def _ratio(plan: StudyPlan) -> float:
    stage = plan.cell(TASK, 'xae_independent', 0)
    pretraining = next(needed for needed in stage.needs if needed.kind == 'pretrain')
    return float(pretraining.settings['masking.ratio'])


def rows(plans: Mapping[str, StudyPlan]) -> Iterator[Row]:
    """Each fusion with its masks, and then untrained."""
    cells = {name: collect(plan, {}) for name, plan in plans.items()}
    for fusion in tables.FUSIONS:
        every = [masks for masks in tables.STRATEGIES if not tables.cells()[fusion, masks]]
        own = [tables.UNTRAINED] if tables.ENCODERS[fusion] == fusion else []
        for masks in (*every, *own):
            scores: dict[tuple[str, tuple[str, ...]], Number | str] = {}
            gains: dict[tuple[str, tuple[str, ...]], Number | None] = {}
            for name, plan in plans.items():
                cell = cells[name][TASK, f'{fusion}_{masks}']
                base = cells[name][TASK, f'{tables.ENCODERS[fusion]}_{tables.UNTRAINED}']
                for inputs in INPUTS:
                    scores[name, inputs] = _score(plan, cell, inputs)
                    gains[name, inputs] = (
                        None if masks == tables.UNTRAINED else _gain(plan, cell, base, inputs)
                    )
            yield Row(fusion, masks, scores, gains)


def _score(plan: StudyPlan, cell: StudyCell, inputs: tuple[str, ...]) -> Number | str:
    measured = cell.by_sensors.get(inputs)
    return number(measured, METRIC, plan.config.tables['main']) if measured else cell.note


def _gain(plan: StudyPlan, cell: StudyCell, base: StudyCell, inputs: tuple[str, ...]) -> Number | None:
    first, second = (one.by_sensors.get(inputs) for one in (cell, base))
    return difference(first, second, METRIC, plan.config.tables['main']) if first and second else None


def words(value: Number | str | None, signed: bool = False) -> str:
    """In percent with the interval; bold where a signed one excludes 0."""
    if value is None:
        return '-'
    if isinstance(value, str):
        return value
    if value.estimate is None or value.low is None or value.high is None:
        return 'undefined'
    sign = '+' if signed else ''
    text = f'{100 * value.estimate:{sign}.1f} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]'
    return f'**{text}**' if signed and value.low * value.high > 0 else text


def table(found: list[Row], sets: tuple[str, ...]) -> str:
    """One table in Markdown: fusion and masks downwards, sets and inputs sideways."""
    head = ['fusion', 'masks']
    for name in sets:
        head += [f'{WORDS[name]}, {"+".join(inputs).upper()}' for inputs in INPUTS] + ['gain']
    lines = [head, ['---'] * len(head)]
    for row in found:
        line = [tables.FUSIONS[row.fusion], row.masks]
        for name in sets:
            line += [words(row.scores[name, inputs]) for inputs in INPUTS]
            line.append(words(row.gains[name, INPUTS[-1]], signed=True))
        lines.append(line)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def to_csv(found: list[Row]) -> str:
    """A line for each number, as a share."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(HEAD)
    for row in found:
        for what, values in (('score', row.scores), ('gain', row.gains)):
            for (name, inputs), value in values.items():
                if value is not None:
                    about: list[Any] = [name, row.fusion, row.masks, '+'.join(inputs), what]
                    writer.writerow(about + _numbers(value))
    return stream.getvalue()


def _numbers(value: Number | str) -> list[str]:
    if isinstance(value, str):
        return ['', '', '', value]
    return ['' if x is None else f'{x:.5f}' for x in (value.estimate, value.low, value.high)] + ['']


def figure(found: list[Row], sets: tuple[str, ...], file: Path) -> None:
    """The gains as maps: a panel for each set and inputs, fusion downwards, masks sideways."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np

    fusions, strategies = list(tables.FUSIONS), list(tables.STRATEGIES)
    fig, axes = plt.subplots(
        len(sets), len(INPUTS), figsize=(13, 3.8 * len(sets)), squeeze=False, layout='constrained'
    )
    for r, name in enumerate(sets):
        for c, inputs in enumerate(INPUTS):
            values = np.full((len(fusions), len(strategies)), np.nan)
            axis = axes[r, c]
            for row in found:
                gain = row.gains[name, inputs]
                if gain is None or gain.estimate is None:
                    continue
                at = fusions.index(row.fusion), strategies.index(row.masks)
                values[at] = 100 * gain.estimate
                sure = gain.low is not None and gain.high is not None and gain.low * gain.high > 0
                weight = 'bold' if sure else 'normal'
                text = f'{values[at]:+.1f}'
                axis.text(at[1], at[0], text, ha='center', va='center', fontsize=8, fontweight=weight)
            for (fusion, masks), why in tables.cells().items():
                if why:
                    at = strategies.index(masks), fusions.index(fusion)
                    axis.text(*at, 'cannot be', ha='center', va='center', fontsize=6, color='0.5')
            image = axis.imshow(values, cmap='PiYG', vmin=-15, vmax=15, aspect='auto')
            axis.set_facecolor('0.9')
            axis.set_title(f'{WORDS[name]}, {"+".join(inputs).upper()}', fontsize=10)
            axis.set_xticks(range(len(strategies)), strategies, rotation=25, ha='right', fontsize=8)
            labels = [tables.FUSIONS[fusion] for fusion in fusions] if c == 0 else [''] * len(fusions)
            axis.set_yticks(range(len(fusions)), labels, fontsize=8)
    fig.colorbar(image, ax=axes, label='points over untrained weights; bold: interval excludes 0', shrink=0.6)
    fig.savefig(file, dpi=110)
    plt.close(fig)
