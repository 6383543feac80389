"""One fine-tuning from start to end, saved after every epoch, and what is left of it in its folder.

`result.json` says that it is finished and what the validation split said; `checkpoints/` holds the weights. A
point that was killed goes on from its last epoch, on CPU bit by bit as if nothing had happened, and a
finished one is not run again.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.checkpoints.checkpoints import FOLDER, Checkpoints
from fusmae_jax.errors import InputError
from fusmae_jax.eval.finetune.stored import ENCODER, HEAD
from fusmae_jax.eval.finetune.train import Point, Trainer
from fusmae_jax.eval.metrics import judged
from fusmae_jax.input.fractions import digest
from fusmae_jax.train.state import State

RESULT, TEST_SCORES, VAL_SCORES = 'result.json', 'scores-test.npz', 'scores-val.npz'
Judge = Callable[[np.ndarray], float]  # from the logits of the validation split to its metric


class Trained(NamedTuple):
    """What came out of a point."""

    losses: list[float]  # training loss, mean over each epoch
    steps: list[int]  # after which the validation split was scored
    values: list[float]  # its metric there
    step: int  # whose weights are tested; 0 for a point that diverged
    epoch: int  # that ends there, from 1

    @property
    def value(self) -> float:
        """The metric of the weights that are tested."""
        return self.values[self.steps.index(self.step)] if self.step else -np.inf


def train(trainer: Trainer, train: Any, val: Any, point: Point, judge: Judge, folder: epath.Path) -> Trained:
    """Trains a point, or goes on training it, or reads what it came to.

    Raises:
        InputError: the folder holds a point with other settings; the metric is not defined.
    """
    if (stored := _finished(folder, point)) is not None:
        return stored
    ends = trainer.plan(point).ends
    # History and weights are saved together, so that a kill loses an epoch at most.
    with contextlib.closing(Checkpoints(folder, keep=1)) as checkpoints:
        state, trained, start = _begin(trainer, point, checkpoints)
        for epoch, end in enumerate(ends, start=1):
            if end <= start:
                continue
            state, loss = trainer.advance(state, train, point, start, end)
            start, value = end, None
            if loss is not None and (trainer.config.epoch == 'best' or end == ends[-1]):
                value = judged(
                    point.in_units(trainer.scores(state['params'], val, point)),
                    judge,
                    f'{val.path}, {val.split}',
                )
            if loss is None or value == -np.inf:
                logging.warning('%s: diverged in epoch %d', folder, epoch)
                trained = trained._replace(step=0, epoch=epoch)
                break
            trained = _record(trained, loss, value, end, epoch)
            measured = '' if value is None else f', validation {value:.4f}'
            logging.info('%s: epoch %d of %d, loss %.4f%s', folder, epoch, len(ends), loss, measured)
            _save(checkpoints, state, trained, point)
        checkpoints.wait()
    # Last, when the weights are on disk: it is what says that the point is finished.
    storage.write_json(folder / RESULT, {'about': point.about, 'trained': trained._asdict()})
    return trained


def _begin(trainer: Trainer, point: Point, checkpoints: Checkpoints) -> tuple[State, Trained, int]:
    """State, history and step to go on from."""
    step = checkpoints.latest() or 0
    if not step:
        return trainer.start(point), Trained([], [], [], 0, 0), 0
    meta = checkpoints.meta(step)
    _check_same(meta['about'], point, checkpoints.directory)
    logging.info('%s: going on from step %d', checkpoints.directory, step)
    return checkpoints.restore(trainer.abstract, step), Trained(**meta['trained']), step


def _record(trained: Trained, loss: float, value: float | None, end: int, epoch: int) -> Trained:
    trained = trained._replace(losses=[*trained.losses, loss])
    if value is None:
        return trained
    better = not trained.values or value > max(trained.values)
    trained = trained._replace(steps=[*trained.steps, end], values=[*trained.values, value])
    return trained._replace(step=end, epoch=epoch) if better else trained


def _save(checkpoints: Checkpoints, state: State, trained: Trained, point: Point) -> None:
    # Only an epoch that is better than all before has a value in the eyes of the checkpoints, which keep the
    # best beside the newest: so there are never two that are equally good.
    best = trained.step == int(state['step'])
    meta = {'about': point.about, 'trained': trained._asdict()}
    checkpoints.save(state, json.loads(json.dumps(meta)), -trained.value if best else None)


def _finished(folder: epath.Path, point: Point) -> Trained | None:
    """What a finished point came to; None where none is finished."""
    if not (folder / RESULT).exists():
        return None
    stored = storage.read_json(folder / RESULT, 'remove it')
    _check_same(stored['about'], point, folder / RESULT)
    return Trained(**stored['trained'])


def _check_same(stored: dict[str, Any], point: Point, where: epath.Path) -> None:
    differ = [name for name, value in point.about.items() if stored.get(name) != value]
    if differ:
        lines = (f'{name}: {stored.get(name)!r} there, {point.about[name]!r} here' for name in differ)
        raise InputError(
            f'{where} belongs to another run ({"; ".join(lines)}); use another --workdir, or remove it'
        )


def scores_of(
    trainer: Trainer,
    split: Any,
    step: int,
    folder: epath.Path,
    name: str = TEST_SCORES,
    point: Point | None = None,
) -> np.ndarray | None:
    """The scores of a split, read or computed and stored under a name; None if the weights are gone.

    Numbers to predict are standardised, as the head of the point gives them; errors of maps of numbers are in
    the units of the data, for which the `point` is needed.

    `split`, as `train` and `val` of `train`, is a `Source`, or what reads like one.
    """
    file = folder / name
    about = f'{split.path} {split.split} {split.contract.digest} {step}'
    key = split.contract.key
    about += f' {digest(split.index([key])[key])}'  # scores meet labels by position
    if file.exists():
        with storage.read_npz(file, 'remove it') as stored:
            if str(stored['about']) == about:
                return stored['scores']
    if not has_weights(folder, step):
        return None
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        params = checkpoints.params(trainer.abstract['params'], step)
    scores = trainer.scores(params, split, point)
    storage.write_npz(file, {'scores': scores, 'about': np.array(about)})
    return scores


def has_weights(folder: epath.Path, step: int) -> bool:
    """Whether the weights of a point after a step are still there."""
    return (folder / FOLDER / str(step)).exists()


def forget(folder: epath.Path, weights_only: bool) -> None:
    """Removes the weights of a point that was not settled on; or all that is known of it.

    All: where it is trained anew, scores, encoder and head of before would stand beside other weights.
    """
    if (folder / FOLDER).exists():
        (folder / FOLDER).rmtree()
    for name in () if weights_only else (RESULT, TEST_SCORES, VAL_SCORES, ENCODER, HEAD):
        (folder / name).unlink(missing_ok=True)
