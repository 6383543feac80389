"""The settings of the single commands of a study, from its own."""

import dataclasses
from typing import Any

from fusmae_jax.config.build import build, flatten, from_dict, to_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM, Encoder
from fusmae_jax.errors import InputError
from fusmae_jax.eval.evaluation_config import PAPER_HEAD, LinearProbe
from fusmae_jax.run.workdir import FREE
from fusmae_jax.tables.commands import KINDS, Evaluation
from fusmae_jax.tables.config import System, Tables

# Settings that change no result: where things lie, and how fast they are read.
PRETRAIN_FREE = (*FREE, 'data.path')
EVALUATION_FREE = (
    *('data.path', 'data.threads', 'data.prefetch', 'parallel'),
    *('encoder.checkpoint', 'encoder.like', 'encoder.name'),
)


def command(config: Tables, task: str, system: str) -> str:
    """How a system is evaluated: bands and shares of classes have nothing to fine-tune."""
    own = config.tasks[task].command
    alone = config.systems[system].baseline in (BANDS, PRIOR)
    return 'linear_probe' if alone and own == 'finetune' else own


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
    found: Evaluation = from_dict(KINDS[about.command], values, where)
    if command(config, task, system) != about.command:
        shared = {name: getattr(found, name) for name in ('data', 'labels', 'intervals', 'preset')}
        epochs, batch_size = PAPER_HEAD[found.data.kind]
        found = LinearProbe(**shared, epochs=epochs, batch_size=batch_size)
    for name in ('features', 'batch_norm'):
        if len(getattr(found, name, ('',))) != 1:
            raise InputError(f'{where}: {name}={getattr(found, name)}; a cell shows one, name it')
    if len(found.labels.fractions) != 1:
        raise InputError(f'{where}: labels.fractions={found.labels.fractions}; a task has one')
    baselines: tuple[str, ...] = ()
    if kind.baseline == PRIOR:  # the same for all sensors
        sensors, baselines = sensors[:1], (PRIOR,)
    encoder = dataclasses.replace(found.encoder, baselines=baselines, modalities=sensors)
    return dataclasses.replace(found, encoder=encoder)


def pretraining(system: System, seed: int) -> Config:
    """The settings of a pretraining."""
    return build(load_config(system.pretrain, (*system.settings, f'seed={seed}')))


def encoder(own: Encoder, kind: System, checkpoint: str, seed: int) -> Encoder:
    """The settings of an encoder with the weights that a system has."""
    own = dataclasses.replace(own, name=kind.label, seed=seed)
    if kind.baseline == RANDOM:
        return dataclasses.replace(own, checkpoint=RANDOM, like=checkpoint)
    return dataclasses.replace(own, checkpoint=checkpoint)


def fixed(config: Config | Evaluation, free: tuple[str, ...]) -> dict[str, Any]:
    """The settings that can change a result, by their dotted names."""
    return {
        key: value
        for key, value in flatten(to_dict(config)).items()
        if not any(key == name or key.startswith(f'{name}.') for name in free)
    }
