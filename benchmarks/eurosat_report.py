"""The result files of the EuroSAT benchmark, from what its runs have stored; no image is read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from benchmarks import eurosat_config, eurosat_plot, eurosat_set, lines
from benchmarks.eurosat_config import NAME, Plan
from benchmarks.lines import Line
from fusmae_jax import storage
from fusmae_jax.errors import InputError
from fusmae_jax.eval.intervals import Replicates, average, difference, intervals, read_replicates
from fusmae_jax.run.writers import curve

METRIC = 'top1'
PRETRAINED, RANDOM, BANDS, SCRATCH = 'pretrained', 'random init', 'band statistics', 'from scratch'
METHODS = {'linear': 'linear probe', 'knn': 'nearest neighbours', 'finetune': 'fine-tuning'}
DONE = 'done-{}.json'
HEAD = (
    *('method', 'system', 'share', 'labels', 'metric', 'estimate', 'low', 'high', 'lowest', 'highest'),
    *('seeds', 'images'),
)
TEXT = """# EuroSAT: what pretraining is worth where labels are few

EuroSAT RGB (Helber et al. 2019): Sentinel-2 colour in 8 bits, 64 x 64 px of 10 m, ten classes. {sizes} images
for training, validation and test, drawn within each class by a hash of the names, since there is no official
split. The images do not say where they are, and neighbours on the ground may stand in different splits: the
accuracy of every row is higher than on new ground.

    python benchmarks/eurosat.py --images=EuroSAT_RGB --workdir=runs/eurosat{quick}

Settings `{digest}` (`benchmarks/eurosat_config.py`), fixed before the test images were looked at. A masked
autoencoder ({width} wide, {depth} deep, patches of 8 px, 75 % hidden, targets normalised patch by patch)
learned from the training images without labels: {steps:,} steps of {batch}, {passes:.1f} passes. {seeds},
each of the pretraining, the untrained weights, the draw of the labels (stratified) and the heads. All runs
took {minutes}; the machine had other work.

Top-1 accuracy on {test:,} test images, mean over the seeds; in square brackets the 95 % interval, bootstrap
over the test images, 1,000 resamples, differences paired; in round ones the lowest and the highest seed. The
intervals do not cover the choice of seeds.

{tables}

Linear probe: mean of the patch tokens, standardised by the labelled images, 200 epochs of AdamW, learning
rate (3e-3 to 0.1) and weight decay (0, 0.1) settled on the whole validation split, alike for all three
systems. Nearest neighbours: 10, by cosine, standardised as well. Band statistics: mean and standard deviation
of each band. Fine-tuning: {tuned} epochs in batches of 64 at one learning rate that was not tuned
(1e-3), random flips; from scratch is the same encoder from random weights, with as many steps. These are
{steps_tuned} steps: they show which start is ahead, not what fine-tuning or training from scratch reaches.
{curve}
## What was tried on the validation split

Top-1 with 10 % of the labels of seed 0, linear probe, settled on the same images; width and steps above were
then chosen for the time that they take. Nothing else was tried.

{tried}

Most heads settled on the highest learning rate of the sweep. After the runs, `benchmarks/eurosat_heads.py`
showed on the validation split (10 % of the labels of seed 0) that rates of 0.3 and 1 are worse and that twice
as many epochs change top-1 by 0.001.
"""
CURVE = """
While it pretrained, on 40 % of the validation split with 10 % of the labels, mean over the seeds (features of
neighbours are not standardised here):

{table}
"""


def tuning_folder(folder: Path, share: float) -> Path:
    """Where the fine-tunings of one seed with a share of the labels write."""
    return folder / f'finetune-{share:g}'


def write(results: Path, workdir: Path, plan: Plan, quick: bool) -> str:
    """Writes `eurosat.csv`, `eurosat.md` and `eurosat.png`; returns the text.

    Raises:
        InputError: a run has not finished.
    """
    measurements = list(measured(workdir, plan))
    watched = curves(workdir, plan)
    text = _text(measurements, watched, workdir, plan, quick)
    lines.write(results, 'eurosat', text, HEAD, measurements)
    eurosat_plot.draw(results / 'eurosat.png', measurements, watched)
    return text


def measured(workdir: Path, plan: Plan) -> Iterator[Line]:
    """A line for each method, system and share, and for each difference from the pretrained encoder."""
    for method in METHODS:
        each = stored(workdir, plan, method)
        for share in sorted({share for _, share in each}):
            systems = {name: runs for (name, part), runs in each.items() if part == share}
            for name, runs in systems.items():
                yield _line(method, name, share, runs, workdir)
            for name, runs in systems.items():
                if name != PRETRAINED:
                    paired = [difference(a, b) for a, b in zip(systems[PRETRAINED], runs)]
                    yield _line(method, f'{PRETRAINED} minus {name}', share, paired, workdir)


def stored(workdir: Path, plan: Plan, method: str) -> dict[tuple[str, float], list[Replicates]]:
    """(system, share of the labels) -> what each seed came to."""
    each: dict[tuple[str, float], list[Replicates]] = {}
    for seed in plan.seeds:
        folder = workdir / f'seed-{seed}'
        parts = [folder / 'frozen']
        if method == 'finetune':
            parts = [tuning_folder(folder, share) for share in plan.tuned]
        for part in parts:
            if not (part / DONE.format(method)).exists():
                raise InputError(f'{part}: {method} has not finished; run the benchmark again, it goes on')
            for one in read_replicates(epath.Path(part), method):
                name = _system(one.about['system'], method)
                each.setdefault((name, one.about['label_fraction']), []).append(one.replicates)
    return each


def _system(name: str, method: str) -> str:
    if name.startswith('random init'):
        return SCRATCH if method == 'finetune' else RANDOM
    return PRETRAINED if name == NAME else name


def _line(method: str, system: str, share: float, runs: Sequence[Replicates], workdir: Path) -> Line:
    one, each = intervals(average(runs))[METRIC], [run.estimate[METRIC] for run in runs]
    train, _, test = records(workdir)
    about = (METHODS[method], system, share, _labels(share, train), METRIC, one.estimate, one.low, one.high)
    return dict(zip(HEAD, (*about, min(each), max(each), len(runs), test)))


def records(workdir: Path) -> tuple[int, ...]:
    """Images of each split."""
    schema = eurosat_set.SCHEMA
    report = workdir / 'data' / schema.name / schema.version / 'conversion_report.json'
    written = storage.read_json(epath.Path(report), 'convert again')['splits']
    return tuple(written[split]['records'] for split in eurosat_set.SHARES)


def curves(workdir: Path, plan: Plan) -> dict[str, dict[int, list[float]]]:
    """Method -> step -> the accuracy on the validation split while each seed pretrained."""
    measurements: dict[str, dict[int, list[float]]] = {}
    for seed in plan.seeds:
        for step, values in curve(epath.Path(workdir / f'seed-{seed}' / 'pretrain')):
            for method in ('linear', 'knn'):
                name = {'linear': 'probe', 'knn': 'knn'}[method] + f'/{METRIC}'
                if name in values:
                    measurements.setdefault(METHODS[method], {}).setdefault(step, []).append(values[name])
    return measurements


def _text(measurements: Sequence[Line], watched: Any, workdir: Path, plan: Plan, quick: bool) -> str:
    model = eurosat_config.pretraining('x', 0, plan).model
    sizes = records(workdir)
    files = [f for seed in plan.seeds for f in (workdir / f'seed-{seed}').glob(f'*/{DONE.format("*")}')]
    took = [storage.read_json(epath.Path(file), 'remove it') for file in files]
    wall, processor = (sum(one[name] for one in took) / 60 for name in ('seconds', 'processor_seconds'))
    steps = sorted({step for one in watched.values() for step in one})
    rows = [['steps', *(f'{step:,}' for step in steps)]]
    for name, one in watched.items():
        rows.append([name, *(f'{np.mean(one[step]):.4f}' if step in one else '-' for step in steps)])
    return TEXT.format(
        sizes=' + '.join(f'{count:,}' for count in sizes),
        quick=' --quick' * quick,
        digest=eurosat_config.digest(plan),
        width=model.width,
        depth=model.depth,
        steps=plan.steps,
        batch=plan.batch,
        passes=plan.steps * plan.batch / sizes[0],
        seeds='Three seeds' if len(plan.seeds) == 3 else f'Seeds: {len(plan.seeds)}',
        minutes=f'{wall:.0f} minutes, {processor:.0f} of them of processor time',
        test=sizes[2],
        tables='\n\n'.join(table(measurements, method) for method in METHODS.values()),
        tuned=', '.join(f'{epochs:g} ({share:.0%})' for share, epochs in plan.tuned.items()),
        steps_tuned=', '.join(str(_steps(share, epochs, sizes[0])) for share, epochs in plan.tuned.items()),
        curve=CURVE.format(table=lines.markdown(rows)) if steps else '',
        tried=lines.markdown(
            [['settings', 'top-1'], *([what, f'{x:.4f}'] for what, x in eurosat_config.TRIED)]
        ),
    )


def _steps(share: float, epochs: float, train: int) -> int:
    labels = _labels(share, train)
    batch = min(eurosat_config.TUNING_BATCH, labels)
    return max(1, round(epochs * labels / batch))


def _labels(share: float, train: int) -> int:
    return train if share == 1 else train * round(share * 100) // 100


def table(measurements: Sequence[Line], method: str) -> str:
    """Systems down, shares of the labels across."""
    of_method = [one for one in measurements if one['method'] == method]
    shares = sorted({one['share'] for one in of_method})
    rows = [[method, *(f'{share:.0%}' for share in shares)]]
    # Systems first, then the differences.
    for name in sorted({one['system']: 0 for one in of_method}, key=lambda name: ' minus ' in name):
        cells = {one['share']: one for one in of_method if one['system'] == name}
        rows.append([name, *(_cell(cells[share], name) if share in cells else '-' for share in shares)])
    return lines.markdown(rows)


def _cell(one: Line, name: str) -> str:
    sign = '+' if ' minus ' in name else ''
    estimate, interval = lines.interval(one, sign)
    each = f' ({one["lowest"]:{sign}.4f} to {one["highest"]:{sign}.4f})' if one['seeds'] > 1 else ''
    return f'{estimate} {interval}{each}'
