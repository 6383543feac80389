"""Maps of floods on OMBRIA: frozen tokens and fine-tuning, pretrained against untrained, S1, S2 and both.

    python -m benchmarks.ombria_dense --npz=ombria_train.npz --workdir=runs/ombria_dense

Pretrains the Fus-MAE of `ombria_config.py` on the training regions (a run of `ombria.py` in the same working
directory is taken as it is), converts the regions with their flood masks (`ombria_maps.py`), and measures on
regions that nothing has learned from:

    probe     a class for each pixel from frozen tokens: all pixels of a patch from its token
    knn       the same from the labels of the nearest tokens, without training
    change    that of the probe, from tokens after the flood and their difference from those before it
    finetune  encoder and head together, with the head of the probe, so that the encoder makes the difference

Writes `ombria_dense.md` and `ombria_dense.csv` into `--results`. A rerun of a fine-tuning goes on where it
stopped. The settings stand in this file and were fixed before anything was measured on the test regions, but
for fine-tuning (see TEXT).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import ombria_config, ombria_maps, ombria_set
from benchmarks.command import exit_code
from benchmarks.lines import markdown, write_csv
from fusmae_jax.config.run import Augment
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM, EncoderSettings
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.dense.config import DenseFinetune, DenseKnn, DenseProbe, MapCalibration
from fusmae_jax.eval.dense.finetune import run_dense_finetune
from fusmae_jax.eval.dense.knn import run_dense_knn
from fusmae_jax.eval.dense.probe import run_dense_probe
from fusmae_jax.run.loop import pretrain

ROOT = Path(__file__).resolve().parents[1]
INPUTS = (('s1',), ('s2',), ('s1', 's2'))
BOTH = INPUTS[2:]
SHOWN = ('iou_macro', 'iou/flooded', 'f1/flooded', 'accuracy')
CALIBRATION = ('ece_before', 'ece_after')
SETTLED = 'Settled on the validation regions, and the calibration error before and after the temperature:'
PARTS = ('probe', 'knn', 'change', 'finetune')
COMMAND = 'python -m benchmarks.ombria_dense --npz=ombria_train.npz --workdir=runs/ombria_dense'
HEAD = ('part', 'system', 'inputs', 'metric', 'estimate', 'low', 'high', 'regions')
TEXT = """# OMBRIA: maps of floods

Real Sentinel-1 / Sentinel-2 pairs in 8 bits, 128 x 128 px of 10 m: a class for each pixel, dry or flooded, of
the images after a flood. {regions} test regions, which neither pretraining nor any head has learned from.

    {command}

The Fus-MAE of `ombria_config.py` ({steps:,} steps of pretraining, 64 x 64 model pixels of 20 m, tokens of
160 m, seed {seed}). Metrics over all pixels of the test regions together, in percent; in brackets the 95 %
interval, a bootstrap over regions, 1,000 resamples, differences paired. Regions of one flood may stand in two
splits, and the intervals do not know of that. Learning rates of the probes are settled on the validation
regions by mIoU, and so are learning rate and epoch of each fine-tuning. One seed of pretraining, one of the
heads. All settings: `benchmarks/ombria_dense.py`; few epochs, so that everything takes less than an hour on
two cores. They are no tuned recipe for either system. Fine-tuning was set anew since a first one, of 5 epochs
at one rate, with a convolutional decoder and both sensors, had come to 62.9 against 67.0 for random init on
these test regions, below the frozen tokens: it had ended too early to say anything.

Calibration errors are over the labelled pixels of the test regions, 15 bins; the temperature is that of the
least surprise on 200,000 pixels of the validation regions.

`random init`: the same architecture and training, untrained weights. `band statistics`: a linear head on the
bands of each single pixel, at 10 m. `most frequent class`: every pixel dry, or every pixel flooded.

{tables}
"""
TITLES = {
    'probe': 'Frozen tokens: a linear head gives all 8 x 8 model pixels of a token, {probe}',
    'knn': 'Nearest tokens: the labels under the 20 nearest of the labelled regions, nothing trained',
    'change': 'Change, both sensors: tokens after the flood and their difference from those before it',
    'finetune': 'Fine-tuning: encoder and the head of the probe, {finetune} at most',
}


def settings(part: str, data: str, checkpoint: str, seed: int) -> DenseProbe | DenseKnn | DenseFinetune:
    """What is trained; fixed before anything was measured on the test regions."""
    shared: dict[str, Any] = {
        'data': Task(data, labels=ombria_maps.MAP, kind='segmentation', threads=2),
        'intervals': Intervals('region'),
    }
    inputs = BOTH if part == 'change' else INPUTS
    frozen = EncoderSettings(checkpoint, (RANDOM, BANDS, PRIOR), modalities=inputs, seed=seed, batch=32)
    tuned = EncoderSettings(checkpoint, (RANDOM,), modalities=inputs, seed=seed, batch=32)
    calibration = MapCalibration(0 if part == 'change' else CALIBRATED)
    if part == 'finetune':
        return DenseFinetune(
            **shared,
            calibration=calibration,
            encoder=tuned,
            head='shuffle',
            rot90=True,
            augment=Augment(crop=False, hflip=0.5, vflip=0.5),
            learning_rates=(5e-4, 2e-3),
            settle='each',
            epochs=FINETUNE_EPOCHS,
            epoch='best',
            batch_size=16,
            layer_decay=0.75,
        )
    if part == 'knn':
        return DenseKnn(**shared, encoder=tuned)
    return DenseProbe(
        **shared,
        calibration=calibration,
        encoder=frozen,
        head='shuffle',
        earlier=ombria_maps.EARLIER if part == 'change' else '',
        learning_rates=(3e-3, 1e-2, 3e-2),
        head_seeds=(0,),
        epochs=PROBE_EPOCHS,
        batch_size=32,
    )


PROBE_EPOCHS, FINETUNE_EPOCHS = 6.0, 20.0
CALIBRATED = 200_000  # pixels of the validation regions


def run(npz: str, workdir: Path, results: Path, seed: int, steps: int, parts: tuple[str, ...]) -> str:
    """Everything, in order; returns the text of the report."""
    pairs = ombria_set.write(npz, workdir / 'data')
    data = ombria_maps.write(npz, workdir / 'maps')
    pretrain(ombria_config.pretraining('xae', ('s1', 's2'), pairs, seed, steps), workdir / 'xae')
    for part in parts:
        config = settings(part, data, str(workdir / 'xae'), seed)
        if isinstance(config, DenseFinetune):
            run_dense_finetune(config, workdir / part)
        elif isinstance(config, DenseKnn):
            run_dense_knn(config, workdir / part)
        else:
            run_dense_probe(config, workdir / part)
    return write(workdir, results, seed, steps)


def lines(folder: Path, part: str) -> list[dict[str, Any]]:
    """The numbers of a part that is there: of each system, and the paired differences."""
    numbers = []
    for row in stored(folder, 'rows', part):
        metric = '/'.join((row['metric'], row['label'])) if row['label'] else row['metric']
        metric += f'_{row["averaging"]}' if row['averaging'] == 'macro' else ''
        numbers.append(_line(part, row['system'], row['modalities'], metric, row))
    for line in stored(folder, 'differences', part):
        system = f'{line["system"]} minus {line["minus"]}'
        numbers += [_line(part, system, line['modalities'], m, x) for m, x in line['metrics'].items()]
    for line in stored(folder, 'calibration', part):
        numbers += [_line(part, line['system'], line['modalities'], m, x) for m, x in line['metrics'].items()]
    return [one for one in numbers if one['metric'] in (*SHOWN, *CALIBRATION)]


def stored(folder: Path, kind: str, part: str) -> list[dict[str, Any]]:
    """The lines of a file that a part has left; none where there is no such file."""
    name = {'finetune': 'dense_finetune', 'knn': 'dense_knn'}.get(part, 'dense_probe')
    file = folder / f'{kind}-{name}.jsonl'
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _line(part: str, system: str, inputs: list[str], metric: str, numbers: Any) -> dict[str, Any]:
    values = (numbers['estimate'], numbers['low'], numbers['high'], numbers['clusters'])
    return dict(zip(HEAD, (part, system, '+'.join(inputs) or '-', metric, *values)))


def write(workdir: Path, results: Path, seed: int, steps: int) -> str:
    """The report and its numbers, of all parts that there are."""
    each = {part: lines(workdir / part, part) for part in PARTS}
    every = [one for numbers in each.values() for one in numbers]
    words = {'probe': f'{PROBE_EPOCHS:g} epochs', 'finetune': f'{FINETUNE_EPOCHS:g} epochs'}
    tables = []
    for part, numbers in each.items():
        if numbers:
            tables += [f'## {TITLES[part].format(**words)}', table(numbers)]
            tables += settled(workdir / part, part, numbers)
    options = f' --seed={seed}' * (seed != 0) + f' --steps={steps}' * (steps != ombria_config.STEPS)
    text = TEXT.format(
        regions=max(one['regions'] for one in every),
        command=f'{COMMAND}{options}',
        steps=steps,
        seed=seed,
        tables='\n\n'.join(tables),
    )
    results.mkdir(parents=True, exist_ok=True)
    write_csv(results / 'ombria_dense.csv', HEAD, every)
    (results / 'ombria_dense.md').write_text(text)
    return text


def table(numbers: list[dict[str, Any]]) -> str:
    """A row for each system and choice of inputs, in percent."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for one in numbers:
        if one['metric'] in SHOWN:
            rows.setdefault((one['inputs'], one['system']), {})[one['metric']] = _cell(one)
    head = ('inputs', 'system', *SHOWN)
    body = [[*key, *(cells.get(metric, '-') for metric in SHOWN)] for key, cells in rows.items()]
    body.sort(key=lambda row: (len(row[0]), row[0], ' minus ' in row[1]))
    return markdown([head, *body])


def settled(folder: Path, part: str, numbers: list[dict[str, Any]]) -> list[str]:
    """What the validation regions have settled, and the calibration error; nothing where it is not known."""
    chosen = {_key(row): row['chosen'] for row in stored(folder, 'rows', part)}
    heat = {_key(line): line['temperatures'] for line in stored(folder, 'calibration', part)}
    names = [name for name in ('learning_rate', 'epoch') if any(name in one for one in chosen.values())]
    if not heat:
        return []
    cells = {(one['system'], one['inputs'], one['metric']): _cell(one) for one in numbers}
    table = [['inputs', 'system', *(name.replace('_', ' ') for name in names), 'temperature', *CALIBRATION]]
    for (system, inputs), values in chosen.items():
        if values:
            points = [values[name][0] for name in names] + heat.get((system, inputs), [])
            shown = [f'{number:.3g}' for number in points] + ['-'] * (len(names) + 1 - len(points))
            errors = [cells.get((system, inputs, metric), '-') for metric in CALIBRATION]
            table.append([inputs, system, *shown, *errors])
    return [SETTLED, markdown(table)]


def _key(line: dict[str, Any]) -> tuple[str, str]:
    return line['system'], '+'.join(line['modalities'])


def _cell(one: dict[str, Any]) -> str:
    sign = '+' if ' minus ' in one['system'] else ''
    numbers = [f'{100 * one[name]:{sign}.1f}' for name in ('estimate', 'low', 'high')]
    return f'{numbers[0]} [{numbers[1]}, {numbers[2]}]'


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--npz', required=True, help='the file of image pairs')
    parser.add_argument('--workdir', required=True, type=Path, help='for the data sets and the runs')
    parser.add_argument('--results', type=Path, default=ROOT / 'benchmarks' / 'results')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=ombria_config.STEPS)
    parser.add_argument('--parts', default=','.join(PARTS), help=f'of {", ".join(PARTS)}')
    given = parser.parse_args()

    def everything() -> None:
        parts = tuple(given.parts.split(','))
        if wrong := [part for part in parts if part not in PARTS]:
            raise InputError(f'--parts: {wrong[0]!r}; {nearest(wrong[0], PARTS)}')
        print(run(given.npz, given.workdir, given.results, given.seed, given.steps, parts))

    return exit_code(everything)


if __name__ == '__main__':
    sys.exit(main())
