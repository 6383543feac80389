"""Checkpoints: `params` (and `ema`), `opt_state` and `meta` apart, saved in the background, verified on load.

`opt_state` holds the optimizer's moments and everything else that a resume needs (step, skip counters,
extra state), so whoever wants the weights reads `params` and `meta` alone. A complete checkpoint gets a
manifest (`manifest.py`); a run that finds its newest one damaged moves it to `damaged_checkpoints/` and goes
on from the one before.
"""

import contextlib
import json
import logging as standard_logging
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from fusmae_jax.checkpoints import manifest
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.parallel.processes import read, together
from fusmae_jax.parallel.rules import path_name
from fusmae_jax.storage import SaveError, absolute, check_name, is_disk_full

FOLDER = 'checkpoints'
WEIGHTS = ('params', 'ema')
MAX_LINES = 20  # of a difference that is printed
# Replicas share the writing of an array only if each has this much of it: to cut an array compiles a small
# program for each device, hundreds for a model, before the first save.
MIN_SLICE_BYTES = 2**16


class Checkpoints:
    """The checkpoints of a working directory."""

    def __init__(self, workdir: epath.PathLike, keep: int = 0, keep_every_steps: int = 0):
        """Opens them for a run, or for reading alone (keep=0).

        A run keeps the newest `keep`, the best, and those at multiples of `keep_every_steps` (0: none). It
        first moves aside what is damaged at the end. A reader moves and deletes nothing: the run may be
        writing at this moment.

        Raises:
            InputError: what is there cannot be read at this moment, or none of it is whole; no checkpoint can
                be kept in such a place.
        """
        check_name(workdir)
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=_val_loss,
            reverse=True,  # orbax keeps the end of the sorted list
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        kept = [policies.LatestN(keep), best]
        kept += [policies.EveryNSteps(keep_every_steps)] if keep_every_steps else []
        self.directory = absolute(workdir) / FOLDER
        self._reader = not keep
        if keep:
            first = jax.process_index() == 0
            # Before orbax lists the folder: it would take a damaged checkpoint for the newest one.
            together(lambda: manifest.set_damaged_aside(self.directory) if first else None)
            logging.get_absl_logger().addFilter(_has_no_orbax_trace)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=policies.AnyPreservationPolicy(kept) if keep else None,
            cleanup_tmp_directories=keep > 0,
            context=_context(),
        )
        if keep:
            # orbax would report steps where `Preemption` reports calls, and a request to stop in between be
            # settled on a call that never comes. It saves what it is given at once, and need not ask.
            self._checkpointer._manager.reached_preemption = lambda step: False
        self._background = ThreadPoolExecutor(1, 'checkpoint')
        self._saving: tuple[int, Future] | None = None
        self._failed = False

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def steps(self) -> list[int]:
        """All complete steps, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def best(self) -> float | None:
        """The lowest held-out loss of the complete checkpoints; None if none of them has one."""
        losses = [_val_loss(checkpoint.metrics or {}) for checkpoint in self._checkpointer.checkpoints]
        return min(filter(math.isfinite, losses), default=None)

    def save(
        self,
        state: dict[str, Any],
        meta: dict[str, Any],
        val_loss: float | None = None,
        seen: bytes = b'',
    ) -> None:
        """Starts a save of the current step.

        Args:
            state: the train state.
            meta: what JSON can hold.
            val_loss: held-out loss, by which the best checkpoint is kept; None if it was not measured.
            seen: the list of the records that the model learns from (`input.seen.Seen`), packed.

        Raises:
            SaveError: this save could not be started, or the one before failed.
        """
        self.wait()
        step = int(read('step', state['step']))
        if self.latest() == step:
            return
        weights, rest = _split(state)
        # As text: orbax sorts the keys of a tree, and the order of the modalities is a part of a model.
        # The number beside it is what orbax looks for; it warns about a tree of text alone.
        packed = {'json': json.dumps(meta | {'step': step}), 'step': step}
        parts = weights | {'opt_state': _without_empty(rest), 'meta': packed}
        if seen:
            parts['seen'] = {'packed': np.frombuffer(seen, np.uint8)}
        # Shapes and types alone: the arrays are given away to the next step.
        arrays = {name: part for name, part in parts.items() if name != 'meta'}
        written = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
        metrics = None if val_loss is None else {'val_loss': val_loss}
        try:
            response = self._checkpointer.save_checkpointables_async(step, parts, force=True, metrics=metrics)
        except Exception as error:
            raise self._failure(step, error) from error
        self._saving = step, self._background.submit(self._complete, step, response, written)

    def _complete(self, step: int, response: Any, written: dict[str, Any]) -> None:
        """Waits for a save, reads it back, then writes its manifest; runs in the background.

        Without the reading back, a save that has lost its arrays on the way, of which orbax only warns, would
        get a manifest that says that all is well.
        """
        response.result()
        if jax.process_index() == 0:
            problems = self._differences(step, written)
            if what := '; '.join(problems[:1]) or manifest.unreadable(self.directory / str(step)):
                raise ValueError(f'since it does not read back as it was written ({what})')
            manifest.write(self.directory / str(step))

    def _failure(self, step: int, error: Exception) -> SaveError:
        self._failed = True
        done = [other for other in manifest.saved_steps(self.directory) if other != step]
        first = (str(error) or repr(error)).splitlines()[0][:200]
        reason = 'the disk is full' if is_disk_full(error) else first
        onward = f'goes on from checkpoint {done[-1]}' if done else 'starts from the beginning'
        return SaveError(
            f'{self.directory}: checkpoint {step} could not be saved, {reason}; '
            f'once that is mended, the same command {onward}'
        )

    def restore(self, abstract: dict[str, Any], step: int) -> dict[str, Any]:
        """The state of a step, laid out as `abstract` says."""
        weights, rest = _split(abstract)
        wanted = weights | {'opt_state': _without_empty(rest)}
        self._check(step, wanted)
        loaded = self._checkpointer.load_checkpointables(step, wanted)
        filled = {name: loaded['opt_state'].get(name, value) for name, value in rest.items()}
        return {name: loaded[name] for name in weights} | filled

    def params(self, abstract: Any, step: int, part: str = 'params') -> Any:
        """The weights alone, or their average (`part='ema'`), verified against the manifest.

        Raises:
            InputError: they are damaged, of another model, or there is no average.
        """
        if part != 'params' and not (self.directory / str(step) / part).exists():
            raise InputError(
                f'{self.directory / str(step)} holds no averaged weights: it was trained with train.ema=0'
            )
        # A run has had its newest checkpoint looked at when it was opened, a reader has not.
        if self._reader and (what := manifest.damage(self.directory / str(step), part)):
            others = [other for other in self.steps() if other != step]
            raise InputError(
                f'{self.directory / str(step)} is damaged: {what}; '
                f'other checkpoints there: {", ".join(map(str, others)) or "none"}'
            )
        self._check(step, {part: abstract})
        return self._checkpointer.load_checkpointables(step, {part: abstract})[part]

    def extra(self, abstract: Any, step: int) -> Any:
        """The extra state of the objective alone; the optimizer's may have another layout than today's."""
        if what := manifest.damage(self.directory / str(step), 'opt_state'):
            raise InputError(f'{self.directory / str(step)} is damaged: {what}')
        with _quiet():
            stored = self._checkpointer.checkpointables_metadata(step).metadata['opt_state']
        problems = difference(abstract, stored.get('extra', {}))
        raise_all(f'{self.directory}: checkpoint {step} belongs to another model', problems)
        context = _context()
        context.pytree.loading.partial_load = True
        with context:
            loaded = self._checkpointer.load_checkpointables(step, {'opt_state': {'extra': abstract}})
        return loaded['opt_state']['extra']

    def meta(self, step: int) -> dict[str, Any]:
        """The configuration, the input contract and the step a checkpoint was written with."""
        return json.loads(self._checkpointer.load_checkpointables(step, {'meta': None})['meta']['json'])

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

    def _check(self, step: int, wanted: dict[str, Any]) -> None:
        """Compares names, shapes and types first: orbax's own message names none of them."""
        problems = self._differences(step, wanted)
        if len(problems) > MAX_LINES:
            problems = [*problems[:MAX_LINES], f'... and {len(problems) - MAX_LINES} more']
        raise_all(f'{self.directory}: checkpoint {step} belongs to another model or optimizer', problems)

    def _differences(self, step: int, wanted: dict[str, Any]) -> list[str]:
        """What differs between the arrays of a checkpoint, as a load lists them, and those wanted."""
        with _quiet():  # orbax warns that the JSON beside the arrays has no shapes
            stored = self._checkpointer.checkpointables_metadata(step).metadata
        problems = []
        for part, tree in wanted.items():
            if stored.get(part) is None:  # orbax's answer where it finds no list of the arrays
                problems.append(f'{part}: not in the checkpoint')
            else:
                problems += [f'{part}/{line}' for line in difference(tree, stored[part])]
        return problems

    def check(self) -> None:
        """Raises SaveError if a save in the background has failed; costs a microsecond, so ask each step."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk; raises SaveError if it failed."""
        if self._saving is None:
            return
        # Forgotten first, so that a failure is raised once and not again by whoever waits next.
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except Exception as error:
            raise self._failure(step, error) from error

    def close(self) -> None:
        """Waits, then releases the checkpointer; a failure that was raised before is not raised again."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
                self._checkpointer.close()


def _has_no_orbax_trace(record: Any) -> bool:
    # orbax logs the stack of each thread in which a save fails; SaveError says the same in a sentence.
    return not (record.exc_info and '/orbax/' in record.pathname)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings of orbax alone out of the log: other threads may have something to say."""

    def passes(record: Any) -> bool:
        return record.levelno >= standard_logging.ERROR or '/orbax/' not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _val_loss(metrics: Mapping[str, float]) -> float:
    """The loss of a checkpoint, by which the best is kept; one that was not measured is the worst."""
    loss = metrics.get('val_loss', math.nan)
    return math.inf if math.isnan(loss) else loss


def _context() -> ocp.Context:
    """How arrays are written."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = MIN_SLICE_BYTES
    return context


def _split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is a checkpointable of its own, and what goes into `opt_state`."""
    weights = {name: state[name] for name in WEIGHTS if name in state}
    return weights, {name: value for name, value in state.items() if name not in WEIGHTS}


def _without_empty(rest: dict[str, Any]) -> dict[str, Any]:
    # orbax cannot store an empty dict, and `extra` is one for objectives without extra state.
    return {name: value for name, value in rest.items() if jax.tree.leaves(value)}


def find(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """The working directory and the step that a path names.

    The path is a working directory, its checkpoints folder (both: no step), or one checkpoint in there. What
    has a checkpoints folder is a working directory, though it be called `checkpoints` or a number itself.
    """
    path = absolute(path)
    workdir, step = path, None
    if (path / FOLDER).is_dir():
        return path, None
    if path.name == FOLDER:
        workdir = path.parent
    elif path.parent.name == FOLDER and path.name.isdecimal():
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


def difference(wanted: Any, stored: Any) -> list[str]:
    """What differs between two trees in names, shapes and types, one line each."""
    leaves = jax.tree_util.tree_leaves_with_path
    left, right = ({path_name(path): leaf for path, leaf in leaves(tree)} for tree in (wanted, stored))
    lines = [f'{name}: not in the checkpoint' for name in left if name not in right]
    lines += [f'{name}: in the checkpoint only' for name in right if name not in left]
    for name in sorted(left.keys() & right.keys()):
        expected, actual = _describe(left[name]), _describe(right[name])
        if expected != actual:
            lines.append(f'{name}: expected {expected}, the checkpoint has {actual}')
    return lines


def _describe(leaf: Any) -> str:
    return f'{leaf.dtype}{list(leaf.shape)}'
