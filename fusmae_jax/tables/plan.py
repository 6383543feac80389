"""The plan of a study: from its settings to its stages."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeGuard

from etils import epath

from fusmae_jax.encoders.load import AND, several
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM
from fusmae_jax.encoders.systems import content
from fusmae_jax.errors import InputError
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import fingerprint
from fusmae_jax.tables import recipes
from fusmae_jax.tables.config import Tables, columns_of, digest, seeds_of
from fusmae_jax.tables.recipes import Evaluation
from fusmae_jax.tables.stages import Stage, state

SWEEPS = 'sweeps'
# (layout, pairs, seed, folder, workers) -> the folder of the data set: makes an archive up and converts it.
Make = Callable[[str, int, int, epath.Path, int], str]


class StudyData(NamedTuple):
    """A data set as the stages that read it need it."""

    path: Callable[[], str]  # of a converted data set
    settings: dict[str, Any]  # of its readers: what it is, where no stage says so
    needs: tuple[Stage, ...]
    blocked: str  # why it cannot be had


class SystemWeights(NamedTuple):
    """Where the weights of a system come from."""

    checkpoint: str
    needs: tuple[Stage, ...]
    blocked: str


class StudyPlan:
    """The stages of a study in a working directory."""

    def __init__(self, config: Tables, workdir: epath.PathLike, make: Make):
        """Reads every file of settings that the study names.

        Raises:
            InputError: a file, variant or setting that does not exist or cannot be used.
        """
        self.config, self.workdir, self._make = config, epath.Path(workdir).absolute(), make
        self._data = {name: self._data_set(name) for name in config.archives}
        self._known: dict[str, list[str]] = {}  # checkpoint -> what tells its content
        self._pretrainings = {
            (name, seed): recipes.pretraining(system, seed)
            for name, system in config.systems.items()
            for seed in config.seeds
            if system.pretrain
        }
        self._evaluations = {
            (task, system): recipes.evaluation(config, task, system, self.sensors(task, system))
            for task in config.tasks
            for system in config.systems
            if self.sensors(task, system)
        }
        for task in config.tasks:
            configs = (c for (name, _), c in self._evaluations.items() if name == task)
            if len({c.learning_rates for c in configs if _shares_rate(c)}) > 1:
                raise InputError(f'tasks.{task}: one sweep settles all systems, give them one learning_rates')

    def sensors(self, task: str, system: str) -> tuple[tuple[str, ...], ...]:
        """The sensors that a system is given in a task; none if it has no part in it."""
        about = self.config.tasks[task]
        if about.systems and system not in about.systems:
            return ()
        return columns_of(about, self.config.systems[system])

    def stages(self) -> Iterator[Stage]:
        """The evaluations, each after what it still needs."""
        yielded: set[str] = set()
        # All systems of the first seed before any of the second, so that a study shows whole tables early.
        for seed in self.config.seeds:
            for task, system in self._evaluations:
                if seed in seeds_of(self.config, system):
                    last = self.cell(task, system, seed)
                    # A finished evaluation is valid whatever has become of what it once needed.
                    for stage in (last,) if state(last) == 'complete' else _in_order(last):
                        if stage.name not in yielded:
                            yielded.add(stage.name)
                            yield stage

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any setting that can change a number, of any stage."""
        every = {
            stage.name: dict(stage.settings)
            for task, system in self._evaluations
            for seed in seeds_of(self.config, system)
            for stage in _in_order(self.cell(task, system, seed))
        }
        return fingerprint({'study': digest(self.config), 'stages': every})

    def cell(self, task: str, system: str, seed: int) -> Stage:
        """The evaluation of a system in a task, all of its sensors."""
        command = recipes.command(self.config, task, system)
        name = f'{task}/{system}-{seed}'
        folder, features = self.workdir / name, self.workdir / 'features' / f'{system}-{seed}'
        if not _shares_rate(self._evaluations[task, system]):
            return self._stage(
                task, system, seed, name, lambda ready: recipes.evaluate(command, ready, folder, features)
            )
        sweep, sweeps = self._sweep(task, system, seed).folder, self._sweeps(task)
        folders = [stage.folder for stage in sweeps]
        return self._stage(
            *(task, system, seed, name),
            lambda ready: recipes.evaluate_settled(ready, folder, sweep, folders),
            sweeps,
        )

    def _sweeps(self, task: str) -> tuple[Stage, ...]:
        """The sweeps that settle the learning rate of a task: of every system that can be had."""
        every = (
            self._sweep(task, system, seed)
            for (name, system), config in self._evaluations.items()
            if name == task and _shares_rate(config)
            for seed in seeds_of(self.config, system)
        )
        # One that cannot be had must not keep the others from being settled.
        return tuple(stage for stage in every if not stage.blocked)

    def _sweep(self, task: str, system: str, seed: int) -> Stage:
        name = f'{SWEEPS}/{task}/{system}-{seed}'
        return self._stage(task, system, seed, name, lambda ready: recipes.sweep(ready, self.workdir / name))

    def _stage(
        self,
        task: str,
        system: str,
        seed: int,
        name: str,
        action: Callable[[Any], bool],
        needs: tuple[Stage, ...] = (),
    ) -> Stage:
        """A stage of a cell; its action is given the settings with the data and weights in place."""
        data, weights = self._data[self.config.tasks[task].data], self._weights(system, seed)
        config, kind = self._evaluations[task, system], self.config.systems[system]
        # Where things lie is filled in only when the stage runs: no path is among its settings.
        encoder = recipes.encoder(config.encoder, kind, weights.checkpoint, seed)

        def ready() -> bool:
            there = dataclasses.replace(config.data, path=data.path())
            return action(dataclasses.replace(config, data=there, encoder=encoder))

        about = {
            'command': recipes.command(self.config, task, system),
            'seed': seed,
            'weights': self._source(system),
        }
        return Stage(
            kind='evaluate',
            folder=self.workdir / name,
            name=name,
            settings=about | data.settings | recipes.fixed(config, recipes.EVALUATION_FREE),
            needs=(*data.needs, *weights.needs, *needs),
            action=ready,
            blocked=data.blocked or weights.blocked,
        )

    def _source(self, system: str) -> str:
        """What tells weights that no stage of the study makes: their content, wherever they lie."""
        kind = self.config.systems[system]
        names = (system, *kind.beside, *([kind.like] if kind.like else []))
        paths = [self.config.systems[name].checkpoint for name in names]
        contents = [part for path in paths if path for part in self._contents(path)]
        return ' '.join([kind.baseline, *contents]) if contents else kind.baseline

    def _contents(self, path: str) -> list[str]:
        if path not in self._known:
            self._known[path] = [content(part) for part in several(path) or [path]]
        return self._known[path]

    def _weights(self, system: str, seed: int) -> SystemWeights:
        kind = self.config.systems[system]
        if kind.baseline in (BANDS, PRIOR):
            return SystemWeights(BANDS, (), '')
        if kind.beside:
            parts = [self._weights(name, seed) for name in kind.beside]
            needs = tuple(stage for part in parts for stage in part.needs)
            blocked = next((part.blocked for part in parts if part.blocked), '')
            return SystemWeights(AND.join(part.checkpoint for part in parts), needs, blocked)
        source = kind.like if kind.baseline == RANDOM else system
        if self.config.systems[source].pretrain:
            stage = self._pretrain(source, self.config.seeds[0] if kind.baseline else seed)
            return SystemWeights(str(stage.folder), (stage,), '')
        path = self.config.systems[source].checkpoint
        return SystemWeights(path, (), '' if path else f'systems.{source}.checkpoint is not given')

    def _pretrain(self, system: str, seed: int) -> Stage:
        config, name = self._pretrainings[system, seed], f'pretrain/{system}-{seed}'
        data, folder = self._data[self.config.systems[system].data], self.workdir / name

        def action() -> bool:
            ready = dataclasses.replace(config.data, path=data.path())
            return recipes.pretrain(dataclasses.replace(config, data=ready), folder)

        settings = data.settings | recipes.fixed(config, recipes.PRETRAIN_FREE)
        return Stage('pretrain', folder, name, settings, data.needs, action, data.blocked)

    def _data_set(self, name: str) -> StudyData:
        archive, folder = self.config.archives[name], self.workdir / 'data' / name
        if archive.path:
            try:
                about = {'contract': contracts.read(archive.path).digest}
            except InputError as error:
                return StudyData(lambda: archive.path, {}, (), str(error))
            return StudyData(lambda: archive.path, about, (), '')
        made = (archive.layout, archive.pairs, archive.seed)

        def action() -> bool:
            self._make(*made, folder, archive.workers)
            return True

        def path() -> str:
            (version,) = (folder / archive.layout).iterdir()
            return str(version)

        settings = dict(zip(('layout', 'pairs', 'seed'), made))
        return StudyData(path, {}, (Stage('data', folder, f'data/{name}', settings, (), action),), '')


def _shares_rate(config: Evaluation) -> TypeGuard[Finetune]:
    """Whether the learning rate is settled over all systems of a task, once all of them are trained."""
    return isinstance(config, Finetune) and config.settle == 'all' and len(config.learning_rates) > 1


def _in_order(stage: Stage) -> Iterator[Stage]:
    for needed in stage.needs:
        yield from _in_order(needed)
    yield stage
