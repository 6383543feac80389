"""Fusion x masking: which kind of fusion learns under which masks, on generated and on real pairs.

    python -m benchmarks.fusion_masking --npz=ombria_train.npz --workdir=runs/fusion_masking

Two studies of `configs/tables.py:fusion_masking`, each in a folder of the workdir: `generated`, 2,000 made-up
pairs of Sentinel-1 and Sentinel-2, and `ombria`, the pairs that `ombria_images.py` converts. Every cell is
one pretraining and one linear probe of S1, S2 and both, against untrained weights of the same encoder. A
rerun goes on where the last one stopped.

    python -m benchmarks.fusion_masking --workdir=runs/fusion_masking --report

writes `fusion_masking.md`, `.csv` and `.png` into `--results` again, from what the workdir holds.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import fusion_masking_report, ombria_images
from benchmarks.command import exit_code
from benchmarks.compile_less import compile_less
from benchmarks.ombria_ablation_runs import SENSORS
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.shipped.configs import tables
from fusmae_jax.shipped.data.generate.converted import make
from fusmae_jax.tables.config import StudyArchive, Tables
from fusmae_jax.tables.plan import StudyPlan
from fusmae_jax.tables.run import run_tables

ROOT = Path(__file__).resolve().parents[1]
SETS = ('generated', 'ombria')


def studies(workdir: Path) -> dict[str, Tables]:
    """The settings of both, by the name of their folder."""
    pairs = StudyArchive(str(workdir / 'data' / ombria_images.IMAGES.name / ombria_images.IMAGES.version))
    labels = (f'data.labels={ombria_images.LABEL}', 'intervals.cluster=region')
    return {'generated': tables.fusion_masking(), 'ombria': tables.fusion_masking(pairs, SENSORS, labels)}


def run(npz: str, workdir: Path, names: tuple[str, ...]) -> int:
    """Pretrains and evaluates what is missing; the exit code of the first study that could not do all."""
    if 'ombria' in names:
        ombria_images.write(npz, workdir / 'data')
    codes = [run_tables(studies(workdir)[name], workdir / name, make) for name in names]
    return next(filter(None, codes), 0)


def report(workdir: Path, results: Path) -> str:
    """Writes the table and the figure from what is there; returns the text."""
    plans = {name: StudyPlan(study, workdir / name, make) for name, study in studies(workdir).items()}
    return fusion_masking_report.write(results, plans)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--npz', help='the file of image pairs; not needed with --report')
    parser.add_argument('--workdir', required=True, type=Path, help='for data sets, runs and evaluations')
    parser.add_argument('--results', type=Path, default=ROOT / 'benchmarks' / 'results')
    parser.add_argument('--sets', default=','.join(SETS), help=f'of {", ".join(SETS)}')
    parser.add_argument('--report', action='store_true', help='run nothing, write what there is')
    given = parser.parse_args()
    names = tuple(given.sets.split(','))

    def everything() -> int:
        code = 0
        if wrong := [name for name in names if name not in SETS]:
            raise InputError(f'--sets: {wrong[0]!r}; {nearest(wrong[0], SETS)}')
        if not given.report:
            if 'ombria' in names and not given.npz:
                raise InputError('--npz is missing: give the file of image pairs, or --sets=generated')
            compile_less(given.workdir)
            code = run(given.npz, given.workdir, names)
        print(report(given.workdir, given.results))
        return code

    return exit_code(everything)


if __name__ == '__main__':
    sys.exit(main())
