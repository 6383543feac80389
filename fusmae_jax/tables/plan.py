"""From the settings of a study to its stages."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath

from fusmae_jax.config import Config
from fusmae_jax.config_build import from_dict, to_dict
from fusmae_jax.config_file import load_config
from fusmae_jax.dino_config import build_any
from fusmae_jax.errors import InputError
from fusmae_jax.eval.evaluation_config import BANDS, PRIOR, RANDOM, Encoder, LinearProbe
from fusmae_jax.eval.systems import AND
from fusmae_jax.input import contract as contracts
from fusmae_jax.tables import commands
from fusmae_jax.tables.commands import KINDS, Evaluation
from fusmae_jax.tables.config import System, Tables, columns_of, seeds_of
from fusmae_jax.tables.stages import Stage, state
from fusmae_jax.workdir import FREE, flatten

# Settings that change no result: where things lie, and how fast they are read.
PRETRAIN_FREE = (*FREE, 'data.path')
EVALUATION_FREE = (
    *('data.path', 'data.threads', 'data.prefetch', 'parallel'),
    *('encoder.checkpoint', 'encoder.like', 'encoder.name'),
)
# (layout, pairs, seed, folder, workers) -> the folder of the data set: makes an archive up and converts it.
Make = Callable[[str, int, int, epath.Path, int], str]


class DataSet(NamedTuple):
    """A data set as the stages that read it need it."""

    path: Callable[[], str]  # of a converted data set
    settings: dict[str, Any]  # of its readers: what it is, where no stage says so
    needs: tuple[Stage, ...]
    blocked: str  # why it cannot be had


class Weights(NamedTuple):
    """Where the weights of a system come from."""

    checkpoint: str
    needs: tuple[Stage, ...]
    blocked: str


class Plan:
    """The stages of a study in a working directory."""

    def __init__(self, config: Tables, workdir: epath.PathLike, make: Make):
        """Reads every file of settings that the study names.

        Raises:
            InputError: a file, variant or setting that does not exist or cannot be used.
        """
        self.config, self.workdir, self._make = config, epath.Path(workdir).absolute(), make
        self._data = {name: self._data_set(name) for name in config.archives}
        self._pretrainings = {
            (name, seed): _pretraining(system, seed)
            for name, system in config.systems.items()
            for seed in config.seeds
            if system.pretrain
        }
        self._evaluations = {
            (task, system): self._evaluation(task, system)
            for task in config.tasks
            for system in config.systems
            if self.sensors(task, system)
        }

    def sensors(self, task: str, system: str) -> tuple[tuple[str, ...], ...]:
        """The sensors that a system is given in a task; none if it has no part in it."""
        about = self.config.tasks[task]
        if about.systems and system not in about.systems:
            return ()
        return columns_of(about, self.config.systems[system])

    def stages(self) -> Iterator[Stage]:
        """The evaluations, each after what it still needs."""
        told: set[str] = set()
        for seed in self.config.seeds:
            for task, system in self._evaluations:
                if seed in seeds_of(self.config, system):
                    last = self.cell(task, system, seed)
                    for stage in (last,) if state(last) == 'complete' else _in_order(last):
                        if stage.name not in told:
                            told.add(stage.name)
                            yield stage

    def command(self, task: str, system: str) -> str:
        """How a system is evaluated: bands and shares of classes have nothing to fine-tune."""
        command = self.config.tasks[task].command
        alone = self.config.systems[system].baseline in (BANDS, PRIOR)
        return 'linear_probe' if alone and command == 'finetune' else command

    def cell(self, task: str, system: str, seed: int) -> Stage:
        """The evaluation of a system in a task, all of its sensors."""
        kind, command = self.config.systems[system], self.command(task, system)
        data, weights = self._data[self.config.tasks[task].data], self._weights(system, seed)
        config, name = self._evaluations[task, system], f'{task}/{system}-{seed}'
        folder, features = self.workdir / name, self.workdir / 'features' / f'{system}-{seed}'
        encoder = _encoder(config.encoder, kind, weights.checkpoint, seed)

        def action() -> bool:
            there = dataclasses.replace(config.data, path=data.path())
            ready = dataclasses.replace(config, data=there, encoder=encoder)
            return commands.evaluate(command, ready, folder, features)

        weighed = kind.baseline or kind.checkpoint or AND.join(kind.beside)
        about = {'command': command, 'seed': seed, 'weights': weighed}
        return Stage(
            kind='evaluate',
            folder=folder,
            name=name,
            settings=about | data.settings | _fixed(config, EVALUATION_FREE),
            needs=(*data.needs, *weights.needs),
            action=action,
            blocked=data.blocked or weights.blocked,
        )

    def _weights(self, system: str, seed: int) -> Weights:
        kind = self.config.systems[system]
        if kind.baseline in (BANDS, PRIOR):
            return Weights(BANDS, (), '')
        if kind.beside:
            parts = [self._weights(name, seed) for name in kind.beside]
            needs = tuple(stage for part in parts for stage in part.needs)
            blocked = next((part.blocked for part in parts if part.blocked), '')
            return Weights(AND.join(part.checkpoint for part in parts), needs, blocked)
        source = kind.like if kind.baseline == RANDOM else system
        if self.config.systems[source].pretrain:
            stage = self._pretrain(source, self.config.seeds[0] if kind.baseline else seed)
            return Weights(str(stage.folder), (stage,), '')
        path = self.config.systems[source].checkpoint
        return Weights(path, (), '' if path else f'systems.{source}.checkpoint is not given')

    def _pretrain(self, system: str, seed: int) -> Stage:
        config, name = self._pretrainings[system, seed], f'pretrain/{system}-{seed}'
        data, folder = self._data[self.config.systems[system].data], self.workdir / name

        def action() -> bool:
            ready = dataclasses.replace(config.data, path=data.path())
            return commands.pretrain(dataclasses.replace(config, data=ready), folder)

        settings = data.settings | _fixed(config, PRETRAIN_FREE)
        return Stage('pretrain', folder, name, settings, data.needs, action, data.blocked)

    def _data_set(self, name: str) -> DataSet:
        archive, folder = self.config.archives[name], self.workdir / 'data' / name
        if archive.path:
            try:
                about = {'contract': contracts.read(archive.path).fingerprint}
            except InputError as error:
                return DataSet(lambda: archive.path, {}, (), str(error))
            return DataSet(lambda: archive.path, about, (), '')
        made = (archive.layout, archive.pairs, archive.seed)

        def action() -> bool:
            self._make(*made, folder, archive.workers)
            return True

        def path() -> str:
            (found,) = (folder / archive.layout).iterdir()
            return str(found)

        settings = dict(zip(('layout', 'pairs', 'seed'), made))
        return DataSet(path, {}, (Stage('data', folder, f'data/{name}', settings, (), action),), '')

    def _evaluation(self, task: str, system: str) -> Evaluation:
        """The settings of an evaluation, but for where data and weights lie."""
        about, kind = self.config.tasks[task], self.config.systems[system]
        where = f'tasks.{task} with systems.{system}'
        values = load_config(about.config, (*about.settings, *kind.evaluate))
        config: Evaluation = from_dict(KINDS[about.command], values, where)
        if self.command(task, system) != about.command:
            shared = {name: getattr(config, name) for name in ('data', 'labels', 'intervals', 'preset')}
            config = LinearProbe(**shared)
        for name in ('features', 'batch_norm'):
            if len(getattr(config, name, ('',))) != 1:
                raise InputError(f'{where}: {name}={getattr(config, name)}; a cell shows one, name it')
        if len(config.labels.fractions) != 1:
            raise InputError(f'{where}: labels.fractions={config.labels.fractions}; a task has one')
        baselines: tuple[str, ...] = ()
        sensors = self.sensors(task, system)
        if kind.baseline == PRIOR:  # the same for all sensors
            sensors, baselines = sensors[:1], (PRIOR,)
        encoder = dataclasses.replace(config.encoder, baselines=baselines, modalities=sensors)
        return dataclasses.replace(config, encoder=encoder)


def _pretraining(system: System, seed: int) -> Config:
    return build_any(load_config(system.pretrain, (*system.settings, f'seed={seed}')))


def _encoder(encoder: Encoder, kind: System, checkpoint: str, seed: int) -> Encoder:
    encoder = dataclasses.replace(encoder, name=kind.label, seed=seed)
    if kind.baseline == RANDOM:
        return dataclasses.replace(encoder, checkpoint=RANDOM, like=checkpoint)
    return dataclasses.replace(encoder, checkpoint=checkpoint)


def _in_order(stage: Stage) -> Iterator[Stage]:
    for needed in stage.needs:
        yield from _in_order(needed)
    yield stage


def _fixed(config: Config | Evaluation, free: tuple[str, ...]) -> dict[str, Any]:
    """The settings that can change a result, by their dotted names."""
    return {
        key: value
        for key, value in flatten(to_dict(config)).items()
        if not any(key == name or key.startswith(f'{name}.') for name in free)
    }
