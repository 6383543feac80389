"""Fine-tuning of one network on one data set: the compiled functions, and what runs them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.eval.finetune import optimizer as optimizers
from fusmae_jax.eval.finetune.adapters import fresh
from fusmae_jax.eval.finetune.config import Finetune, Tuning
from fusmae_jax.eval.finetune.objective import TARGETS, Network, measured, pooled_objective, scorer
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.regression import restored, standardised
from fusmae_jax.input import pipeline
from fusmae_jax.input.source import Source
from fusmae_jax.models import heads
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fusmae_jax.parallel.rules import Params, shardings
from fusmae_jax.train.objective import Objective
from fusmae_jax.train.state import State, abstract_state
from fusmae_jax.train.step import abstract_batch, lower_step, make_step


class Point(NamedTuple):
    """One fine-tuning: how fast, and what from."""

    learning_rate: float
    seed: int
    positions: np.ndarray  # (n,) of the labelled records in the training split
    labels: np.ndarray  # (n, classes) uint8, or (n, targets) float32
    about: dict[str, Any]  # all that decides the outcome, as JSON has it
    scale: Scale | None = None  # of numbers to predict: what the head learns are these, standardised

    @property
    def targets(self) -> np.ndarray:
        """What the loss is given of each labelled record."""
        return self.labels if self.scale is None else standardised(self.labels, self.scale)

    def in_units(self, scores: np.ndarray) -> np.ndarray:
        """What the head says, in the units of the data."""
        return scores if self.scale is None else restored(scores, self.scale)


class TuningPlan(NamedTuple):
    """Steps of a fine-tuning."""

    batch: int
    warmup: int
    ends: tuple[int, ...]  # the step after which each epoch is over


class Examples:
    """Labelled records, by index: image fields and TARGETS."""

    def __init__(self, source: Source, point: Point):
        self._source, self._positions, self._targets = source, point.positions, point.targets

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._source[int(self._positions[index])]
        return {name: record[name] for name in self._source.fields} | {TARGETS: self._targets[index]}


def make_plan(config: Tuning, records: int, devices: int) -> TuningPlan:
    """How many steps of which size; raises InputError if the batch cannot be split over the devices."""
    if config.batch_size % devices:
        nearest = max(devices, round(config.batch_size / devices) * devices)
        raise InputError(
            f'batch_size={config.batch_size} cannot be split over {devices} devices; '
            f'the nearest that can: {nearest}'
        )
    # Of few records one batch is all of them, as many as the devices can share.
    batch = min(config.batch_size, max(devices, records // devices * devices))
    total = max(1, round(config.epochs * records / batch))
    whole = (round(epoch * records / batch) for epoch in range(1, int(config.epochs) + 1))
    ends = sorted({min(max(end, 1), total) for end in whole} | {total})
    return TuningPlan(batch, min(round(config.warmup_epochs * records / batch), total - 1), tuple(ends))


class Learned(NamedTuple):
    """What is learned: the parts in which tasks differ."""

    objective: Objective
    head: Callable[[jax.Array], Any]  # from a key to the parameters of a fresh head
    score: Callable[[Any, Any], jax.Array]  # (params, batch) -> what validation judges, a row a record
    targets: tuple[tuple[int, ...], Any]  # shape and type of TARGETS of one record
    scored: tuple[str, ...] = ()  # fields that `score` reads beside the images


def pooled(net: Network, config: Finetune) -> Learned:
    """A linear head on one pooled feature, judged by its logits, or by standardised numbers."""

    def head(key: jax.Array) -> Any:
        return heads.init_head(key, net.width, net.classes)

    dtype = jnp.float32 if config.data.kind == 'regression' else jnp.uint8
    return Learned(pooled_objective(net, config), head, scorer(net), ((net.classes,), dtype))


class Trainer:
    """Fine-tunes one network with one list of settings; every function is traced and compiled once."""

    def __init__(
        self,
        config: Any,
        net: Network,
        encoder: Any,
        devices: list[jax.Device] | None = None,
        learned: Learned | None = None,
    ):
        """`encoder` are the weights that every point starts from; `devices` are all of them by default.

        `config` has the fields of `Tuning`, `data` and `encoder`; `learned` is a linear head by default.
        """
        self.config, self.net, self._encoder = config, net, encoder
        self.mesh = make_mesh(config.parallel, devices)
        self._sharding = batch_sharding(self.mesh)
        self._learned = learned or pooled(net, config)
        self._objective = self._learned.objective
        self._optimizer = optimizers.make_optimizer(config, net.whole.model.depth)
        self.fields = self._objective.fields
        self.abstract = abstract_state(self._objective, self._optimizer, self.mesh)
        self._eval_batch = -(-config.encoder.batch // self.mesh.size) * self.mesh.size
        # By size of the batch: a few labelled records make a smaller one.
        self._steps: dict[int, Callable] = {}

    def plan(self, point: Point) -> TuningPlan:
        """The steps of a point."""
        return make_plan(self.config, len(point.positions), self.mesh.size)

    def start(self, point: Point) -> State:
        """The state before the first step, laid out as `abstract` says."""
        plan = self.plan(point)
        encoder = jax.device_put(self._encoder, shardings({'encoder': self._encoder}, self.mesh)['encoder'])
        pace = optimizers.pace(point.learning_rate, plan.warmup, plan.ends[-1])
        given = jax.random.key(point.seed), {'seed': jnp.uint32(point.seed)}, pace
        return self._start(encoder, *jax.device_put(given, replicated(self.mesh)))

    @functools.cached_property
    def _start(self) -> Callable:
        def make(encoder: Any, key: jax.Array, extra: Any, pace: optimizers.Pace) -> State:
            # Copies: the state is donated, and the next point starts from the same weights.
            encoder = jax.tree.map(jnp.copy, encoder)
            params = {'encoder': encoder, 'head': self._learned.head(key)}
            params |= fresh(key, encoder, self.config.lora_rank)
            zero = jnp.zeros((), jnp.int32)
            return {
                'step': zero,
                'params': params,
                'opt_state': self._optimizer.init(params)._replace(pace=pace),
                'extra': extra,
                'skips': {'total': zero, 'in_row': zero},
            }

        return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.abstract))

    def advance(
        self, state: State, source: Source, point: Point, start: int, stop: int
    ) -> tuple[State, float | None]:
        """Trains from step `start` to `stop`; the state (the given one is gone) and the mean loss.

        None instead of the loss if `max_skips` updates in a row were not finite.
        """
        size = self.plan(point).batch
        rows = pipeline.local_rows(self._sharding, size)
        batches = pipeline.train_batches(self.examples(source, point), point.seed, size, rows)
        step, losses, skips = self._step(size), [], []
        data = self.config.data
        stream = pipeline.iterate(batches, start, stop, threads=data.threads, prefetch=data.prefetch)
        for batch in stream:
            names = (*self.fields, TARGETS)
            ready = pipeline.to_devices(batch, self._sharding, {'': size}, names)
            state, metrics = step(state, ready)
            losses.append(metrics['loss'])
            skips.append(metrics['skips_in_row'])
            # The skips of the step before are read while this one runs: reading its own would wait for it.
            if len(skips) > 1 and int(skips[-2]) >= self.config.max_skips:
                stream.close()
                return state, None
        if int(skips[-1]) >= self.config.max_skips:
            return state, None
        # A skipped step has no finite loss; its weights were not touched.
        values = np.array(jax.device_get(losses))
        return state, float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float('inf')

    def examples(self, source: Any, point: Point) -> Any:
        """The records that a point learns from, by index."""
        return Examples(source, point)

    def scores(self, params: Params, source: Any, point: Point | None = None) -> np.ndarray:
        """What validation judges, of a split in its order: the logits (records, classes), float32.

        `point` is the one that the parameters are of, for what its head says in other units.
        """
        stream = self.over(source, lambda batch: np.asarray(self._scorer(params, batch)))
        return pipeline.joined([scores for _, scores in stream], len(source))

    def over(self, source: Any, run: Callable[[Any], Any]) -> Iterator[tuple[slice, Any]]:
        """What a function gives for the records of a split, as `scores` reads them; `pipeline.over_split`."""
        names = (*self.fields, *self._learned.scored)
        data = self.config.data
        return pipeline.over_split(source, run, self._sharding, self._eval_batch, data, fields=names)

    def jit(self, function: Callable, **options: Any) -> Callable:
        """The function compiled for the devices of the trainer; every device holds what it gives."""
        compiled = jax.jit(function, out_shardings=replicated(self.mesh), **options)

        def run(*arguments: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return compiled(*arguments)

        return run

    def measured(self, source: Any) -> np.ndarray:
        """Which records of a split have a valid pixel of the sensors that are given: (records,) bool."""
        stream = self.over(source, lambda batch: np.asarray(self._measured(batch)))
        return pipeline.joined([some for _, some in stream], len(source))

    @functools.cached_property
    def _measured(self) -> Callable:
        return self.jit(measured(self.net))

    def _step(self, size: int) -> Callable:
        if size not in self._steps:
            # The rate that make_step reports is not read: the optimizer's own state has it.
            step = make_step(self._objective, self._optimizer, jnp.zeros_like, 0)
            batch = self._batch(size)
            batch |= self._targets(size)
            self._steps[size] = lower_step(step, self.abstract, batch, self.mesh).compile()
        return self._steps[size]

    @functools.cached_property
    def _scorer(self) -> Callable:
        with jax.set_mesh(self.mesh):
            jitted = jax.jit(self._learned.score, out_shardings=replicated(self.mesh))
            batch = self._batch(self._eval_batch)
            batch |= self._targets(self._eval_batch) if self._learned.scored else {}
            return jitted.lower(self.abstract['params'], batch).compile()

    def _targets(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape, dtype = self._learned.targets
        return {TARGETS: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=self._sharding)}

    def _batch(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return abstract_batch(self.net.contract, self.fields, {'': size}, self.mesh)
