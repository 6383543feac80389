"""Heads of a sweep on frozen tokens: trained side by side, settled on validation, measured once on test."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusmae_jax.config.run import Parallel
from fusmae_jax.eval import linear_probe
from fusmae_jax.eval.config import metric_of
from fusmae_jax.eval.dense import heads, losses
from fusmae_jax.eval.dense.config import DenseProbe
from fusmae_jax.eval.dense.features import Features, Reader, scaled
from fusmae_jax.eval.dense.metrics import of_confusion
from fusmae_jax.eval.dense.score import confusion, scores
from fusmae_jax.eval.dense.targets import moved, turned
from fusmae_jax.eval.dense.task import MappedSource, map_of
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.linear_probe import BETAS, Points, Scale, Settled
from fusmae_jax.eval.metrics import judged
from fusmae_jax.eval.task import LabelledSet
from fusmae_jax.input import pipeline
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fusmae_jax.parallel.rules import path_name
from fusmae_jax.train.objective import sample_keys

STANDARD_EPS = 1e-6


class Sweep(NamedTuple):
    """Heads side by side, along the first axis of every array."""

    params: Any
    moments: optax.OptState
    rate: Any  # (p,) peaks
    decay: Any  # (p,)


class Prober:
    """Trains and measures the heads of one arm; every function is compiled once."""

    def __init__(self, config: DenseProbe, task: LabelledSet, reader: Reader):
        self._config, self._task, self._reader = config, task, reader
        data, self._size = config.data, map_of(config.data, task.contract).size
        # A pixel has nothing to decode but its bands, which have units.
        self.standardised = config.standardise or reader.fitted is None
        kind = config.head if reader.fitted else 'linear'
        self.head = heads.HeadShape(kind, reader.width, len(task.classes), reader.patch, config.head_width)
        # Every process probes on its own devices: nothing that it computes depends on the others.
        self._mesh = make_mesh(Parallel(), jax.local_devices())
        self._where = batch_sharding(self._mesh)
        self._batch = -(-config.encoder.batch // self._mesh.size) * self._mesh.size
        self._params = jax.device_put(reader.params, replicated(self._mesh))
        self._swept = linear_probe.points(config.learning_rates, config.weight_decays, config.head_seeds)
        self._splits = {
            name: MappedSource(data, name, reader.fields) for name in (data.val_split, data.test_split)
        }

    def __call__(self, positions: np.ndarray) -> tuple[Settled, dict[int, np.ndarray], dict[str, np.ndarray]]:
        """From labelled records to what the sweep came to.

        Returns:
            What was settled on; head seed -> confusion matrices (test records, classes, classes); and what
            is stored of the heads.
        """
        config, data, task = self._config, self._config.data, self._task
        train = MappedSource(data, data.train_split, self._reader.fields, positions)
        scale = self._scale(train)
        sweep = self._train(train, scale)
        name = metric_of(config)
        totals = self._counts(sweep.params, scale, data.val_split).sum(axis=1)

        def metric(counts: np.ndarray) -> float:
            return of_confusion(counts, task.classes)[name]

        values = np.array([judged(x, metric, data.val_split) for x in totals])
        settled = linear_probe.best(self._swept, values)
        points = np.array([*settled.heads.values()])
        kept = jax.tree.map(lambda x: x[points], sweep.params)
        counts = self._counts(kept, scale, data.test_split)
        stored = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(kept)}
        stored |= {'seed': np.array([*settled.heads]), 'mean': scale.mean, 'std': scale.std}
        return settled, dict(zip(settled.heads, counts)), stored

    def _scale(self, train: MappedSource) -> Scale:
        """Mean and deviation of the features of labelled records, over the places with a valid pixel."""
        if not self.standardised:
            return Scale(np.zeros(self._reader.width, np.float32), np.ones(self._reader.width, np.float32))
        count, mean, squares = 0.0, np.zeros(self._reader.width), np.zeros(self._reader.width)
        moments = functools.partial(self._moments, records=len(train))
        stream = pipeline.over_split(
            train, moments, self._where, self._batch, self._config.data, fields=self._reader.fields
        )
        for _, (some, centre, spread) in stream:
            total = count + some
            if some:
                # Sums about a mean join without the difference of large numbers (Chan et al. 1979).
                squares += spread + (centre - mean) ** 2 * count * some / total
                mean += (centre - mean) * some / total
                count = total
        return Scale(
            mean.astype(np.float32), np.sqrt(squares / max(count, 1) + STANDARD_EPS).astype(np.float32)
        )

    def _moments(self, batch: Any, records: int) -> tuple[float, np.ndarray, np.ndarray]:
        # Without the records that fill up the last batch.
        read = self._read(self._params, batch)
        some, mean, spread = jax.device_get(self._sums(read, batch[POSITION] < records))
        return float(some), mean.astype(np.float64), spread.astype(np.float64)

    @functools.cached_property
    def _sums(self) -> Callable:
        def sums(features: Features, counted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            values, seen = features.values, features.seen & counted[:, None, None]
            there = seen[..., None]
            count = jnp.sum(seen, dtype=jnp.float32)
            mean = jnp.sum(jnp.where(there, values, 0), axis=(0, 1, 2)) / jnp.maximum(count, 1)
            return count, mean, jnp.sum(jnp.where(there, values - mean, 0) ** 2, axis=(0, 1, 2))

        return self._jit(sums)

    # Apart from the heads, so that the encoder, which takes most of the time to compile, is compiled once for
    # each size of a batch.
    @functools.cached_property
    def _read(self) -> Callable:
        return self._jit(lambda params, batch: self._reader.run(params, batch, None))

    @functools.cached_property
    def _read_training(self) -> Callable:
        """From weights and a batch to the features and labels that heads learn from."""
        config, names = self._config, (*self._reader.fields, TARGETS)
        if still(config.augment) and not config.rot90:
            return lambda params, batch: (self._read(params, batch), batch[TARGETS])

        def read(params: Any, batch: Any) -> tuple[Features, jax.Array]:
            geometry, turn = sample_keys(jax.random.key(0), batch[POSITION])
            batch = turned(batch, names, turn) if config.rot90 else batch
            keys = None if still(config.augment) else geometry
            return self._reader.run(params, batch, keys), moved(batch[TARGETS], keys, config.augment)

        return self._jit(read)

    def _jit(self, function: Callable, **options: Any) -> Callable:
        compiled = jax.jit(function, **options)

        def run(*arguments: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return compiled(*arguments)

        return run

    def _train(self, train: MappedSource, scale: Scale) -> Sweep:
        """All heads of the sweep, from the same batches in the same order."""
        config = self._config
        devices = self._mesh.size
        size = max(devices, min(config.batch_size, len(train)) // devices * devices)
        steps = max(1, round(config.epochs * len(train) / size))
        rows = pipeline.local_rows(self._where, size)
        batches = pipeline.train_batches(train, 0, size, rows)
        sweep, names = self._fresh(self._swept), (*self._reader.fields, TARGETS)
        data = config.data
        for number, batch in enumerate(
            pipeline.iterate(batches, 0, steps, threads=data.threads, prefetch=data.prefetch)
        ):
            ready = pipeline.to_devices(batch, self._where, {'': size}, names)
            # Half a cosine to 0, as the probes of whole images.
            share = np.float32(0.5 * (1 + np.cos(np.pi * number / steps)))
            sweep = self._step(sweep, scale, *self._read_training(self._params, ready), share)
        return sweep

    def _fresh(self, swept: Points) -> Sweep:
        @jax.jit
        def make(seeds: jax.Array) -> Any:
            return jax.vmap(lambda seed: heads.init(jax.random.key(seed), self.head))(seeds)

        params = make(swept.seed)
        rate, decay = (np.asarray(x, np.float32) for x in (swept.learning_rate, swept.weight_decay))
        moments = jax.vmap(optax.scale_by_adam(*BETAS).init)(params)
        return jax.device_put(Sweep(params, moments, rate, decay), replicated(self._mesh))

    @functools.cached_property
    def _step(self) -> Callable:
        config, adam = self._config, optax.scale_by_adam(*BETAS)

        def step(sweep: Sweep, scale: Scale, read: Features, labels: jax.Array, share: Any) -> Sweep:
            features = scaled(read, scale)

            def objective(head: Any) -> jax.Array:
                logits = scores(head, features, self.head, self._size)
                return losses.loss(logits, labels, config.loss, config.focal_gamma)

            def one(part: Sweep) -> Sweep:
                grads = jax.grad(objective)(part.params)
                moves, moments = adam.update(grads, part.moments, part.params)
                new = jax.tree_util.tree_map_with_path(
                    functools.partial(_updated, rate=part.rate * share, decay=part.decay), part.params, moves
                )
                return part._replace(params=new, moments=moments)

            # One after the other: the scores of all heads at every pixel would have no room.
            return jax.lax.map(one, sweep)

        return self._jit(step, donate_argnums=0)

    def _counts(self, params: Any, scale: Scale, split: str) -> np.ndarray:
        """Confusion matrices (heads, records, classes, classes) of a split; summed on validation."""
        summed, parts = split != self._config.data.test_split, []
        source = self._splits[split]
        stream = pipeline.over_split(
            source,
            lambda batch: np.asarray(
                self._confusion(params, scale, self._read(self._params, batch), batch[TARGETS])
            ),
            self._where,
            self._batch,
            self._config.data,
        )
        for rows, counts in stream:
            counts = counts[:, : rows.stop - rows.start].astype(np.float64 if summed else np.float32)
            parts.append(counts.sum(axis=1, keepdims=True) if summed else counts)
        return np.concatenate(parts, axis=1)

    @functools.cached_property
    def _confusion(self) -> Callable:
        def run(every: Any, scale: Scale, read: Features, labels: jax.Array) -> jax.Array:
            features = scaled(read, scale)
            return jax.lax.map(
                lambda head: confusion(scores(head, features, self.head, self._size), labels), every
            )

        return self._jit(run)


def _updated(path: Any, value: jax.Array, move: jax.Array, rate: jax.Array, decay: jax.Array) -> jax.Array:
    """AdamW with the decay of kernels alone."""
    kernel = path[-1].key == 'kernel'
    return value - rate * (move + decay * value if kernel else move)


def still(augment: Any) -> bool:
    """Whether an augmentation changes nothing."""
    return not (augment.crop or augment.hflip or augment.vflip)
