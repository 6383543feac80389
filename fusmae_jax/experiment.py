"""The pretraining loop; the only file that knows data, step, checkpoint, writers and evaluation together."""

import json
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath

from fusmae_jax import workdir as workdirs
from fusmae_jax.checkpoint import Checkpoints
from fusmae_jax.config import Config
from fusmae_jax.config_build import to_dict
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.eval.during import Pictures, Validation
from fusmae_jax.input import pipeline
from fusmae_jax.input.source import LABELS, Source, open_source
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.train.setup import Setup, make_setup
from fusmae_jax.train.state import State, init_state
from fusmae_jax.writers import Writers, progress_bar

COMPLETE = 'COMPLETE'


def pretrain(config: Config, workdir: epath.PathLike) -> int:
    """Trains, or goes on training, in `workdir`; returns the exit code.

    Raises:
        InputError: settings, data and working directory do not fit together.
        DivergedError: `train.max_skips` updates in a row were not finite.
    """
    workdir = epath.Path(workdir)
    source = open_source(config, config.data.train_split)
    setup = make_setup(config, source.contract, len(source))
    workdirs.claim(workdir, config)
    run = Run(setup, source, workdir)
    try:
        return run.train()
    finally:
        run.close()


class Run:
    """One sitting of a pretraining run."""

    def __init__(self, setup: Setup, source: Source, workdir: epath.Path):
        self.setup, self.source, self.workdir = setup, source, workdir
        self.config = setup.config
        self.lead = jax.process_index() == 0
        self.sharding = batch_sharding(setup.mesh)
        self.rows = pipeline.local_rows(self.sharding, self.config.train.batch_size)
        self.checkpoints = Checkpoints(workdir, self.config.checkpoint.keep)
        self.start = self.checkpoints.latest() or 0
        self.writers = Writers(workdir, self.start, self.lead)
        self.evaluate = Validation(setup) if self.config.data.val_split else None
        self.pictures = Pictures(setup, source) if self.config.log.images_every_steps else None
        self.stop_asked = False
        self.last: dict[str, float] = {}
        self.best_val: float | None = None

    def close(self) -> None:
        """Waits for the last save and closes every output."""
        self.writers.close()
        self.checkpoints.close()

    def train(self) -> int:
        """The loop. Its order - evaluate, save, read, step, log - is what makes a resume exact."""
        state = self._state()
        compiled = self._compile()
        total, config = self.setup.total_steps, self.config
        self._listen_for_sigterm()
        batches = pipeline.iterate(
            pipeline.train_batches(self.source, config.seed, config.train.batch_size, self.rows),
            self.start,
            total,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        )
        log = _StepLog(self)
        with progress_bar(self.lead) as bar:
            log.task = bar.add_task(config.name, total=total, completed=self.start, note='')
            log.bar = bar
            for step, (batch, names) in enumerate(self._on_device(batches), start=self.start):
                if step > self.start:
                    self._between(step, state)
                if self.stop_asked:
                    break
                with jax.transfer_guard('disallow'):
                    state, metrics = compiled(state, batch)
                log.add(step + 1, metrics, names)  # reads the metrics of the step before: never waits
            log.flush()
        batches.close()
        return self._finish(state)

    def _state(self) -> State:
        """Fresh, or restored from the newest checkpoint."""
        if not self.start:
            return init_state(self.setup.objective, self.setup.optimizer, self.setup.mesh, self.config.seed)
        meta = self.checkpoints.meta()
        if meta['contract']['fingerprint'] != self.setup.contract.fingerprint:
            raise InputError(
                f'{self.workdir}: the run was trained on data with fingerprint '
                f'{meta["contract"]["fingerprint"]}, but {self.config.data.path} has '
                f'{self.setup.contract.fingerprint}; use the same data or another --workdir'
            )
        self.best_val = meta['best_val']
        print(f'resuming from step {self.start} of {self.setup.total_steps}')
        return self.checkpoints.restore(self.setup.abstract_state())

    def _compile(self) -> Any:
        """Compiles the step, and prints what is about to run."""
        abstract = self.setup.abstract_state()['params']
        if self.lead:
            print(parameter_overview.get_parameter_overview(abstract, include_stats=False, max_lines=80))
            self._write_card({})
        mesh = self.setup.mesh
        print(
            f'process {jax.process_index()} of {jax.process_count()}: {len(jax.local_devices())} of '
            f'{mesh.size} devices ({mesh.devices.flat[0].device_kind}), mesh data={mesh.shape["data"]} x '
            f'fsdp={mesh.shape["fsdp"]}, {len(self.rows)} of {self.config.train.batch_size} rows a step, '
            f'{self.setup.total_steps} steps over {len(self.source):,} records, {self.setup.dtype}'
        )
        begin = time.perf_counter()
        compiled = self.setup.lower().compile()
        memory = compiled.memory_analysis()
        print(
            f'compiled in {time.perf_counter() - begin:.1f} s; a device holds '
            f'{memory.argument_size_in_bytes / 2**20:,.0f} MiB of state and input and '
            f'{memory.temp_size_in_bytes / 2**20:,.0f} MiB of temporaries'
        )
        return compiled

    def _on_device(self, batches: Iterator[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Device batches, one ahead of the step that runs, and the names of their records."""
        ahead = None
        for batch in batches:
            names = {name: batch[name] for name in LABELS if name in batch}
            names[pipeline.POSITION] = batch[pipeline.POSITION]
            fields, size = self.setup.objective.fields, self.config.train.batch_size
            ready = pipeline.to_devices(batch, self.sharding, size, fields), names
            if ahead is not None:
                yield ahead
            ahead = ready
        if ahead is not None:
            yield ahead

    def _between(self, step: int, state: State) -> None:
        """What is due between two steps; `state` is that after `step` steps."""
        log, val_loss = self.config.log, None
        if self.evaluate and step % log.eval_every_steps == 0:
            val_loss = self._validate(step, state)
        if self.pictures and step % log.images_every_steps == 0:
            self.writers.image(step, 'reconstruction', self.pictures(state['params'], step))
        if self.stop_asked or step % self.config.checkpoint.every_steps == 0 or val_loss is not None:
            self._save(state, val_loss)

    def _save(self, state: State, val_loss: float | None) -> None:
        meta = {
            'config': to_dict(self.config),
            'contract': to_dict(self.setup.contract),
            'dtype': str(self.setup.dtype),
            'best_val': self.best_val,
            'versions': workdirs.versions(),
        }
        # Through JSON, so that tuples come back from every checkpoint as the same lists.
        self.checkpoints.save(state, json.loads(json.dumps(meta)), val_loss)

    def _validate(self, step: int, state: State) -> float:
        assert self.evaluate is not None
        values = self.evaluate(state['params'])
        self.writers.scalars(step, values)
        loss = values['val/loss']
        self.best_val = loss if self.best_val is None else min(self.best_val, loss)
        return loss

    def _finish(self, state: State) -> int:
        step, done = int(state['step']), int(state['step']) >= self.setup.total_steps
        val_loss = self._validate(step, state) if done and self.evaluate else None
        self._save(state, val_loss)
        self.checkpoints.wait()
        if not done:
            print(f'stopped on request at step {step}; the same command goes on from there')
            return 0
        if self.pictures:
            self.writers.image(step, 'reconstruction', self.pictures(state['params'], step))
        if self.lead:
            self._write_card(self.last)
            (self.workdir / COMPLETE).write_text(f'{step}\n')
        return 0

    def _write_card(self, last: Mapping[str, float]) -> None:
        count = sum(x.size for x in jax.tree.leaves(self.setup.abstract_state()['params']))
        losses = {
            'loss': f'{last["loss"]:.4f}' if last else 'still training',
            'val_loss': 'not measured' if self.best_val is None else f'{self.best_val:.4f}',
        }
        known = workdirs.versions()
        text = workdirs.model_card(
            self.setup, len(self.source), count, losses, {'code': known['fusmae_jax'], 'jax': known['jax']}
        )
        (self.workdir / 'MODEL_CARD.md').write_text(text)

    def _listen_for_sigterm(self) -> None:
        """A SIGTERM saves between two steps and ends the run with exit code 0.

        Only for a single process; several have to agree on the step first.
        """

        def ask(*_: Any) -> None:
            self.stop_asked = True

        if jax.process_count() == 1:
            try:
                signal.signal(signal.SIGTERM, ask)
            except ValueError:
                logging.info('not in the main thread: SIGTERM will not save')


class _StepLog:
    """Looks at each step's metrics one step late, and writes every `log.every_steps`-th."""

    def __init__(self, run: Run):
        self._run = run
        self._pending: tuple[int, Any, dict[str, Any]] | None = None
        self._since, self._steps = time.perf_counter(), 0
        self.bar: Any = None
        self.task: Any = None

    def add(self, step: int, metrics: Any, names: dict[str, Any]) -> None:
        """Takes over the metrics of `step`, which may still be running."""
        before, self._pending = self._pending, (step, metrics, names)
        if before is not None:
            self._look(*before)

    def flush(self) -> None:
        """Looks at the last step."""
        if self._pending is not None:
            self._look(*self._pending)
            self._pending = None

    def _look(self, step: int, metrics: Any, names: dict[str, Any]) -> None:
        run = self._run
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        run.last = values
        self._steps += 1
        if values['skipped']:
            self._skipped(step, values, names)
        due = step % run.config.log.every_steps == 0 or step == run.setup.total_steps
        if due:
            now = time.perf_counter()
            rate = self._steps * run.config.train.batch_size / (now - self._since)
            self._since, self._steps = now, 0
            run.writers.scalars(step, values | {'images_per_second': rate})
            self.bar.update(self.task, note=f'{rate:,.1f} images/s, loss {values["loss"]:.4f}')
        self.bar.update(self.task, completed=step)

    def _skipped(self, step: int, values: dict[str, float], names: dict[str, Any]) -> None:
        run = self._run
        records = {key: [_plain(x) for x in np.asarray(value)] for key, value in names.items()}
        if run.lead:
            workdirs.note_skip(run.workdir, step, records)
        logging.warning('step %d was not finite and changed nothing; see %s', step, workdirs.SKIPPED)
        if values['skips_in_row'] >= run.config.train.max_skips:
            latest = run.checkpoints.latest()
            saved = 'none' if latest is None else run.checkpoints.directory / str(latest)
            raise DivergedError(
                f'{run.config.train.max_skips} updates in a row were not finite (steps up to {step}). '
                f'Last good checkpoint: {saved}. '
                f'The records are listed in {run.workdir / workdirs.SKIPPED}; try a lower learning rate.'
            )


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()
