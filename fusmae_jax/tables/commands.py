"""The commands behind the stages, each in a folder of its own."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from fusmae_jax.config.run import Config
from fusmae_jax.eval.evaluation_config import Knn, LinearProbe
from fusmae_jax.eval.finetune import command as finetune
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.finetune.settle import settled
from fusmae_jax.eval.probe_command import FEATURES, run_knn, run_linear_probe
from fusmae_jax.run.loop import pretrain as run_pretrain
from fusmae_jax.run.workdir import COMPLETE

Evaluation = LinearProbe | Knn | Finetune
KINDS: dict[str, type[Evaluation]] = {'linear_probe': LinearProbe, 'knn': Knn, 'finetune': Finetune}
COMMANDS: dict[str, Callable[[Any, epath.Path], int]] = {
    'linear_probe': run_linear_probe,
    'knn': run_knn,
    'finetune': finetune.run_finetune,
}
FILES = {'linear_probe': 'linear', 'knn': 'knn', 'finetune': 'finetune'}  # in the names of what they write


def pretrain(config: Config, folder: epath.Path) -> bool:
    """Trains, or goes on training; False if it was asked to stop before it was done."""
    run_pretrain(config, folder)
    return (folder / COMPLETE).exists()


def evaluate(command: str, config: Any, folder: epath.Path, features: epath.Path) -> bool:
    """Evaluates one system; True, since nothing stops it but its end.

    Args:
        command: a key of KINDS.
        config: its settings.
        folder: its workdir.
        features: where evaluations of this system keep what its encoder gave, so that it is extracted once.
    """
    if command != 'finetune':
        _share(folder / FEATURES, features)
    COMMANDS[command](config, folder)
    return True


def sweep(config: Finetune, folder: epath.Path) -> bool:
    """Fine-tunes one system at every learning rate; True, since nothing stops it but its end."""
    finetune.sweep(config, folder)
    return True


def evaluate_settled(
    config: Finetune, folder: epath.Path, own: epath.Path, every: Sequence[epath.Path]
) -> bool:
    """Evaluates the points of `own`, a sweep, at the learning rate that is best over `every` sweep."""
    finetune.run_finetune(config, folder, points=own / finetune.POINTS, rate=settled(every))
    return True


def _share(link: epath.Path, features: epath.Path) -> None:
    """A link where the evaluation looks for features; without links, as in a bucket, it has its own."""
    features.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        with contextlib.suppress(OSError):
            os.symlink(os.path.relpath(features, link.parent), link)
