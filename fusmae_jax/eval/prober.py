"""Heads of a sweep on frozen features too large to be stored: trained side by side while the encoder runs.

Each step encodes its batch once, and all heads of the sweep (learning rates x weight decays x seeds) learn
from it. What a head is, what it is judged by and where its labels come from is up to the task: maps
(`dense/prober.py`), or whole images read off their tokens (`attentive/prober.py`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from fusmae_jax.config.run import Parallel
from fusmae_jax.eval import linear_probe
from fusmae_jax.eval.dense.features import Features, Reader, scaled
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.linear_probe import BETAS, Points, Scale, Settled
from fusmae_jax.input import pipeline
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fusmae_jax.parallel.rules import path_name

STANDARD_EPS = 1e-6


class Sweep(NamedTuple):
    """Heads side by side, along the first axis of every array."""

    params: Any
    moments: optax.OptState
    rate: Any  # (p,) peaks
    decay: Any  # (p,)


class HeadTask(Protocol):
    """What a kind of head is; the functions of heads are traceable."""

    def source(self, split: str, positions: np.ndarray | None = None) -> Any:
        """Records of a split, or some of them, with TARGETS; as `pipeline.over_split` takes them."""

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of a head."""

    def loss(self, head: Any, features: jax.Array, seen: jax.Array, labels: jax.Array) -> jax.Array:
        """Of a batch of scaled features."""

    def score(self, head: Any, features: jax.Array, seen: jax.Array, labels: jax.Array) -> jax.Array:
        """What a head is judged by, a row a record."""

    def gather(self, scores: np.ndarray, test: bool) -> np.ndarray:
        """What is kept of the scores (heads, records, ...) of a batch; batches are joined."""

    def judge(self, scores: np.ndarray) -> float:
        """The metric that settles the sweep, of the gathered scores of one head on the validation split."""

    def in_units(self, sweep: Any, train: Any) -> Any:
        """Trained heads, side by side, as they are used from then on; `train` is what they learned from."""

    def read_training(self, prober: 'Prober') -> Callable | None:
        """From weights and a batch to the features and labels that heads learn from; None: as they are."""


class Prober:
    """Trains and measures the heads of one arm; every function is compiled once."""

    def __init__(self, config: Any, reader: Reader, task: HeadTask, standardised: bool):
        """`config` has the fields of a sweep, `data` and `encoder`; `standardised` scales the features."""
        self._config, self._reader, self._task = config, reader, task
        self.standardised = standardised
        # Every process probes on its own devices: nothing that it computes depends on the others.
        self._mesh = make_mesh(Parallel(), jax.local_devices())
        self._where = batch_sharding(self._mesh)
        self._batch = -(-config.encoder.batch // self._mesh.size) * self._mesh.size
        self._params = jax.device_put(reader.params, replicated(self._mesh))
        self._swept = linear_probe.points(config.learning_rates, config.weight_decays, config.head_seeds)
        self._splits = {name: task.source(name) for name in (config.data.val_split, config.data.test_split)}

    def __call__(self, positions: np.ndarray) -> tuple[Settled, dict[int, np.ndarray], dict[str, np.ndarray]]:
        """From labelled records to what the sweep came to.

        Returns:
            What was settled on; head seed -> what was gathered of the test split; and what is stored of the
            heads.
        """
        data = self._config.data
        train = self._task.source(data.train_split, positions)
        scale = self._scale(train)
        sweep = self._train(train, scale)
        sweep = sweep._replace(params=self._task.in_units(sweep.params, train))
        values = np.array([self._task.judge(x) for x in self._scores(sweep.params, scale, data.val_split)])
        settled = linear_probe.best(self._swept, values)
        points = np.array([*settled.heads.values()])
        kept = jax.tree.map(lambda x: x[points], sweep.params)
        scores = self._scores(kept, scale, data.test_split)
        stored = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(kept)}
        stored |= {'seed': np.array([*settled.heads]), 'mean': scale.mean, 'std': scale.std}
        return settled, dict(zip(settled.heads, scores)), stored

    def of_subsets(
        self,
        subsets: Mapping[int, np.ndarray],
        stem: str,
        keep: Callable[[int, dict[int, np.ndarray], dict[str, np.ndarray]], None],
    ) -> dict[str, tuple[float, ...]]:
        """Trains and measures on every label subset; returns the rates and decays that were settled on.

        Args:
            subsets: positions of the labelled records, by the seed of their draw.
            stem: what the log calls the heads.
            keep: takes the seed, and of what `__call__` gives the scores and what is stored.
        """
        chosen: list[Settled] = []
        for seed, positions in subsets.items():
            settled, scores, stored = self(positions)
            if settled.at_edge:
                logging.info('%s: settled on the lowest or highest learning rate of the sweep', stem)
            chosen.append(settled)
            keep(seed, scores, stored)
        return {name: tuple(getattr(s, name) for s in chosen) for name in ('learning_rate', 'weight_decay')}

    def _scale(self, train: Any) -> Scale:
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
        read = self.read(self._params, batch)
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

        return self.jit(sums)

    # Apart from the heads, so that the encoder, which takes most of the time to compile, is compiled once for
    # each size of a batch.
    @functools.cached_property
    def read(self) -> Callable:
        """From weights and a batch to features, as they are."""
        return self.jit(lambda params, batch: self._reader.run(params, batch, None))

    @functools.cached_property
    def _read_training(self) -> Callable:
        return self._task.read_training(self) or (
            lambda params, batch: (self.read(params, batch), batch[TARGETS])
        )

    def jit(self, function: Callable, **options: Any) -> Callable:
        """The function compiled for the devices of the probe."""
        compiled = jax.jit(function, **options)

        def run(*arguments: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return compiled(*arguments)

        return run

    def _train(self, train: Any, scale: Scale) -> Sweep:
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
            return jax.vmap(lambda seed: self._task.init(jax.random.key(seed)))(seeds)

        params = make(swept.seed)
        rate, decay = (np.asarray(x, np.float32) for x in (swept.learning_rate, swept.weight_decay))
        moments = jax.vmap(optax.scale_by_adam(*BETAS).init)(params)
        return jax.device_put(Sweep(params, moments, rate, decay), replicated(self._mesh))

    @functools.cached_property
    def _step(self) -> Callable:
        adam = optax.scale_by_adam(*BETAS)

        def step(sweep: Sweep, scale: Scale, read: Features, labels: jax.Array, share: Any) -> Sweep:
            features = scaled(read, scale)

            def one(part: Sweep) -> Sweep:
                grads = jax.grad(self._task.loss)(part.params, features, read.seen, labels)
                moves, moments = adam.update(grads, part.moments, part.params)
                new = jax.tree_util.tree_map_with_path(
                    functools.partial(_updated, rate=part.rate * share, decay=part.decay), part.params, moves
                )
                return part._replace(params=new, moments=moments)

            # One after the other: the scores of all heads at every pixel would have no room.
            return jax.lax.map(one, sweep)

        return self.jit(step, donate_argnums=0)

    def _scores(self, params: Any, scale: Scale, split: str) -> np.ndarray:
        """What is gathered of the scores (heads, records, ...) of a split."""
        test, parts = split == self._config.data.test_split, []
        stream = pipeline.over_split(
            self._splits[split],
            lambda batch: np.asarray(
                self._score(params, scale, self.read(self._params, batch), batch[TARGETS])
            ),
            self._where,
            self._batch,
            self._config.data,
        )
        for rows, scores in stream:
            parts.append(self._task.gather(scores[:, : rows.stop - rows.start], test))
        return np.concatenate(parts, axis=1)

    @functools.cached_property
    def _score(self) -> Callable:
        def run(every: Any, scale: Scale, read: Features, labels: jax.Array) -> jax.Array:
            features = scaled(read, scale)
            return jax.lax.map(lambda head: self._task.score(head, features, read.seen, labels), every)

        return self.jit(run)


def _updated(path: Any, value: jax.Array, move: jax.Array, rate: jax.Array, decay: jax.Array) -> jax.Array:
    """AdamW with the decay of kernels alone."""
    kernel = path[-1].key == 'kernel'
    return value - rate * (move + decay * value if kernel else move)
