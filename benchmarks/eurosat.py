"""Does pretraining on real images, without labels, help where labels are few?

    python benchmarks/eurosat.py --images=EuroSAT_RGB --workdir=runs/eurosat

Converts EuroSAT RGB (see `eurosat_set.py`), pretrains a small masked autoencoder on its training images, and
reads classes off it with 1 %, 10 % and all of their labels: linear probe, nearest neighbours, fine-tuning;
beside it the same encoder untrained, band statistics, and training from scratch. Writes `eurosat.md`,
`eurosat.csv` and `eurosat.png` into `--results`. A rerun goes on where the last one stopped, and one of a
finished workdir writes the results again. The settings are those of `eurosat_config.py`; their digest is
printed before any training. `--quick` is one seed and fewer steps, with results in the workdir.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import eurosat_config, eurosat_report, eurosat_set  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.eurosat_config import Plan  # noqa: E402
from fusmae_jax import storage  # noqa: E402
from fusmae_jax.config.build import to_dict  # noqa: E402
from fusmae_jax.errors import InputError  # noqa: E402
from fusmae_jax.eval.finetune.command import run_finetune  # noqa: E402
from fusmae_jax.eval.probe import run_knn, run_linear_probe  # noqa: E402
from fusmae_jax.input.contract import fingerprint  # noqa: E402
from fusmae_jax.run import compile_cache  # noqa: E402
from fusmae_jax.run.loop import pretrain  # noqa: E402

FROZEN = {'linear': run_linear_probe, 'knn': run_knn}


def run(images: str, workdir: Path, plan: Plan) -> None:
    """Everything but the report, in order."""
    print(f'settings {eurosat_config.digest(plan)}')
    data = eurosat_set.write(images, workdir / 'data', plan.part)
    with compile_cache.enabled(workdir):
        for seed in plan.seeds:
            folder = workdir / f'seed-{seed}'
            checkpoint = str(folder / 'pretrain')
            once(pretrain, eurosat_config.pretraining(data, seed, plan), folder / 'pretrain', 'pretrain')
            for name, settings in eurosat_config.frozen(data, checkpoint, seed, plan).items():
                once(FROZEN[name], settings, folder / 'frozen', name)
        # Last, since it takes the longest.
        for share, seed in itertools.product(plan.tuned, plan.seeds):
            folder = workdir / f'seed-{seed}'
            settings = eurosat_config.finetuning(data, str(folder / 'pretrain'), seed, plan, share)
            once(run_finetune, settings, eurosat_report.tuning_folder(folder, share), 'finetune')


def once(command: Callable[[Any, Any], int], config: Any, folder: Path, name: str) -> None:
    """Runs a command unless it has finished with these settings; notes how long it took.

    Raises:
        InputError: it was stopped.
    """
    file, settings = folder / eurosat_report.DONE.format(name), fingerprint(to_dict(config))
    if file.exists() and storage.read_json(file, 'remove it')['settings'] == settings:
        return
    begin, processor = time.time(), time.process_time()
    if code := command(config, folder):
        raise InputError(f'{folder}: stopped with the exit code {code}; the same command goes on from there')
    took = {'seconds': time.time() - begin, 'processor_seconds': time.process_time() - processor}
    storage.write_json(file, {'settings': settings} | {name: round(x, 1) for name, x in took.items()})


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--images', required=True, help='the folder with a folder of images for each class')
    parser.add_argument('--workdir', required=True, type=Path, help='for the data set and all runs')
    parser.add_argument('--quick', action='store_true', help='one seed, fewer steps and labels')
    parser.add_argument('--results', type=Path, help='default: benchmarks/results; with --quick the workdir')
    given = parser.parse_args()
    plan = eurosat_config.QUICK if given.quick else eurosat_config.FULL
    results = given.results or (given.workdir if given.quick else ROOT / 'benchmarks' / 'results')

    def everything() -> None:
        run(given.images, given.workdir, plan)
        print(eurosat_report.write(results, given.workdir, plan, given.quick))

    return exit_code(everything)


if __name__ == '__main__':
    sys.exit(main())
