"""The pretraining loop; the only file that knows data, step, checkpoint, writers and evaluation together.

Its order is what makes a resume exact; `Run.train`, `_between` and `_save` say why.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config.run import Config
from fusmae_jax.errors import DamagedRecordError, DivergedError, InputError
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_validation
from fusmae_jax.input.seen import Seen, collect, from_bytes, to_bytes, union
from fusmae_jax.input.source import LABELS
from fusmae_jax.parallel import distributed
from fusmae_jax.parallel.lock import Lock
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.parallel.preemption import Preemption
from fusmae_jax.parallel.processes import read, together
from fusmae_jax.run import compile_cache, labelled_curve, model_card, start, trackers
from fusmae_jax.run.initial import begin
from fusmae_jax.run.profiling import Profiler, Window, parse_window
from fusmae_jax.run.validation import Validation, make_pictures, tell_seen
from fusmae_jax.run.workdir import COMPLETE, SKIPPED, checked_meta, checkpoint_meta, note_skip, write_config
from fusmae_jax.run.writers import StepLog, Writers, curve, names_of_records, progress_bar, trim
from fusmae_jax.storage import SaveError, check_name, explain_full_disk
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.state import State


def pretrain(config: Config, workdir: epath.PathLike, profile: str = '') -> int:
    """Trains, or goes on training, in `workdir`; returns the exit code.

    Where there are several processes, each of them has to call this, before anything touches a device.

    Args:
        config: the run.
        workdir: holds everything that the run writes.
        profile: steps to trace, such as `100:110`; '' traces none.

    Raises:
        InputError: settings, data, working directory and processes do not fit together.
        DivergedError: `train.max_skips` updates in a row were not finite.
    """
    window, workdir = parse_window(profile), epath.Path(workdir)
    distributed.initialize(config.parallel)
    with contextlib.ExitStack() as stack:
        preemption = Preemption(stack)
        stack.enter_context(explain_full_disk(workdir))  # for what is closed at the end
        try:
            with explain_full_disk(workdir):  # before anything below is decided by the kind of error
                check_name(workdir)
                lock, cache = start.lock_workdir(workdir, stack), None
                if config.train.compilation_cache:
                    cache = stack.enter_context(compile_cache.enabled(workdir))
                setup, source = start.open_run(config)
                run = Run(setup, source, workdir, stack, preemption, cache=cache, window=window, lock=lock)
                return run.train()
        except Exception as error:
            # What is wrong with settings, data or losses, all processes find out together, and all end. What
            # only one of them meets (a full disk, a damaged record, a bug) would leave the others waiting.
            alone = isinstance(error, SaveError | DamagedRecordError)
            alike = isinstance(error, InputError | DivergedError) and not alone
            if alike or jax.process_count() == 1:
                raise
            distributed.abandon(error)


class Run:
    """One sitting of a pretraining run."""

    def __init__(
        self,
        setup: Setup,
        source: Mixture,
        workdir: epath.Path,
        stack: contextlib.ExitStack,
        preemption: Preemption,
        *,
        cache: compile_cache.CompileCache | None = None,
        window: Window | None = None,
        lock: Lock | None = None,
    ):
        """Opens, or makes, what `workdir` holds.

        Args:
            setup: the parts of the run.
            source: its training records.
            workdir: where it writes.
            stack: closes what has to be closed, however the run ends.
            preemption: whether the run was asked to stop.
            cache: to be sealed when a program was compiled.
            window: steps to trace.
            lock: of `workdir`, in the first process.
        """
        self.setup, self.source, self.workdir, self.config = setup, source, workdir, setup.config
        self.stack, self.preemption = stack, preemption
        self.cache, self.window, self.lock = cache, window, lock
        self.lead = jax.process_index() == 0
        self.sharding = batch_sharding(setup.mesh)
        start.check_storage_is_shared(workdir)
        self._find_checkpoint()
        held = together(lambda: open_validation(self.config))
        self.evaluate = Validation(setup, held) if held else None
        self.pictures = make_pictures(setup, source)
        self.labelled = together(lambda: start.make_labelled(setup))
        self.source_weights = begin.open_initial(setup) if self.config.init.from_ and not self.start else None
        self.seen = self._records_seen()
        together(lambda: tell_seen(held, self.seen) if self.lead else None)
        self.packed = to_bytes(self.seen)
        self.check: Callable[[Any, int], None] | None = None  # of the replicas of the parameters
        self.goodput = start.make_goodput(workdir, setup)
        # Only now: whatever was refused above has left the files of earlier sittings as they were.
        if self.lead:
            write_config(workdir, self.config)
            if self.start < setup.total_steps:  # the last checkpoint of a finished run was damaged
                (workdir / COMPLETE).unlink(missing_ok=True)
            trim(workdir / SKIPPED, self.start)
        self.writers = self._open_writers()
        self.log = StepLog(
            self.config, self.setup.total_steps, self.writers, self._skipped, self.goodput.scalars
        )

    def _find_checkpoint(self) -> None:
        """Where the run goes on from, and what is known of it there."""
        settings = self.config.checkpoint
        self.checkpoints = Checkpoints(self.workdir, settings.keep, settings.keep_every_steps)
        self.stack.callback(self.checkpoints.close)
        self.saved = start.newest_step(self.checkpoints)
        self.start = self.saved or 0
        self.meta = checked_meta(self.checkpoints, self.start, self.setup) if self.start else {}
        self.initial = self.meta.get('init')  # what the run started from, if not from random weights
        self.good = self.meta.get('good', self.saved)  # newest checkpoint that no skipped update precedes
        self.late = False  # whether a save is due after the next update that is not skipped
        # Of what is there, not of what was: a checkpoint that was damaged may have had a better one.
        self.best_val = self.checkpoints.best()

    def _open_writers(self) -> Writers:
        """Where the curve goes; trackers get what they lack of it."""
        writers = Writers(self.workdir, self.start, self.lead)
        self.stack.callback(writers.close)
        if self.lead:
            facts = model_card.facts(self.setup, len(self.source))
            written = curve(self.workdir)
            writers.follow(trackers.follow(self.config, self.workdir, facts, bool(self.start), written))
        return writers

    def _records_seen(self) -> Seen:
        """What a test set is held against, kept in every checkpoint; also what initial weights have seen."""
        sources = self.source.sources.values()
        seen = together(lambda: union(*(collect(s.path, s.split) for s in sources)))
        if self.source_weights:
            return union(seen, begin.seen_of(self.source_weights))
        if self.config.init.from_ and (packed := self.checkpoints.seen(self.start)):
            return from_bytes(packed, f'{self.workdir}: checkpoint {self.start}')
        return seen

    def train(self) -> int:
        """The loop: evaluate, save, read, step, log."""
        if self.start >= self.setup.total_steps:
            self._say(f'{self.workdir}: finished at step {self.start}; nothing left to train')
            return self._complete(self.start)
        with self.goodput.phase('restore' if self.start else 'compile'):
            state = self._state()
        start.print_overview(self.setup, self.source)
        if self.lead:
            model_card.write(self.workdir, self.setup, len(self.source), None, self.best_val, self.initial)
        with self.goodput.phase('compile'):
            start.trust_kernels(self.setup)
            compiled, self.check = start.compile_step(self.setup)
            if self.cache is not None:
                self.cache.seal()
        total, config = self.setup.total_steps, self.config
        batches = pipeline.iterate(
            self.source.batches(config.seed, self.sharding),
            self.start,
            total,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        )
        self.stack.callback(batches.close)
        self.goodput.starts_at(self.start)
        profiler, metrics = Profiler(self.workdir, self.window), None
        self.stack.callback(profiler.close)
        with progress_bar(self.lead) as bar, self.goodput.phase('step'):
            if self.labelled and not self.start:
                self._ask_labels(0, state)  # what the curve starts from
            self.log.show(bar, self.start)
            ready = self.goodput.waits(self._on_device(batches))
            for step, (batch, names) in enumerate(ready, start=self.start):
                # What is due after `step` steps comes before the next one, which overwrites the donated
                # state. Right after a resume nothing is due: it was done before the checkpoint was saved.
                if step > self.start:
                    self._between(step, state)
                # Asked at the same place by all processes, so that they agree on the step they stop after;
                # after what was due, so that the resumed run need not do that again.
                if self.preemption.reached():
                    break
                # Nothing may move between host and device unseen: it would wait for the step before.
                with profiler.step(step + 1, metrics), jax.transfer_guard('disallow'):
                    state, metrics = compiled(state, batch)
                # The call above returns at once. The metrics of the step *before* are read here, while this
                # one runs: to read its own would leave the device idle until the host asks for the next.
                self.log.add(step + 1, metrics, names)
                self.goodput.reached(step + 1)
                # A save that failed in the background, or a lock that is lost, ends the run now, not at the
                # next save, hours later.
                self.checkpoints.check()
                if self.lock:
                    self.lock.check()
            self.log.flush()
            profiler.close(metrics)  # what follows is no step
        return self._finish(state)

    def _state(self) -> State:
        """Fresh, or restored from the newest checkpoint."""
        if self.source_weights:
            given, self.initial = begin.begin(self.setup, self.source_weights, self.workdir)
            self.source_weights = None  # the host need not keep them
            return self.setup.init_state(given)
        if not self.start:
            return self.setup.init_state()
        self._say(f'resuming from step {self.start} of {self.setup.total_steps}')
        if self.initial:
            self._say(
                f'init.from={self.config.init.from_} is not read again: the checkpoint has what came of it'
            )
        return self.checkpoints.restore(self.setup.abstract_state(), self.start)

    def _say(self, text: str) -> None:
        if self.lead:
            print(text)

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
        log, checkpoint, val_loss = self.config.log, self.config.checkpoint, None
        # First whether the replicas agree: nothing shall be evaluated or saved of ones that do not.
        if self.check and step % checkpoint.checksum_every_steps == 0:
            self.check(state['params'], step)
        if self.evaluate and step % log.eval_every_steps == 0:
            val_loss = self._validate(step, state)
        if self.pictures and step % log.images_every_steps == 0:
            self._draw(step, state)
        if self.labelled and step % log.knn.every_steps == 0:
            self._ask_labels(step, state)
        # Last the checkpoint: it takes the held-out loss along, and a resume from it evaluates nothing again.
        # The metrics known by now are those of the step before; `_save` waits for those of the last one.
        due = self.late and not self.log.last['skips_in_row']
        if due or step % checkpoint.every_steps == 0 or val_loss is not None:
            self._save(state, val_loss)

    def _save(self, state: State, val_loss: float | None, last: bool = False) -> None:
        """Saves; after a skipped update only at the end of a sitting, where all would be lost otherwise.

        A checkpoint on the way must be a good place to go back to, and may wait for the next good update.
        Then the held-out loss of this one is that of no checkpoint, and cannot be the best.

        Args:
            state: after the last step.
            val_loss: its held-out loss; None if it was not measured now.
            last: whether the sitting ends here.
        """
        self.log.flush()  # whether the last update was skipped decides below
        self.writers.flush()  # so that no checkpoint is ahead of metrics.jsonl
        with self.goodput.phase('checkpoint'):
            step = int(read('step', state['step']))
            # By our own count: what is on disk at this moment may differ between the processes.
            skips = bool(self.log.last.get('skips_in_row'))
            self.late = skips and not last
            if self.late or step == self.saved:
                return
            self.good = self.good if skips else step
            if val_loss is not None:
                self.best_val = val_loss if self.best_val is None else min(self.best_val, val_loss)
            meta = checkpoint_meta(self.setup, self.seen, self.best_val, self._loss(), self.good)
            meta |= {'init': self.initial} if self.initial else {}
            self.checkpoints.save(state, meta, val_loss, self.packed)
            self.saved = step

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.log.flush()  # waits for the step that still runs: its time is none of the evaluation
        with self.goodput.phase('evaluation'):
            yield

    def _loss(self) -> float:
        """Of the last step; NaN if it was not measured."""
        loss = self.log.last.get('loss', self.meta.get('loss'))
        return math.nan if loss is None else loss

    def _validate(self, step: int, state: State) -> float | None:
        """The held-out loss; None if it was not measured, or is not finite."""
        assert self.evaluate is not None
        with self._evaluating():
            values = self.evaluate(state['params'])
        self.writers.scalars(step, values)
        loss = values['val/loss']
        return loss if math.isfinite(loss) else None

    def _ask_labels(self, step: int, state: State) -> None:
        """The accuracy on a labelled set, and the curve of it so far as a figure."""
        assert self.labelled is not None
        with self._evaluating():
            self.writers.scalars(step, self.labelled(state['params']))
            self.writers.flush()
            if self.lead:
                labelled_curve.draw(self.workdir, self.config)

    def _draw(self, step: int, state: State) -> None:
        assert self.pictures is not None
        with self._evaluating():
            self.writers.image(step, 'reconstruction', self.pictures(state['params'], step))

    def _finish(self, state: State) -> int:
        step = int(read('step', state['step']))
        done = step >= self.setup.total_steps
        if self.check and step > self.start:
            self.check(state['params'], step)  # a sitting may end before it was due, and this is what stays
        val_loss = self._validate(step, state) if done and self.evaluate else None
        if done and self.labelled:
            self._ask_labels(step, state)
        self._save(state, val_loss, last=True)
        with self.goodput.phase('checkpoint'):
            self.checkpoints.wait()
        self._say(self.goodput.summary())
        if not done:
            self._say(f'stopped on request at step {step}; the same command goes on from there')
            return self.config.checkpoint.preempt_exit_code
        if self.pictures:
            self._draw(step, state)
        return self._complete(step)

    def _complete(self, step: int) -> int:
        """Marks the run as finished; also repairs what a kill right after the last save left out."""
        complete = self.workdir / COMPLETE
        if self.lead and not complete.exists():
            model_card.write(
                self.workdir, self.setup, len(self.source), self._loss(), self.best_val, self.initial
            )
            complete.write_text(f'{step}\n')
        return 0

    def _skipped(self, step: int, values: dict[str, float], names: dict[str, Any]) -> None:
        records = names_of_records(names)
        if self.lead:
            note_skip(self.workdir, step, records)
        logging.warning('step %d was not finite and changed nothing; see %s', step, SKIPPED)
        if values['skips_in_row'] >= self.config.train.max_skips:
            raise DivergedError(
                f'{self.config.train.max_skips} updates in a row were not finite (steps up to {step}). '
                f'Last good checkpoint: {self._last_good() or "none"}. '
                f'The records are listed in {self.workdir / SKIPPED}; try a lower learning rate.'
            )

    def _last_good(self) -> epath.Path | None:
        """The newest checkpoint that was not saved amid skipped updates, as far as it is still there."""
        steps = self.checkpoints.steps()
        good = [step for step in steps if step <= (self.good or 0)] or steps
        return self.checkpoints.directory / str(good[-1]) if good else None
