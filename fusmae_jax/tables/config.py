"""The settings of `tables`: data sets, systems, tasks, and how their results stand side by side."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fusmae_jax.config.build import to_dict
from fusmae_jax.config.run import MAX_SEED
from fusmae_jax.config.setting import range_problems, setting
from fusmae_jax.encoders.settings import PRIOR, RANDOM
from fusmae_jax.errors import nearest, raise_all
from fusmae_jax.eval.config import METRICS
from fusmae_jax.input.contract import fingerprint

PER_CLASS, OF_CLASSES = 'ap/', 'ap_classes'
FOLDERS = ('data', 'pretrain', 'features', 'sweeps')  # of a study, beside those of its tasks
STAGES = ('data', 'pretrain', 'evaluate')


@dataclasses.dataclass(frozen=True)
class StudyArchive:
    """A data set: a folder that `convert` wrote, or made-up pairs."""

    path: str = setting('', path=True)  # of the converted data set; '' makes one up
    layout: str = 'bigearthnet_mm'  # of the made-up archive
    pairs: int = setting(0, least=0)
    seed: int = setting(0, least=0)
    workers: int = setting(1, least=1)  # processes that draw the pairs; they change no pixel


@dataclasses.dataclass(frozen=True)
class StudySystem:
    """A row: what turns images into features: one of `pretrain`, `checkpoint`, `beside` and `baseline`."""

    label: str = ''
    pretrain: str = ''  # configs/FILE.py:VARIANT, pretrained here for each seed
    settings: tuple[str, ...] = ()  # of the pretraining, 'key=value' as on the command line
    data: str = ''  # archive that it is pretrained on
    checkpoint: str = setting('', path=True)  # what `encoder.checkpoint` of an evaluation takes
    beside: tuple[str, ...] = ()  # late fusion: systems of different sensors, their features side by side
    baseline: Literal['', 'random', 'bands', 'prior'] = ''
    like: str = ''  # random: the system whose architecture it has
    sensors: tuple[str, ...] = ('s1', 's2')  # that it can read
    together: bool = False  # True: it reads all of its sensors or none
    evaluate: tuple[str, ...] = ()  # settings of its evaluations, such as another pooled feature
    published: str = ''  # its name in published.py


@dataclasses.dataclass(frozen=True)
class StudyTask:
    """An evaluation: one file of settings, and the sensors that are given to the encoder."""

    label: str = ''
    command: Literal['linear_probe', 'knn', 'finetune'] = 'linear_probe'
    config: str = 'configs/linear_probe.py:paper'
    settings: tuple[str, ...] = ()  # 'key=value' as on the command line
    data: str = ''  # archive
    columns: tuple[tuple[str, ...], ...] = (('s1',), ('s2',), ('s1', 's2'))
    systems: tuple[str, ...] = ()  # evaluated on it; empty: all
    published: str = ''  # its name in published.py


@dataclasses.dataclass(frozen=True)
class StudyTable:
    """Systems downwards; tasks, their sensors and metrics sideways."""

    title: str = ''
    systems: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    below: bool = False  # True: a line for each system and task, instead of tasks side by side
    metrics: tuple[str, ...] = ('ap_micro',)  # with `ap_classes`, the mean over `classes`
    classes: tuple[str, ...] = ()
    against: str = ''  # system; its paired differences from the others are listed too
    fusion: bool = False  # the paired gain of all sensors over each one is listed too


@dataclasses.dataclass(frozen=True)
class Tables:
    """A study."""

    archives: Mapping[str, StudyArchive] = dataclasses.field(default_factory=dict)
    systems: Mapping[str, StudySystem] = dataclasses.field(default_factory=dict)
    tasks: Mapping[str, StudyTask] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, StudyTable] = dataclasses.field(default_factory=dict)
    # One pretraining each; untrained weights are drawn by the same
    seeds: tuple[int, ...] = setting((0,), least=0, most=MAX_SEED)
    run: tuple[str, ...] = STAGES  # kinds of stages that may be run; () prints what there is


def digest(config: Tables) -> str:
    """16 hexadecimal digits that change with any setting; `StudyPlan.digest` follows what they name."""
    values = to_dict(config)
    del values['run']
    for archive in values['archives'].values():
        del archive['workers']
    return fingerprint(values)


def seeds_of(config: Tables, system: str) -> tuple[int, ...]:
    """The seeds that a system comes in: all of the study, or one where nothing is drawn."""
    kind = config.systems[system]
    drawn = kind.pretrain or kind.baseline == RANDOM
    drawn = drawn or any(config.systems[name].pretrain for name in kind.beside)
    return config.seeds if drawn else config.seeds[:1]


def columns_of(task: StudyTask, system: StudySystem) -> tuple[tuple[str, ...], ...]:
    """The sensors of a task that a system can be given; several encoders are not fine-tuned as one."""
    if system.baseline == PRIOR:
        return task.columns
    if system.beside and task.command == 'finetune':
        return ()
    known = (names for names in task.columns if set(names) <= set(system.sensors))
    return tuple(names for names in known if not system.together or set(names) == set(system.sensors))


def check(config: Tables) -> None:
    """Raises InputError with every setting that is impossible whatever the data hold."""
    problems = range_problems(config)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        problems.append(f'seeds={config.seeds} must be different whole numbers')
    for kind in config.run:
        if kind not in STAGES:
            problems.append(f'run: {kind!r}; {nearest(kind, STAGES)}')
    for name, archive in config.archives.items():
        if not archive.path and archive.pairs < 1:
            problems.append(f'archives.{name}: give its path, or the number of pairs to make up')
    for name, system in config.systems.items():
        problems += _system(config, f'systems.{name}', system)
    for name, task in config.tasks.items():
        problems += _known(f'tasks.{name}.data', [task.data], config.archives)
        problems += _known(f'tasks.{name}.systems', task.systems, config.systems)
        if not task.columns or not all(task.columns):
            problems.append(f'tasks.{name}.columns={task.columns} must be lists of one modality or more')
        if name in FOLDERS:
            problems.append(f'tasks.{name}: the folder of that name is taken; call it otherwise')
    for name, table in config.tables.items():
        problems += _table(config, f'tables.{name}', table)
    for group in (config.archives, config.systems, config.tasks, config.tables):
        odd = [name for name in group if not re.fullmatch(r'[\w-]+', name)]
        problems += [f'{name!r}: a name is made of letters, digits, _ and -' for name in odd]
    raise_all('config: these settings cannot be used', problems)


def _system(config: Tables, path: str, system: StudySystem) -> list[str]:
    problems = []
    given = [x for x in ('pretrain', 'checkpoint', 'beside', 'baseline') if getattr(system, x)]
    if len(given) > 1:
        problems.append(f'{path}: {" and ".join(given)} exclude each other')
    if system.pretrain:
        problems += _known(f'{path}.data', [system.data], config.archives)
    if system.beside:
        problems += _beside(config, path, system)
    if system.baseline == RANDOM:
        problems += _known(f'{path}.like', [system.like], config.systems)
        like = config.systems.get(system.like)
        if like and not (like.pretrain or like.checkpoint):
            problems.append(f'{path}.like={system.like!r} has no architecture')
    elif system.like:
        problems.append(f'{path}.like={system.like!r} means nothing without baseline={RANDOM!r}')
    return problems


def _beside(config: Tables, path: str, system: StudySystem) -> list[str]:
    problems = _known(f'{path}.beside', system.beside, config.systems)
    parts = {name: config.systems[name] for name in system.beside if name in config.systems}
    for name, part in parts.items():
        if part.beside or part.baseline:
            problems.append(f'{path}.beside: {name!r} is no encoder of its own')
    sensors = [sensor for part in parts.values() for sensor in part.sensors]
    if len(sensors) > len(set(sensors)) or set(sensors) != set(system.sensors):
        problems.append(f'{path}.sensors={system.sensors}: must be those of {system.beside}, each in one')
    return problems


def _table(config: Tables, path: str, table: StudyTable) -> list[str]:
    problems = _known(f'{path}.systems', table.systems, config.systems)
    problems += _known(f'{path}.tasks', table.tasks, config.tasks)
    if table.against:
        problems += _known(f'{path}.against', [table.against], config.systems)
    metrics = [*METRICS['multi_label'], *METRICS['single_label'], OF_CLASSES]
    for name in table.metrics:
        if name not in metrics and not name.startswith(PER_CLASS):
            problems.append(f'{path}.metrics: {name!r}; {nearest(name, metrics)}')
    if (OF_CLASSES in table.metrics) != bool(table.classes):
        problems.append(f'{path}: classes and the metric {OF_CLASSES!r} go together')
    if not (table.systems and table.tasks and table.metrics):
        problems.append(f'{path}: name systems, tasks and metrics')
    return problems


def _known(path: str, names: Sequence[str], there: Mapping[str, Any]) -> list[str]:
    return [f'{path}: {name!r}; {nearest(name, there)}' for name in names if name not in there]
