"""Have the heads of a finished EuroSAT benchmark converged? Other learning rates, and more epochs.

    python benchmarks/eurosat_heads.py --workdir=runs/eurosat

prints top-1 on the validation split with 10 % of the labels of seed 0, from the stored features. The test
split is not opened.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import eurosat_config, eurosat_set  # noqa: E402
from fusmae_jax.encoders.settings import RANDOM  # noqa: E402
from fusmae_jax.encoders.systems import open_system  # noqa: E402
from fusmae_jax.eval import linear_probe  # noqa: E402
from fusmae_jax.eval.features import make_extractor  # noqa: E402
from fusmae_jax.eval.probe import FEATURES  # noqa: E402
from fusmae_jax.eval.task import read_task, subsets, validation  # noqa: E402

RATES, SHARE, SEED = (0.03, 0.1, 0.3, 1.0), 0.1, 0


def tried(workdir: Path) -> Iterator[tuple[str, float]]:
    """Settings in words, and the accuracy."""
    schema = eurosat_set.SCHEMA
    data = str(workdir / 'data' / schema.name / schema.version)
    folder = workdir / f'seed-{SEED}'
    checkpoint = str(folder / 'pretrain')
    config = eurosat_config.frozen(data, checkpoint, SEED, eurosat_config.FULL)['linear']
    task = read_task(config.data)
    part = subsets(config.data, task, SHARE, config.labels.draw, (SEED,))[SEED]
    recipe = linear_probe.Recipe('single_label', label_smoothing=config.label_smoothing)
    judge, swept = validation(config, task), linear_probe.points(RATES, (0.0,), (SEED,))
    for kind, name in ((checkpoint, 'pretrained'), (RANDOM, 'random init')):
        system = open_system(kind, config.encoder)
        extract = make_extractor(system, config.data, ('s2',), config.features, config.encoder)
        train, val = (
            extract(split, folder / 'frozen' / FEATURES)['mean_patch'] for split in ('train', 'val')
        )
        scale = linear_probe.batch_norm(train.values[part])
        for epochs in (config.epochs, 2 * config.epochs):
            order = linear_probe.batch_order(len(part), config.batch_size, epochs)
            heads = linear_probe.train(
                scale(train.values[part]), task.train.labels[part], order, swept, recipe
            )
            for point, rate in enumerate(RATES):
                value = judge(linear_probe.scores(heads, scale(val.values), point))
                yield f'{name}, learning rate {rate:g}, {epochs:g} epochs', value


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--workdir', required=True, type=Path, help='of benchmarks/eurosat.py')
    for words, value in tried(parser.parse_args().workdir):
        print(f'{words}: {value:.4f}')


if __name__ == '__main__':
    main()
