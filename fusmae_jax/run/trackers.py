"""Weights & Biases and MLflow, if `log.writers` names them: the same curve as `metrics.jsonl`.

A thread of its own writes to each, so that a service that is slow or away neither stops nor slows the run.
`metrics.jsonl` stays the record: what of it a tracker has not got yet is sent when it answers again, at the
latest at the start of the next sitting. Where the tools keep their projects, and whether they are online, is
set by their own variables of the environment (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).
"""

import contextlib
import json
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import installed, storage
from fusmae_jax.config.build import flatten, to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.run.workdir import COMPLETE

PROJECT = 'fusmae_jax'  # where the environment names no project or experiment
RETRY_SECONDS = 60.0  # after a failure
CLOSE_SECONDS = 60.0  # that the end of a run waits for what is still to be sent
BACKLOG = 10_000  # lines and pictures that wait at most
REMOTE_SECONDS = 30.0  # between two rewritings of the marks in a bucket
MODULES = {'wandb': 'wandb', 'mlflow': 'mlflow'}  # of a name in `log.writers`, which is also its extra

Line = tuple[int, Mapping[str, float]]  # step, values


class About(NamedTuple):
    """What is said of a run once, when a tracker first hears of it."""

    name: str
    settings: dict[str, Any]  # as config.json has them
    facts: dict[str, Any]  # of the model card, and the working directory


def check(config: Config) -> None:
    """Raises InputError if a package that `log.writers` names is not installed."""
    for name in config.log.writers:
        installed.need(name, f'log.writers={config.log.writers}', MODULES[name])


def about(config: Config, workdir: epath.Path, facts: Mapping[str, Any]) -> About:
    """What a tracker is told of a run; `facts` are those of its model card."""
    return About(config.name, to_dict(config), {'workdir': str(workdir), **facts})


class Tracker(Protocol):
    """One run in a tool; `open` comes first, with what it gave for the same run before."""

    def open(self, key: Mapping[str, str], run: About, folder: str) -> dict[str, str]:
        """Makes the run, or goes on with the one of `key`; returns what names it ({}: it is new)."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        ...

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """A picture, uint8 (rows, columns, 3)."""
        ...

    def close(self, complete: bool) -> None:
        """Sends the rest; `complete`: the run has reached its last step."""
        ...


class Wandb:
    """A run of Weights & Biases. Steps are values of their own: its counter never goes back, ours may."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, key: Mapping[str, str], run: About, folder: str) -> dict[str, str]:
        """As `Tracker.open`; offline runs lie in `folder`/wandb, for `wandb sync`."""
        import wandb

        name = key.get('id') or uuid.uuid4().hex[:8]
        project = os.environ.get('WANDB_PROJECT') or PROJECT
        # Told once: what was changed by hand in the tool stays as it is.
        config = None if key else {**run.settings, 'run': run.facts}
        limits = {'init_timeout': CLOSE_SECONDS, 'login_timeout': CLOSE_SECONDS / 2}
        quiet = wandb.Settings(silent=True, console='off', finish_timeout=CLOSE_SECONDS, **limits)
        self._run = wandb.init(
            project=key.get('project') or project,
            id=name,
            resume='allow',
            name=run.name,
            config=config,
            dir=folder or None,
            settings=quiet,
        )
        self._run.define_metric('*', step_metric='step')
        if not self._run.offline:
            print(f'wandb: {self._run.url}', flush=True)
        return {'id': name, 'project': project}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker.scalars`."""
        self._run.log({'step': step, **values})

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """As `Tracker.image`."""
        import wandb

        self._run.log({'step': step, tag: wandb.Image(image)})

    def close(self, complete: bool) -> None:
        """As `Tracker.close`; a run that was stopped shows as preempted until it goes on."""
        if not complete:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if complete else 1)


class MLflow:
    """A run of MLflow, in the experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ''  # known from the first attempt on: a second one makes no second run

    def open(self, key: Mapping[str, str], run: About, folder: str) -> dict[str, str]:
        """As `Tracker.open`; a run goes on in the store where it began, if the environment names no other."""
        from mlflow import get_tracking_uri
        from mlflow.tracking import MlflowClient

        address = os.environ.get('MLFLOW_TRACKING_URI') or key.get('uri') or get_tracking_uri()
        self._client = MlflowClient(address)
        if key:
            self._id = key['id']
            self._client.update_run(self._id, status='RUNNING')
            return {'id': self._id, 'uri': address}
        if not self._id:
            name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or PROJECT
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._id = self._client.create_run(number, run_name=run.name).info.run_id
        self._describe(run)
        return {'id': self._id, 'uri': address}

    def _describe(self, run: About) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(key, str(value)[:6000]) for key, value in flatten(run.settings).items()]
        tags = [RunTag(key, str(value)) for key, value in run.facts.items()]
        # At most so many in one request.
        for first in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[first : first + 100])
        self._client.log_batch(self._id, tags=tags)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker.scalars`."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """As `Tracker.image`."""
        self._client.log_image(self._id, image, artifact_file=f'{tag}/{step:08d}.png')

    def close(self, complete: bool) -> None:
        """As `Tracker.close`."""
        self._client.set_terminated(self._id, 'FINISHED' if complete else 'KILLED')


KINDS: dict[str, type[Tracker]] = {'wandb': Wandb, 'mlflow': MLflow}


class Follower:
    """Sends the curve of a run to one tracker, behind the run; whatever fails there is one warning."""

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        workdir: epath.Path,
        run: About,
        resumed: bool = False,
        written: Iterable[Line] = (),
    ):
        """Reads what the tracker has got already, and begins with what it lacks.

        Args:
            name: of the tracker.
            tracker: not opened yet.
            workdir: of the run, with the file that says which run of the tracker it is, and how far that got.
            run: told to a tracker that does not know it.
            resumed: whether there is a checkpoint; what begins at step 0 is a new run, with any settings.
            written: the lines of `metrics.jsonl`, in their order.
        """
        self._name, self._tracker, self._about = name, tracker, run
        self._workdir, self._file = workdir, workdir / f'tracker_{name}.json'
        stored = _stored(self._file) if resumed else {}
        self._key: dict[str, str] = stored.get('key', {})
        self._sent: dict[str, int] = stored.get('sent', {})  # metric -> the last step of it that was sent
        self._saved = -math.inf
        self._opened = self._warned = self._full = False
        self._stopping = threading.Event()
        self._waiting: queue.Queue[Any] = queue.Queue()
        self._thread: threading.Thread | None = None
        for step, values in written:
            self.scalars(step, values)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, of which those are left out that an earlier sitting has sent."""
        new = {key: value for key, value in values.items() if step > self._sent.get(key, -1)}
        if new:
            self._put(self._send, step, new)

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """A picture, uint8 (rows, columns, 3)."""
        if step > self._sent.get(tag, -1):
            self._put(self._send_image, step, tag, image)

    def close(self) -> None:
        """Sends the rest, for at most `CLOSE_SECONDS`."""
        if self._thread is None:
            return
        self._stopping.set()
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f'it has not taken everything within {CLOSE_SECONDS:g} s')

    def _put(self, *call: Any) -> None:
        if self._full or self._waiting.qsize() >= BACKLOG:
            # From here on nothing more in this sitting: the next one goes on where the tracker stands.
            self._full = True
            self._warn(f'{BACKLOG:,} lines wait for it')
            return
        self._waiting.put(call)
        # Only now: a finished run that is started again has nothing to say.
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f'tracker {self._name}', daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            while not self._tries(*call):
                # The end of a run does not wait for another attempt.
                if self._stopping.wait(RETRY_SECONDS):
                    return
        self._tries(self._end)

    def _end(self) -> None:
        self._mark()
        self._tracker.close((self._workdir / COMPLETE).exists())

    def _tries(self, action: Any, *arguments: Any) -> bool:
        """Whether a call succeeded."""
        try:
            if not self._opened:
                self._open()
            action(*arguments)
        except Exception as error:
            self._warn(f'{type(error).__name__}: {error}')
            return False
        return True

    def _open(self) -> None:
        folder = '' if storage.is_remote(self._workdir) else str(self._workdir)
        self._key = self._tracker.open(self._key, self._about, folder)
        self._opened = True
        self._mark()

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        # Marked before: a kill in between loses a line of the tracker, and shows none twice.
        self._sent |= dict.fromkeys(values, step)
        self._mark(often=True)
        self._tracker.scalars(step, values)

    def _send_image(self, step: int, tag: str, image: np.ndarray) -> None:
        self._sent[tag] = step
        self._mark(often=True)
        self._tracker.image(step, tag, image)

    def _mark(self, often: bool = False) -> None:
        """Writes which run of the tracker this is, and how far it got; in a bucket not with every line."""
        if often and storage.is_remote(self._file) and time.monotonic() - self._saved < REMOTE_SECONDS:
            return
        storage.write_json(self._file, {'key': self._key, 'sent': self._sent})
        self._saved = time.monotonic()

    def _warn(self, problem: str) -> None:
        if not self._warned:
            logging.warning(
                '%s: %s. The run goes on; metrics.jsonl has everything, and what %s lacks of it is sent when '
                'it answers again, at the latest when the same command is given once more',
                *(self._name, problem, self._name),
            )
        self._warned = True


def _stored(file: epath.Path) -> dict[str, Any]:
    """What an earlier sitting has written; {} where that is nothing, or damaged: no reason to stop a run."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text())
    return {}


def follow(
    config: Config, workdir: epath.Path, facts: Mapping[str, Any], resumed: bool, written: Iterable[Line]
) -> list[Follower]:
    """The trackers that `log.writers` names.

    Args:
        config: of the run.
        workdir: of the run.
        facts: of its model card.
        resumed: whether it goes on from a checkpoint.
        written: the lines that `metrics.jsonl` has by now.
    """
    names = dict.fromkeys(config.log.writers)
    run, lines = about(config, workdir, facts), list(written) if names else []
    return [Follower(name, KINDS[name](), workdir, run, resumed, lines) for name in names]
