"""OMBRIA: where does pretraining help to see a flood, and does radar reach masked optical patches?

    python -m benchmarks.ombria_ablations --npz=ombria_train.npz --workdir=runs/ombria_ablations

1. Pretrains the runs of `ombria_ablation_runs.py`, one seed each, and measures on the validation regions what
   a head gains from them over untrained weights, with 1 % to 100 % of the labels (`ombria_probe.py`).
2. Chooses the run with the largest mean gain there, and of it the share of labels with the largest gain: that
   is the deciding comparison. The choice is written down and stays.
3. Pretrains the chosen run with two more seeds and opens the test regions.
4. Measures for every run on the test regions what radar is worth to masked optical patches
   (`ombria_radar.py`), which chooses nothing.
5. Other sizes of patches; and with all three seeds on the test regions, what two things add to the chosen
   run: `--pairs`, real pairs of another place (`ombria_more_pairs.py`), and `--images`, a start of its
   optical side from a masked autoencoder of EuroSAT. Without an option its rows say `not run`.

A rerun goes on where the last one stopped; `--report` writes `ombria_ablations.md` and `.csv` into
`--results` from what is there.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import (
    eurosat_set,
    ombria_ablations_report,
    ombria_later_report,
    ombria_more_pairs,
    ombria_probe,
    ombria_radar,
    ombria_set,
    ombria_swap,
)
from benchmarks.command import exit_code
from benchmarks.compile_less import compile_less
from benchmarks.ombria_ablation_runs import (
    COMPARED,
    EUROSAT,
    MORE,
    OMBRIA,
    REFERENCE,
    RUNS,
    SEEDS,
    SIZES,
    digest,
    digest_later,
    every_run,
    optical,
    pretraining,
    untrained,
)
from fusmae_jax import storage
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.load import load_one
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.models import fusmae
from fusmae_jax.run.loop import pretrain
from fusmae_jax.run.workdir import COMPLETE

ROOT = Path(__file__).resolve().parents[1]
BOTH = ombria_probe.INPUTS[-1:]
CHOICE, SETTINGS = 'choice.json', 'settings.json'
RAW = 'raw'


class Study:
    """The working directory of the ablations."""

    def __init__(self, npz: str, workdir: Path, pairs: str = '', images: str = ''):
        self.workdir, self.data = workdir, ombria_set.write(npz, workdir / 'data')
        self.sets = {OMBRIA: self.data}
        if pairs:
            self.sets[MORE] = ombria_more_pairs.write(npz, pairs, workdir / 'data')
        if images:
            self.sets[EUROSAT] = eurosat_set.write(images, workdir / 'data')
        self.splits = {name: ombria_swap.read_split(self.data, name) for name in ombria_set.SHARES}
        self.labels = {name: ombria_probe.flooded(npz, one) for name, one in self.splits.items()}
        _same_settings(workdir)

    def run(self) -> None:
        """Everything that is missing, in order."""
        for name in RUNS:
            self.scores(name, 0, ('train', 'val'), BOTH)
        self.scores(RAW, 0, ('train', 'val'), BOTH)
        choice = ombria_ablations_report.choose(self.workdir, self.splits, self.labels)
        storage.write_json(self.workdir / CHOICE, choice)
        print(f'chosen on the validation regions: {choice}', flush=True)
        for seed in SEEDS:
            self.scores(choice['run'], seed, ('train', 'val', 'test'), ombria_probe.INPUTS)
        self.scores(RAW, 0, ('train', 'val', 'test'), ombria_probe.INPUTS)
        for name in RUNS:
            self.radar(name)
        self.later()

    def later(self) -> None:
        """What chooses nothing."""
        for name, run in {REFERENCE: RUNS[REFERENCE], **COMPARED}.items():
            if {run.data, run.start or OMBRIA} <= self.sets.keys():
                for seed in SEEDS:
                    self.scores(name, seed, ('train', 'val', 'test'), ombria_probe.INPUTS)
                self.radar(name)
        for name in SIZES:
            self.scores(name, 0, ('train', 'val'), BOTH)
            self.radar(name)

    def model(self, name: str, seed: int) -> Pretrained:
        """A run, pretrained first where it is not yet."""
        run = every_run()[name]
        start = self._finished(f'{EUROSAT}-{seed}', optical(self.sets[EUROSAT], seed)) if run.start else ''
        return load_one(self._finished(f'{name}-{seed}', pretraining(name, self.sets[run.data], seed, start)))

    def _finished(self, name: str, config: Config) -> str:
        """The folder of a run that is complete."""
        folder = self.workdir / 'runs' / name
        pretrain(config, folder)
        if not (folder / COMPLETE).exists():
            raise InputError(f'{folder}: stopped on request; the same command goes on from there')
        return str(folder)

    def scores(self, name: str, seed: int, names: Sequence[str], inputs: Sequence[tuple[str, ...]]) -> None:
        """Scores of the last of some splits, of a run and of its encoder untrained; or of raw pixels."""
        raw = name == RAW
        systems = {RAW: None} if raw else {f'{name}-{seed}': True, untrained(name, seed): False}
        for system, trained in systems.items():
            file = self.workdir / 'scores' / f'{names[-1]}-{system}.npz'
            if file.exists():
                continue
            model = self.model('base' if raw else name, seed)
            params: Any = model.params if trained else None
            if trained is False:
                make = lambda key, model=model: fusmae.init_params(model.config.model, key)  # noqa: E731
                params = jax.jit(make)(jax.random.key(seed))
            splits = {split: self.splits[split] for split in names}
            values = {
                split: ombria_probe.tokens(model, params, self.data, one, inputs)
                for split, one in splits.items()
            }
            trained_heads = ombria_probe.heads(values, self.labels, splits)
            found = {str(key): each[names[-1]] for key, each in trained_heads}
            file.parent.mkdir(parents=True, exist_ok=True)
            storage.write_npz(file, found)
            print(f'{file.name}: {len(found)} heads', flush=True)

    def radar(self, name: str) -> None:
        """Errors of masked optical patches of the test regions, of one run."""
        file = self.workdir / 'radar' / f'{name}.npz'
        if file.exists():
            return
        found = ombria_radar.measure(self.model(name, 0), self.data, self.splits['test'])
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_npz(file, {f'{share}|{k}': x for share, each in found.items() for k, x in each.items()})
        print(f'radar, {name}', flush=True)


def _same_settings(workdir: Path) -> None:
    """Raises InputError if the folder holds runs of other settings."""
    file = workdir / SETTINGS
    now = {'digest': digest(), **{name: digest_later(name) for name in (*COMPARED, *SIZES)}}
    before: Mapping[str, Any] = storage.read_json(file, 'remove the folder') if file.exists() else now
    for name, mark in now.items():
        # A folder may be from before a run was thought of.
        if before.get(name, mark) != mark:
            raise InputError(
                f'{workdir}: holds runs of settings {before[name]} ({name}), these are {mark}; take another '
                '--workdir'
            )
    storage.write_json(file, now)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--npz', required=True, help='the file of image pairs')
    parser.add_argument('--workdir', required=True, type=Path, help='for the data set, runs and scores')
    parser.add_argument('--pairs', default='', help='dataset_sample of the Sentinel downloader')
    parser.add_argument('--images', default='', help='EuroSAT RGB, a folder for each class')
    parser.add_argument('--results', type=Path, default=ROOT / 'benchmarks' / 'results')
    parser.add_argument('--report', action='store_true', help='run nothing, write what there is')
    given = parser.parse_args()

    def everything() -> None:
        compile_less(given.workdir)
        study = Study(given.npz, given.workdir, given.pairs, given.images)
        if not given.report:
            study.run()
        text = ombria_ablations_report.write(
            given.workdir, given.results, study.splits, study.labels, ombria_later_report.text
        )
        print(text)

    return exit_code(everything)


if __name__ == '__main__':
    sys.exit(main())
