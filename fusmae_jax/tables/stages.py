"""Stages of a study: what has to be done for one cell, where it is kept, and whether it is still valid.

A stage owns a folder. A mark in there says under which settings it was begun, and whether it is complete; a
stage that is complete under the same settings is never run again, one under other settings is never touched.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.build import flatten
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import fingerprint

MARK = 'stage.json'
MOST = 5  # differences of settings that are told

State = Literal['missing', 'begun', 'complete', 'changed']


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step towards a cell."""

    kind: Literal['data', 'pretrain', 'evaluate']
    folder: epath.Path
    name: str  # the folder within the study
    settings: Mapping[str, Any]  # all that can change its outcome (JSON-able), no paths within the study
    needs: tuple['Stage', ...]  # that must be complete before
    action: Callable[[], bool]  # does or resumes it; False: it was asked to stop and can go on later
    blocked: str = ''  # why it cannot be run, in words

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of its settings and those of what it needs."""
        return fingerprint(self.wanted)

    @property
    def wanted(self) -> dict[str, Any]:
        """What the mark must say."""
        needs = {stage.name: stage.digest for stage in self.needs}
        return json.loads(json.dumps({'settings': self.settings, 'needs': needs}))


def state(stage: Stage) -> State:
    """How far a stage has come.

    Raises:
        InputError: a mark that cannot be read.
    """
    mark = _read(stage)
    if mark is None:
        return 'missing'
    # Under whatever settings: features and points, which it keeps, are each known by their own.
    if stage.kind == 'evaluate' and not mark.get('complete'):
        return 'begun'
    if {name: mark.get(name) for name in ('settings', 'needs')} != stage.wanted:
        return 'changed'
    return 'complete' if mark.get('complete') else 'begun'


def changes(stage: Stage) -> list[str]:
    """What differs between the settings that a stage was begun under and those asked for, in words."""
    mark = _read(stage) or {}
    here, there = flatten(stage.wanted), flatten({name: mark.get(name) for name in ('settings', 'needs')})
    lines = []
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            group, _, name = key.partition('.')
            about = f'what it needs, {name}, has changed' if group == 'needs' else ''
            lines.append(about or f'{name}: made with {there.get(key)!r}, asked for {here.get(key)!r}')
    more = [f'and {len(lines) - MOST} more'] if len(lines) > MOST else []
    return lines[:MOST] + more


def run(stage: Stage) -> bool:
    """Begins or resumes a stage whose settings are those of its mark; returns whether it is complete."""
    if state(stage) == 'changed':
        raise InputError(f'{stage.folder}: made with other settings; remove it to make it anew')
    # Before the work: a folder that was begun under other settings is recognised as such.
    _mark(stage, complete=False)
    if not stage.action():
        return False
    _mark(stage, complete=True)
    return True


def _mark(stage: Stage, complete: bool) -> None:
    stage.folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(stage.folder / MARK, stage.wanted | {'complete': complete})


def _read(stage: Stage) -> dict[str, Any] | None:
    file = stage.folder / MARK
    if not file.exists():
        return None
    mark = storage.read_json(file, 'remove it to run the stage again')
    if not isinstance(mark, dict):
        raise InputError(f'{file}: not the mark of a stage; remove it to run the stage again')
    return mark
