"""Does pretraining on real speckle and real clouds learn from radar what optical images hide?

    python benchmarks/ombria.py --npz=ombria_train.npz --workdir=runs/ombria

Converts OMBRIA (see `ombria_set.py` for the layout of the file), pretrains a small Fus-MAE (XAE) and an MAE
of the optical sensor alone, with as many images in as many steps, on the training regions, and measures on
regions that neither has seen. Writes `ombria.md` and `ombria.csv` into `--results`. A rerun goes on where the
last one stopped. The settings are those of `ombria_config.py`; their digest is printed before any training.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import ombria_config, ombria_flood, ombria_report, ombria_set, ombria_swap  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.ombria_report import FLOOD, MASKED, Line, line  # noqa: E402
from fusmae_jax.encoders.settings import RANDOM, EncoderSettings  # noqa: E402
from fusmae_jax.encoders.systems import open_system  # noqa: E402
from fusmae_jax.eval.intervals import Replicates, difference, intervals  # noqa: E402
from fusmae_jax.run.loop import pretrain  # noqa: E402

RUNS = {'xae': ('s1', 's2'), 'mae_s2': ('s2',)}
INPUTS = (('s1',), ('s2',), ('s1', 's2'))


def run(npz: str, workdir: Path, results: Path, seed: int, steps: int) -> None:
    """Everything, in order."""
    digest = ombria_config.digest(seed, steps)
    print(f'settings {digest}, seed {seed}')
    data = ombria_set.write(npz, workdir / 'data')
    for name, sensors in RUNS.items():
        pretrain(ombria_config.pretraining(name, sensors, data, seed, steps), workdir / name)
    splits = {name: ombria_swap.read_split(data, name) for name in ombria_set.SHARES}
    lines = [*swapped(workdir, data, splits), *flooded(workdir, data, splits, seed)]
    options = f' --seed={seed}' * (seed != 0) + f' --steps={steps}' * (steps != ombria_config.STEPS)
    print(ombria_report.write(results, lines, splits, digest, seed, options, steps))


def swapped(workdir: Path, data: str, splits: dict[str, ombria_swap.Split]) -> list[Line]:
    """Masked optical patches with the true radar image, another one, and none."""
    both, alone = (open_system(str(workdir / name), EncoderSettings()).model for name in RUNS)
    assert both is not None and alone is not None
    errors = ombria_swap.lines(ombria_swap.measure(both, alone, data, splits['test']))
    images = len(splits['test'].region)
    return [line(MASKED, name, '-', 'mse', one, images) for name, one in errors.items()]


def flooded(workdir: Path, data: str, splits: dict[str, ombria_swap.Split], seed: int) -> list[Line]:
    """The probe of single patches, for pretrained and untrained tokens and for raw pixels."""
    paths = {name: str(workdir / name) for name in RUNS}
    settings = EncoderSettings(like=paths['xae'], seed=seed)
    pretrained, untrained = open_system(paths['xae'], settings), open_system(RANDOM, settings)
    alone = open_system(paths['mae_s2'], settings)
    result = []
    for sensors in INPUTS:
        systems = {'pretrained XAE': (pretrained, False), 'random init': (untrained, False)}
        systems['raw pixels'] = (untrained, True)
        if sensors == ('s2',):
            systems['pretrained S2-only MAE'] = (alone, False)
        each: dict[str, Replicates] = {}
        for name, (system, raw) in systems.items():
            parts = (
                ombria_flood.features(system, sensors, raw, data, splits[split])
                for split in ('train', 'val', 'test')
            )
            each[name], rate = ombria_flood.probe(*parts)
            print(f'flood probe, {"+".join(sensors)}, {name}: learning rate {rate:g}')
        first = each['pretrained XAE']
        each |= {
            f'pretrained XAE minus {name}': difference(first, each[name])
            for name in systems
            if each[name] is not first
        }
        images = int(splits['test'].after.sum())
        result += [
            line(FLOOD, name, '+'.join(sensors), 'AP', intervals(one)[ombria_flood.METRIC], images)
            for name, one in each.items()
        ]
    return result


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--npz', required=True, help='the file of image pairs')
    parser.add_argument('--workdir', required=True, type=Path, help='for the data set and the two runs')
    parser.add_argument('--results', type=Path, default=ROOT / 'benchmarks' / 'results')
    parser.add_argument('--seed', type=int, default=0, help='of both runs')
    parser.add_argument('--steps', type=int, default=ombria_config.STEPS)
    given = parser.parse_args()
    return exit_code(lambda: run(given.npz, given.workdir, given.results, given.seed, given.steps))


if __name__ == '__main__':
    sys.exit(main())
