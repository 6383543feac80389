"""The settings of the single commands of a study, from its own."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from fusmae_jax.config.build import build, flatten, from_dict, to_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM, EncoderSettings
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import PAPER_HEAD, Knn, LinearProbe
from fusmae_jax.eval.finetune import command as finetune
from fusmae_jax.eval.finetune.command import settled
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.probe import FEATURES, run_knn, run_linear_probe
from fusmae_jax.run.loop import pretrain as run_pretrain
from fusmae_jax.run.workdir import COMPLETE, FREE
from fusmae_jax.tables.config import StudySystem, Tables

Evaluation = LinearProbe | Knn | Finetune
KINDS: dict[str, type[Evaluation]] = {'linear_probe': LinearProbe, 'knn': Knn, 'finetune': Finetune}
COMMANDS: dict[str, Callable[[Any, epath.Path], int]] = {
    'linear_probe': run_linear_probe,
    'knn': run_knn,
    'finetune': finetune.run_finetune,
}
FILES = {'linear_probe': 'linear', 'knn': 'knn', 'finetune': 'finetune'}  # in the names of what they write
# Settings that change no result: where things lie, and how fast they are read.
PRETRAIN_FREE = (*FREE, 'data.path')
EVALUATION_FREE = (
    *('data.path', 'data.threads', 'data.prefetch', 'parallel'),
    *('encoder.checkpoint', 'encoder.like', 'encoder.name'),
)


def command(config: Tables, task: str, system: str) -> str:
    """How a system is evaluated: bands and shares of classes have nothing to fine-tune."""
    kind = config.tasks[task].command
    alone = config.systems[system].baseline in (BANDS, PRIOR)
    return 'linear_probe' if alone and kind == 'finetune' else kind


def evaluation(config: Tables, task: str, system: str, sensors: tuple[tuple[str, ...], ...]) -> Evaluation:
    """The settings of an evaluation, but for where data and weights lie.

    Args:
        config: the study.
        task: one of its tasks.
        system: one of its systems.
        sensors: the modalities that the system is given in the task.

    Raises:
        InputError: a file, variant or setting that does not exist or cannot be used.
    """
    about, kind = config.tasks[task], config.systems[system]
    where = f'tasks.{task} with systems.{system}'
    values = load_config(about.config, (*about.settings, *kind.evaluate))
    settings: Evaluation = from_dict(KINDS[about.command], values, where)
    if settings.data.kind not in PAPER_HEAD:
        raise InputError(
            f'{where}: data.kind={settings.data.kind!r}; a study is of {" or ".join(PAPER_HEAD)} tasks, run '
            f'`{about.command}` by itself'
        )
    if command(config, task, system) != about.command:
        shared = {name: getattr(settings, name) for name in ('data', 'labels', 'intervals', 'preset')}
        epochs, batch_size = PAPER_HEAD[settings.data.kind]
        settings = LinearProbe(**shared, epochs=epochs, batch_size=batch_size)
    for name in ('features', 'batch_norm'):
        if len(getattr(settings, name, ('',))) != 1:
            raise InputError(f'{where}: {name}={getattr(settings, name)}; a cell shows one, name it')
    if len(settings.labels.fractions) != 1:
        raise InputError(f'{where}: labels.fractions={settings.labels.fractions}; a task has one')
    baselines: tuple[str, ...] = ()
    # The shares of the classes are the same for all sensors.
    if kind.baseline == PRIOR:
        sensors, baselines = sensors[:1], (PRIOR,)
    encoder = dataclasses.replace(settings.encoder, baselines=baselines, modalities=sensors)
    return dataclasses.replace(settings, encoder=encoder)


def pretraining(system: StudySystem, seed: int) -> Config:
    """The settings of a pretraining."""
    return build(load_config(system.pretrain, (*system.settings, f'seed={seed}')))


def encoder(settings: EncoderSettings, kind: StudySystem, checkpoint: str, seed: int) -> EncoderSettings:
    """The settings of an encoder with the weights that a system has."""
    settings = dataclasses.replace(settings, name=kind.label, seed=seed)
    if kind.baseline == RANDOM:
        return dataclasses.replace(settings, checkpoint=RANDOM, like=checkpoint)
    return dataclasses.replace(settings, checkpoint=checkpoint)


def fixed(config: Config | Evaluation, free: tuple[str, ...]) -> dict[str, Any]:
    """The settings that can change a result, by their dotted names."""
    return {
        key: value
        for key, value in flatten(to_dict(config)).items()
        if not any(key == name or key.startswith(f'{name}.') for name in free)
    }


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
    config: Finetune, folder: epath.Path, sweep_folder: epath.Path, sweeps: Sequence[epath.Path]
) -> bool:
    """Evaluates the points of one sweep at the learning rate that is best over all of `sweeps`."""
    finetune.run_finetune(config, folder, points=sweep_folder / finetune.POINTS, rate=settled(sweeps))
    return True


def _share(link: epath.Path, features: epath.Path) -> None:
    """A link where the evaluation looks for features; without links, as in a bucket, it has its own."""
    features.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        with contextlib.suppress(OSError):
            os.symlink(os.path.relpath(features, link.parent), link)
