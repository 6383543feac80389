"""The pretraining loop; the only file that knows data, step, checkpoint, writers and evaluation together."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath

from fusmae_jax import leak
from fusmae_jax import workdir as workdirs
from fusmae_jax.checkpoint import Checkpoints
from fusmae_jax.config import Config
from fusmae_jax.config_build import to_dict
from fusmae_jax.dino_config import DinoConfig
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.eval.during import Pictures, Validation
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_train, open_validation
from fusmae_jax.input.source import LABELS
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.step_log import StepLog
from fusmae_jax.train.dino_setup import make_dino_setup
from fusmae_jax.train.setup import Setup, make_setup
from fusmae_jax.train.state import State, init_state
from fusmae_jax.writers import Writers, progress_bar, trim

COMPLETE = 'COMPLETE'


def pretrain(config: Config, workdir: epath.PathLike) -> int:
    """Trains, or goes on training, in `workdir`; returns the exit code.

    Raises:
        InputError: settings, data and working directory do not fit together.
        DivergedError: `train.max_skips` updates in a row were not finite.
    """
    workdir = epath.Path(workdir)
    source = open_train(config)
    if isinstance(config, DinoConfig):
        setup = make_dino_setup(config, source.contract, len(source))
    else:
        setup = make_setup(config, source.contract, len(source))
    with contextlib.ExitStack() as stack:
        return Run(setup, source, workdir, stack).train()


class Run:
    """One sitting of a pretraining run."""

    def __init__(self, setup: Setup, source: Mixture, workdir: epath.Path, stack: contextlib.ExitStack):
        """What has to be closed, however the run ends, goes onto `stack`."""
        self.setup, self.source, self.workdir, self.stack = setup, source, workdir, stack
        self.config = setup.config
        self.lead = jax.process_index() == 0
        self.sharding = batch_sharding(setup.mesh)
        self.checkpoints = Checkpoints(workdir, self.config.checkpoint.keep)
        stack.callback(self.checkpoints.close)
        self.start = self.checkpoints.latest() or 0
        self.meta = self._checked_meta() if self.start else {}
        held = open_validation(self.config)
        self.evaluate = Validation(setup, held) if held else None
        self.pictures = Pictures(setup, source) if self.config.log.images_every_steps else None
        self.stop_asked = False
        # From the indexes of the data: kept in every checkpoint, so that a test set can be held against it.
        self.seen = leak.union(*(leak.collect(s.path, s.split) for s in source.sources.values()))
        self.packed = leak.to_bytes(self.seen)
        self.best_val: float | None = self.meta.get('best_val')
        if self.lead:
            workdirs.write_config(workdir, self.config)
            trim(workdir / workdirs.SKIPPED, self.start)
        self.writers = Writers(workdir, self.start, self.lead)
        stack.callback(self.writers.close)
        self.log = StepLog(self.config, self.setup.total_steps, self.writers, self._skipped)

    def _checked_meta(self) -> dict[str, Any]:
        """What the newest checkpoint says of its run; raises InputError if this is another one."""
        meta = self.checkpoints.meta(self.start)
        where = f'{self.checkpoints.directory / str(self.start)}'
        workdirs.check_same_run(self.config, meta['config'], where)
        for name, stored, here in (
            ('data fingerprint', meta['contract']['fingerprint'], self.setup.contract.fingerprint),
            ('compute type', meta['dtype'], str(self.setup.dtype)),
        ):
            if stored != here:
                raise InputError(
                    f'{where} belongs to a run with {name} {stored}, this one has {here} '
                    f'(data.path={self.config.data.path}); use another --workdir, or what it was made with'
                )
        return meta

    def train(self) -> int:
        """The loop. Its order - evaluate, save, read, step, log - is what makes a resume exact."""
        if self.start >= self.setup.total_steps:
            print(f'{self.workdir}: finished at step {self.start}; nothing left to train')
            return self._complete(self.start)
        state = self._state()
        compiled = self._compile()
        total, config = self.setup.total_steps, self.config
        self._listen_for_sigterm()
        batches = pipeline.iterate(
            self.source.batches(config.seed, self.sharding),
            self.start,
            total,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        )
        self.stack.callback(batches.close)
        with progress_bar(self.lead) as bar:
            self.log.show(bar, self.start)
            for step, (batch, names) in enumerate(self._on_device(batches), start=self.start):
                if step > self.start:
                    self._between(step, state)
                if self.stop_asked:
                    break
                with jax.transfer_guard('disallow'):
                    state, metrics = compiled(state, batch)
                # Reads the metrics of the step before, while this one runs.
                self.log.add(step + 1, metrics, names)
            self.log.flush()
        return self._finish(state)

    def _state(self) -> State:
        """Fresh, or restored from the newest checkpoint."""
        if not self.start:
            return init_state(self.setup.objective, self.setup.optimizer, self.setup.mesh, self.config.seed)
        print(f'resuming from step {self.start} of {self.setup.total_steps}')
        return self.checkpoints.restore(self.setup.abstract_state(), self.start)

    def _compile(self) -> Any:
        """Compiles the step, and prints what is about to run."""
        abstract = self.setup.abstract_state()['params']
        if self.lead:
            print(parameter_overview.get_parameter_overview(abstract, include_stats=False))
            self._write_card()
        for note in self.setup.notes:
            print(f'data: {note}')
        mesh = self.setup.mesh
        print(
            f'process {jax.process_index()} of {jax.process_count()}: {len(jax.local_devices())} of '
            f'{mesh.size} devices ({mesh.devices.flat[0].device_kind}), mesh data={mesh.shape["data"]} x '
            f'fsdp={mesh.shape["fsdp"]}, {self._own_rows()} of {self.config.train.batch_size} rows a step, '
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

    def _own_rows(self) -> int:
        """Rows of a step that this process reads, of all sets."""
        return sum(len(pipeline.local_rows(self.sharding, count)) for count in self.source.rows.values())

    def _on_device(self, batches: Iterator[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Device batches, one ahead of the step that runs, and the names of their records."""
        ahead = None
        for batch in batches:
            kept = (*LABELS, pipeline.POSITION)
            names = {name: x for name, x in batch.items() if name.rpartition('/')[2] in kept}
            fields = self.setup.objective.fields
            ready = pipeline.to_devices(batch, self.sharding, self.source.rows, fields), names
            if ahead is not None:
                yield ahead
            ahead = ready
        if ahead is not None:
            yield ahead

    def _between(self, step: int, state: State) -> None:
        """What is due between two steps; `state` is that after `step` steps."""
        log, val_loss = self.config.log, None
        due = step % self.config.checkpoint.every_steps == 0
        if self.evaluate and step % log.eval_every_steps == 0:
            val_loss = self._validate(step, state)
        if self.pictures and step % log.images_every_steps == 0:
            self.writers.image(step, 'reconstruction', self.pictures(state['params'], step))
        if due or val_loss is not None:
            self._save(state, val_loss)

    def _save(self, state: State, val_loss: float | None) -> None:
        """Saves, unless the last update was skipped: what is kept must be a good place to go back to."""
        self.log.flush()  # so that no checkpoint is ahead of metrics.jsonl
        if self.log.last.get('skips_in_row'):
            return
        meta = {
            'config': to_dict(self.config),
            'contract': to_dict(self.setup.contract),
            'dtype': str(self.setup.dtype),
            'best_val': self.best_val,
            'loss': self.log.last.get('loss', self.meta.get('loss')),
            'versions': workdirs.versions(),
            'seen': {'digest': leak.digest(self.seen), 'from': self.seen.sources},
        }
        # Through JSON, so that tuples come back from every checkpoint as the same lists.
        self.checkpoints.save(state, json.loads(json.dumps(meta)), val_loss, self.packed)

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
        return self._complete(step)

    def _complete(self, step: int) -> int:
        """Marks the run as finished; also repairs what a kill right after the last save left out."""
        if self.lead and not (self.workdir / COMPLETE).exists():
            self._write_card(self.log.last.get('loss', self.meta.get('loss')))
            (self.workdir / COMPLETE).write_text(f'{step}\n')
        return 0

    def _skipped(self, step: int, values: dict[str, float], names: dict[str, Any]) -> None:
        records = {key: [_plain(x) for x in np.asarray(value)] for key, value in names.items()}
        if self.lead:
            workdirs.note_skip(self.workdir, step, records)
        logging.warning('step %d was not finite and changed nothing; see %s', step, workdirs.SKIPPED)
        if values['skips_in_row'] >= self.config.train.max_skips:
            latest = self.checkpoints.latest()
            saved = 'none' if latest is None else self.checkpoints.directory / str(latest)
            raise DivergedError(
                f'{self.config.train.max_skips} updates in a row were not finite (steps up to {step}). '
                f'Last good checkpoint: {saved}. '
                f'The records are listed in {self.workdir / workdirs.SKIPPED}; try a lower learning rate.'
            )

    def _write_card(self, loss: float | None = None) -> None:
        count = sum(x.size for x in jax.tree.leaves(self.setup.abstract_state()['params']))
        losses = {
            'loss': 'still training' if loss is None else f'{loss:.4f}',
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
                self.stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, ask))
            except ValueError:
                logging.info('not in the main thread: SIGTERM will not save')


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()
