"""Tables of `ombria_ablations.py` and its choice on the validation regions, from the scores it stored."""

import csv
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import ombria_probe, ombria_radar
from benchmarks.ombria_ablation_runs import RUNS, SEEDS, STEPS, Ablation, digest, untrained
from benchmarks.ombria_probe import INPUTS, LEVELS, SHARES, Key
from benchmarks.ombria_swap import Split
from fusmae_jax import storage
from fusmae_jax.eval.intervals import Interval, Replicates, average, difference, intervals, resample
from fusmae_jax.eval.metrics import multi_label

METRIC, BOTH, RAW = 'ap_micro', INPUTS[-1], 'raw'
COMMAND = (
    'python -m benchmarks.ombria_ablations --npz=ombria_train.npz --workdir=runs/ombria_ablations \\\n'
    '        --pairs=dataset_sample --images=EuroSAT_RGB'
)
BY_HAND = '\n## What it says\n'
HEAD = ('part', 'run', 'level', 'inputs', 'labels', 'what', 'estimate', 'low', 'high', 'regions')
TEXT = """# OMBRIA: where pretraining helps, and whether radar reaches masked optical patches

Real Sentinel-1 / Sentinel-2 pairs in 8 bits, before and after floods; {sizes}
regions for training, validation and test. Small models ({steps} steps of 32 pairs unless a row says
otherwise, 40 px, 25 patches of 256 m a sensor, width 64, depth 3: those of `fusion_masking.md`; settings
`{digest}`).

    {command}

`--report` writes this file again from the working directory; `--pairs` and `--images` are for the sections
below that name them. Every head is a logistic regression on
standardised frozen features, run to its optimum, its penalty settled on the validation regions; labels are
those of whole regions, five draws of 1 %, 5 % and 10 %, all regions once. Average precision in percent, and
in brackets the 95 % interval of a bootstrap over regions (1,000 resamples), differences paired. A gain in
bold excludes 0. `patch`: is more than half of a patch of 256 m flooded? (images after a flood) `image`: is
more than half of any patch of 160 m? (before and after). Regions of one flood may stand in two splits, and
the intervals do not know of that.

## The deciding comparison

{deciding}

{test}

## Ablations, on the validation regions

S1+S2, one seed, pretrained minus the same encoder untrained, patch level, by the share of the labelled
regions, their mean, and the image level. The choice above was made by the column of the mean.

{ablations}

## What radar is worth to masked optical patches

Test regions, {draws} masks an image; mean squared error of hidden optical patches in z-scores (`norm_pix`: of
normalised patches), with the true radar image minus with that of another region from the same side of the
flood. A sequence of as many visible patches as in training; none, an eighth or half of them are optical and
the others radar. `0, to the bit`: every image has exactly the same error with both.

{radar}
"""


class Gain(NamedTuple):
    """A paired difference, and its value for each pretraining seed."""

    interval: Interval
    seeds: tuple[float, ...]


class Scores:
    """The stored scores of a split, with its labels."""

    def __init__(self, workdir: Path, split: str, pairs: Split, patches: np.ndarray):
        self.folder, self.split = workdir / 'scores', split
        none = np.empty((*patches.shape, 0), np.float32)
        examples = {level: ombria_probe.examples(level, none, patches, pairs) for level in LEVELS}
        self.labels = {level: (one.labels[:, None], one.region) for level, one in examples.items()}

    def has(self, *systems: str) -> bool:
        """Whether the scores of some systems are there."""
        return all((self.folder / f'{self.split}-{name}.npz').exists() for name in systems)

    @functools.cache  # noqa: B019  # as long as a report takes
    def read(self, system: str) -> Mapping[str, np.ndarray]:
        """Head -> scores of a system."""
        with np.load(self.folder / f'{self.split}-{system}.npz') as archive:
            return dict(archive)

    @functools.cache  # noqa: B019
    def replicates(self, system: str, level: str, inputs: tuple[str, ...], share: float) -> Replicates:
        """Average precision of a system, the mean over the draws of the labels."""
        labels, region = self.labels[level]
        runs = []
        for draw in range(SHARES[share]):
            found = self.read(system)[str(Key(level, inputs, share, draw))][:, None]
            runs.append(resample(multi_label(found, labels, ('flooded',), threshold=0.0), region))
        return average(runs)

    def gain(
        self, name: str, level: str, inputs: tuple[str, ...], share: float, seeds: Sequence[int]
    ) -> Gain:
        """A run minus its encoder untrained, the mean over pretraining seeds, each paired."""
        bare = [untrained(name, seed) for seed in seeds]
        return self.minus([f'{name}-{seed}' for seed in seeds], bare, level, inputs, share)

    def minus(
        self, systems: Sequence[str], others: Sequence[str], level: str, inputs: tuple[str, ...], share: float
    ) -> Gain:
        """Systems minus others, one by one, and their mean."""
        each = [
            difference(*(self.replicates(name, level, inputs, share) for name in pair))
            for pair in zip(systems, others)
        ]
        return Gain(intervals(average(each))[METRIC], tuple(one.estimate[METRIC] for one in each))


def choose(workdir: Path, splits: Mapping[str, Split], labels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The run with the largest mean gain on the validation regions, and its share with the largest gain."""
    scores = Scores(workdir, 'val', splits['val'], labels['val'])
    gains = {name: {x: patch_gain(scores, name, x).estimate for x in SHARES} for name in RUNS}
    means = {name: float(np.mean(list(each.values()))) for name, each in gains.items()}
    run = max(means, key=lambda name: means[name])
    share = max(SHARES, key=lambda x: gains[run][x])
    return {'run': run, 'labels': share, 'mean_gain': means[run], 'gain': gains[run][share]}


def patch_gain(scores: Scores, name: str, share: float) -> Interval:
    """The gain of one seed at patch level from both sensors."""
    return scores.gain(name, 'patch', BOTH, share, (0,)).interval


def write(
    workdir: Path,
    results: Path,
    splits: Mapping[str, Split],
    labels: Mapping[str, np.ndarray],
    later: Callable[[Path, Mapping[str, Scores], np.ndarray, list[dict[str, Any]]], str],
) -> str:
    """Writes `ombria_ablations.md` and `.csv`; returns the text of the former.

    `later` gives the sections of what came after the choice, from folder, scores, regions and lines so far.
    """
    lines: list[dict[str, Any]] = []
    scores = {name: Scores(workdir, name, splits[name], labels[name]) for name in ('val', 'test')}
    deciding, test = decided(workdir, scores['test'], lines)
    text = TEXT.format(
        sizes=', '.join(str(len(set(one.region.tolist()))) for one in splits.values()),
        steps=f'{STEPS:,}',
        digest=digest(),
        command=COMMAND,
        deciding=deciding,
        test=test,
        ablations=ablations(scores['val'], lines, RUNS),
        draws=ombria_radar.DRAWS,
        radar=radar(workdir, splits['test'].region, lines, RUNS),
    )
    text += later(workdir, scores, splits['test'].region, lines)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, HEAD, lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    results.mkdir(parents=True, exist_ok=True)
    text += by_hand(results / 'ombria_ablations.md')
    storage.write_text(results / 'ombria_ablations.csv', stream.getvalue())
    storage.write_text(results / 'ombria_ablations.md', text)
    return text


def by_hand(file: Path) -> str:
    """What someone wrote below the tables of an earlier report: it is kept."""
    before = file.read_text() if file.exists() else ''
    return BY_HAND + before.split(BY_HAND, 1)[1] if BY_HAND in before else ''


def line(lines: list[dict[str, Any]], one: Interval, *about: str) -> str:
    """Notes a number for the CSV; returns it as a cell, signed if it is a gain."""
    numbers = (one.estimate, one.low, one.high)
    lines.append(dict(zip(HEAD, (*about, *(f'{x:.5f}' for x in numbers), one.clusters))))
    signed, percent = about[-1] != 'score', 1 if about[0] == 'radar' else 100
    form = '.4f' if about[0] == 'radar' else '.1f'
    text = '{} [{}, {}]'.format(*(f'{percent * x:{"+" * signed}{form}}' for x in numbers))
    return f'**{text}**' if signed and one.low * one.high > 0 else text


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a Markdown table, the first one being its head."""
    head, *body = rows
    return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *body])


def decided(workdir: Path, scores: Scores, lines: list[dict[str, Any]]) -> tuple[str, str]:
    """The deciding comparison in words, and the table of the test regions."""
    file = workdir / 'choice.json'
    if not file.exists():
        return 'Not run yet.', ''
    choice = json.loads(file.read_text())
    name, share = choice['run'], choice['labels']
    bare = [untrained(name, seed) for seed in SEEDS]
    if not scores.has(RAW, *bare, *(f'{name}-{seed}' for seed in SEEDS)):
        return 'Not run yet.', ''
    gain = scores.gain(name, 'patch', BOTH, share, SEEDS)
    cell = line(lines, gain.interval, 'deciding', name, 'patch', '+'.join(BOTH), f'{share:g}', 'gain')
    text = (
        f'Chosen on the validation regions, by the largest mean gain: {RUNS[name].about}; and of it the '
        f'share of labels with the largest gain, {share:.0%}. Opened then, the test regions give {cell} '
        f'points over untrained weights with S1+S2, mean of {len(SEEDS)} pretraining seeds '
        f'({", ".join(f"{100 * x:+.1f}" for x in gain.seeds)}). All other rows were measured with it.'
    )
    rows = [['level', 'inputs', 'labels', 'pretrained', 'untrained', 'raw pixels', 'gain', 'over raw pixels']]
    for level, inputs, part in ((a, b, c) for a in LEVELS for b in INPUTS for c in SHARES):
        about = ('test', name, level, '+'.join(inputs), f'{part:g}')
        of_system = average([scores.replicates(f'{name}-{s}', level, inputs, part) for s in SEEDS])
        base = average([scores.replicates(one, level, inputs, part) for one in bare])
        pixels = scores.replicates(RAW, level, inputs, part)
        cells = [
            line(lines, intervals(one)[METRIC], *about[:1], system, *about[2:], 'score')
            for system, one in ((name, of_system), ('untrained', base), (RAW, pixels))
        ]
        cells += [
            line(lines, intervals(difference(of_system, other))[METRIC], *about, what)
            for what, other in (('gain', base), ('over raw pixels', pixels))
        ]
        rows.append([level, about[3].upper(), f'{part:.0%}', *cells])
    return text, table(rows)


def ablations(scores: Scores, lines: list[dict[str, Any]], runs: Mapping[str, Ablation]) -> str:
    """A row for each run, on the validation regions."""
    rows = [['run', *(f'{x:.0%}' for x in SHARES), 'mean', *(f'image, {x:.0%}' for x in SHARES)]]
    for name, run in runs.items():
        if not scores.has(f'{name}-0', untrained(name, 0)):
            rows.append([run.about, *['not run'] * (len(rows[0]) - 1)])
            continue
        row, estimates = [run.about], []
        for level in LEVELS:
            for share in SHARES:
                one = scores.gain(name, level, BOTH, share, (0,)).interval
                row.append(line(lines, one, 'val', name, level, '+'.join(BOTH), f'{share:g}', 'gain'))
                estimates.append(one.estimate)
            if level == 'patch':
                row.append(f'{100 * np.mean(estimates):+.1f}')
        rows.append(row)
    return table(rows)


def radar(
    workdir: Path, region: np.ndarray, lines: list[dict[str, Any]], runs: Mapping[str, Ablation]
) -> str:
    """A row for each run: what the content of the radar image is worth, by the share of optical patches."""
    rows = [['run', *(f'{name} of the visible patches optical' for name in ombria_radar.VISIBLE)]]
    for name, run in runs.items():
        file = workdir / 'radar' / f'{name}.npz'
        if not file.exists():
            rows.append([run.about, *['not run'] * len(ombria_radar.VISIBLE)])
            continue
        with np.load(file) as archive:
            arrays = dict(archive)
        cells = list(_radar_cells(arrays, name, region, lines))
        rows.append([run.about, *cells])
    return table(rows)


def _radar_cells(
    arrays: Mapping[str, np.ndarray], name: str, region: np.ndarray, lines: list[dict[str, Any]]
) -> Iterator[str]:
    for share in ombria_radar.VISIBLE:
        one = {key: arrays[f'{share}|{key}'] for key in ('true', 'other', 'count')}
        interval, equal = ombria_radar.compare(one, region)
        cell = line(lines, interval, 'radar', name, '-', f'{share} optical', '-', 'true minus exchanged')
        yield '0, to the bit' if equal else cell
