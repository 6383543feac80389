"""Checkpoints: `params`, `opt_state` and `meta` apart, saved in the background, checked before a load.

`opt_state` holds the optimizer's moments and everything else that a resume needs (step, skip counters,
extra state), so whoever wants the weights reads `params` and `meta` alone.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.parallel.rules import path_name

FOLDER = 'checkpoints'
MAX_LINES = 20  # of a difference that is printed


class Checkpoints:
    """The checkpoints of a working directory."""

    def __init__(self, workdir: epath.PathLike, keep: int = 0):
        """Opens them for a run, which keeps the newest `keep` and the best, or for reading alone (0).

        A reader deletes nothing: the run may be writing at this moment.
        """
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics['val_loss'],
            reverse=True,  # orbax keeps the end of the sorted list
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        preserve = policies.AnyPreservationPolicy([policies.LatestN(keep), best]) if keep else None
        self.directory = epath.Path(workdir).resolve() / FOLDER
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=preserve,
            cleanup_tmp_directories=keep > 0,
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def steps(self) -> list[int]:
        """All complete steps, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(
        self,
        state: dict[str, Any],
        meta: dict[str, Any],
        val_loss: float | None = None,
        seen: bytes = b'',
    ) -> None:
        """Starts a save of the current step; a failure of the one before surfaces here.

        Args:
            state: the train state.
            meta: what JSON can hold.
            val_loss: held-out loss, by which the best checkpoint is kept.
            seen: the list of the records that the model learns from (`leak.Seen`), packed.
        """
        step = int(state['step'])
        if self.latest() == step:
            return
        rest = {name: value for name, value in state.items() if name != 'params'}
        parts = {'params': state['params'], 'opt_state': _without_empty(rest), 'meta': meta | {'step': step}}
        if seen:
            parts['seen'] = {'packed': np.frombuffer(seen, np.uint8)}
        self._checkpointer.save_checkpointables_async(
            step,
            parts,
            force=True,
            metrics=None if val_loss is None else {'val_loss': val_loss},
        )

    def restore(self, abstract: dict[str, Any], step: int) -> dict[str, Any]:
        """The state of a step, laid out as `abstract` says."""
        rest = {name: value for name, value in abstract.items() if name != 'params'}
        wanted = {'params': abstract['params'], 'opt_state': _without_empty(rest)}
        self._check(step, wanted)
        loaded = self._checkpointer.load_checkpointables(step, wanted)
        return {'params': loaded['params'], **_with_empty(rest, loaded['opt_state'])}

    def params(self, abstract: Any, step: int) -> Any:
        """The weights alone."""
        self._check(step, {'params': abstract})
        return self._checkpointer.load_checkpointables(step, {'params': abstract})['params']

    def meta(self, step: int) -> dict[str, Any]:
        """The configuration, the input contract and the step a checkpoint was written with."""
        return self._checkpointer.load_checkpointables(step, {'meta': None})['meta']

    def seen(self, step: int) -> bytes | None:
        """The packed list of the records that the model has seen; None if the checkpoint has none."""
        with _quiet():
            stored = self._checkpointer.checkpointables_metadata(step).metadata
        if 'seen' not in stored:
            return None
        shape = stored['seen']['packed']
        abstract = {'packed': np.empty(shape.shape, shape.dtype)}
        loaded = self._checkpointer.load_checkpointables(step, {'seen': abstract})
        return np.asarray(loaded['seen']['packed']).tobytes()

    def _check(self, step: int | None, wanted: dict[str, Any]) -> None:
        """Compares names, shapes and types first: orbax's own message names none of them."""
        with _quiet():  # orbax warns that the JSON beside the arrays has no shapes
            stored = self._checkpointer.checkpointables_metadata(step).metadata
        problems = []
        for part, tree in wanted.items():
            problems += [f'{part}/{line}' for line in difference(tree, stored[part])]
        if len(problems) > MAX_LINES:
            problems = [*problems[:MAX_LINES], f'... and {len(problems) - MAX_LINES} more']
        raise_all(f'{self.directory}: checkpoint {step} belongs to another model', problems)

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits, then releases the checkpointer."""
        self._checkpointer.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def difference(wanted: Any, stored: Any) -> list[str]:
    """What differs between two trees in names, shapes and types, one line each."""
    left, right = ({path_name(path): leaf for path, leaf in _leaves(tree)} for tree in (wanted, stored))
    lines = [f'{name}: not in the checkpoint' for name in left if name not in right]
    lines += [f'{name}: in the checkpoint only' for name in right if name not in left]
    for name in sorted(left.keys() & right.keys()):
        expected, found = _describe(left[name]), _describe(right[name])
        if expected != found:
            lines.append(f'{name}: expected {expected}, the checkpoint has {found}')
    return lines


def _leaves(tree: Any) -> Any:
    return jax.tree_util.tree_leaves_with_path(tree)


def _describe(leaf: Any) -> str:
    return f'{leaf.dtype}{list(leaf.shape)}'


def _without_empty(rest: dict[str, Any]) -> dict[str, Any]:
    # orbax cannot store an empty dict, and `extra` is one for objectives without extra state.
    return {name: value for name, value in rest.items() if jax.tree.leaves(value)}


def _with_empty(rest: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    return {name: loaded.get(name, value) for name, value in rest.items()}


def find(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """The working directory and the step that a path names.

    The path is a working directory, its checkpoints folder (both: no step), or one checkpoint in there.
    """
    path = epath.Path(path).resolve()
    workdir, step = path, None
    if path.name == FOLDER:
        workdir = path.parent
    elif path.parent.name == FOLDER and path.name.isdigit():
        workdir, step = path.parent.parent, int(path.name)
    if not (workdir / FOLDER).is_dir():
        raise InputError(f'{path}: no {FOLDER}/ folder here; give the --workdir of a pretraining run')
    return workdir, step


def open_step(path: epath.PathLike, step: int | None = None) -> tuple[Checkpoints, int]:
    """Opens a checkpoint for reading: the one asked for, the one the path names, or the newest."""
    workdir, named = find(path)
    checkpoints = Checkpoints(workdir)
    wanted = step if step is not None else named if named is not None else checkpoints.latest()
    if wanted not in checkpoints.steps():
        there = ', '.join(map(str, checkpoints.steps())) or 'none yet'
        checkpoints.close()
        raise InputError(
            f'{workdir}: no complete checkpoint {"" if wanted is None else wanted}; there: {there}'
        )
    return checkpoints, wanted
