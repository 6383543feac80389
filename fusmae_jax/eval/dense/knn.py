"""The command `dense_knn`: a class for each pixel from the labels of the nearest tokens. Nothing is trained.

A bank holds tokens of labelled records, each with the shares of the classes among the labelled pixels under
it. A token of another image is given the shares of its k nearest there, by the cosine s, weighted with
exp(s / temperature) (as whole images by `knn`; for tokens see Balazevic et al. 2023, arXiv 2306.01667). The
shares are brought to the grid of the labels by bilinear interpolation, and the largest is the class.

Neither k nor the temperature is settled on anything; the validation split is not read.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Array, Float

from fusmae_jax.config.run import Parallel
from fusmae_jax.errors import InputError
from fusmae_jax.eval import cells
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.dense.bank import Sample, labelled
from fusmae_jax.eval.dense.config import DenseKnn, check
from fusmae_jax.eval.dense.convolution import resized
from fusmae_jax.eval.dense.features import Features, Reader, open_reader, scaled
from fusmae_jax.eval.dense.metrics import segmentation
from fusmae_jax.eval.dense.rows import system_fields
from fusmae_jax.eval.dense.score import confusion
from fusmae_jax.eval.dense.task import MappedSource, map_of, open_maps, prior
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.knn import Bank, make_bank, votes
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.prober import STANDARD_EPS
from fusmae_jax.eval.task import LabelledSet, entrants
from fusmae_jax.input import pipeline
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh, replicated

NAME = 'dense_knn'
QUERIES, BLOCK = 1024, 8192  # tokens that are compared at once, and those of the bank


class KnnArm(NamedTuple):
    """A system with one choice of sensors."""

    neighbours: 'Neighbours'
    fields: dict[str, Any]  # of its rows
    baseline: bool


def run_dense_knn(config: DenseKnn, workdir: epath.PathLike) -> int:
    """Maps the test split by nearest tokens and writes a row for each metric; returns the exit code 0.

    Into the workdir: `rows-dense_knn.jsonl`; `differences-dense_knn.jsonl`, the paired differences from the
    baselines.

    Raises:
        InputError: settings, checkpoint and data do not fit together, or there are fewer tokens than k.
    """
    workdir = epath.Path(workdir)
    check(config)
    task, drawn = open_maps(config)
    cells.evaluate(
        config,
        task,
        drawn,
        _arms(config, task),
        lambda arm, parts, about: _cell(config, task, arm, parts, about),
        lambda parts, about: prior(config, task, parts, about),
        workdir,
        NAME,
    )
    return 0


def _arms(config: DenseKnn, task: LabelledSet) -> Iterator[KnnArm]:
    data, contract = config.data, task.contract
    size = map_of(data, contract).size
    method = {
        'method': NAME,
        'preset': config.preset,
        'head_seeds': (),
        'batch_norm': config.standardise,
        'sweep': {
            'k': (float(config.k),),
            'temperature': (config.temperature,),
            'bank': (float(config.bank),),
            'bank_seed': (float(config.bank_seed),),
        },
        'settled_on': None,
    }
    for entrant in entrants(config):
        reader = open_reader(config, contract, entrant, None, size)
        fields = entrant.fields | system_fields(reader.fitted, entrant.modalities, contract) | method
        fields['pooled'] = f'{reader.words}, nearest tokens'
        yield KnnArm(Neighbours(config, task, reader), fields, entrant.baseline)


def _cell(
    config: DenseKnn,
    task: LabelledSet,
    arm: KnnArm,
    parts: Mapping[int, np.ndarray],
    about: Mapping[str, Any],
) -> Cell:
    """All label subsets of one arm at one fraction."""
    measures = {
        (seed, 0): segmentation(arm.neighbours(positions), task.classes) for seed, positions in parts.items()
    }
    runs = cells.summarise(measures, task.test.clusters, config.intervals)
    return Cell({**about, **arm.fields, 'chosen': {}}, runs, arm.baseline)


class Neighbours:
    """Maps the test split by the tokens of labelled records; every function is compiled once."""

    def __init__(self, config: DenseKnn, task: LabelledSet, reader: Reader):
        self._config, self._reader, self._classes = config, reader, len(task.classes)
        self._size = map_of(config.data, task.contract).size
        self._mesh = make_mesh(Parallel(), jax.local_devices())
        self._where = batch_sharding(self._mesh)
        self._batch = -(-config.encoder.batch // self._mesh.size) * self._mesh.size
        self._params = jax.device_put(reader.params, replicated(self._mesh))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Confusion matrices (records, classes, classes) of the test split, from labelled records."""
        scale, bank = self._bank(positions)
        parts = [
            counts[: rows.stop - rows.start]
            for rows, counts in self._over(
                self._source(self._config.data.test_split),
                lambda batch: np.asarray(
                    self._score(bank, scale, self._read(self._params, batch), batch[TARGETS])
                ),
            )
        ]
        return np.concatenate(parts)

    def _source(self, split: str, positions: np.ndarray | None = None) -> MappedSource:
        return MappedSource(self._config.data, split, self._reader.fields, positions)

    def _over(self, source: MappedSource, run: Callable[[Any], Any]) -> Iterator[tuple[slice, Any]]:
        return pipeline.over_split(source, run, self._where, self._batch, self._config.data)

    def _bank(self, positions: np.ndarray) -> tuple[Scale, Bank]:
        """The tokens that are compared with, and how all of them are scaled."""
        config = self._config
        sample = Sample(config.bank, config.bank_seed)
        stream = self._over(
            self._source(config.data.train_split, positions),
            lambda batch: jax.device_get(self._offer(self._read(self._params, batch), batch[TARGETS])),
        )
        for rows, offered in stream:
            sample.add(positions[rows], *(x[: rows.stop - rows.start] for x in offered))
        values, shares = sample.drawn()
        if len(values) < config.k:
            raise InputError(
                f'k={config.k} neighbours of {len(values)} tokens with a label and a valid pixel; lower k or '
                'take more labels'
            )
        logging.info('%s tokens of %s in the bank', f'{len(values):,}', f'{sample.offered:,}')
        scale = Scale(np.zeros(values.shape[1], np.float32), np.ones(values.shape[1], np.float32))
        if config.standardise:
            wide = values.astype(np.float64)
            mean, std = wide.mean(axis=0), np.sqrt(wide.var(axis=0) + STANDARD_EPS)
            scale = Scale(mean.astype(np.float32), std.astype(np.float32))
            values = (values - scale.mean) / scale.std
        return scale, jax.device_put(make_bank(values, shares, BLOCK), replicated(self._mesh))

    @functools.cached_property
    def _read(self) -> Callable:
        return self._jit(lambda params, batch: self._reader.run(params, batch, None))

    @functools.cached_property
    def _offer(self) -> Callable:
        def offer(features: Features, labels: Array) -> tuple[Array, Array, Array]:
            batch, rows, columns, _ = features.values.shape
            on_tokens = labelled(labels, self._classes, (rows, columns))
            there = on_tokens.some & features.seen
            each = (features.values, on_tokens.shares, there[..., None])
            values, shares, there = (x.reshape(batch, rows * columns, -1) for x in each)
            return values, shares, there[..., 0]

        return self._jit(offer)

    @functools.cached_property
    def _score(self) -> Callable:
        config = self._config

        def score(bank: Bank, scale: Scale, features: Features, labels: Array) -> Float[Array, 'b c c']:
            shares = token_shares(features, scale, bank, config.k, config.temperature)
            return confusion(resized(shares, self._size), labels)

        return self._jit(score)

    def _jit(self, function: Callable) -> Callable:
        compiled = jax.jit(function)

        def run(*arguments: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return compiled(*arguments)

        return run


def token_shares(
    features: Features, scale: Scale, bank: Bank, k: int, temperature: float
) -> Float[Array, 'b h w c']:
    """The shares of the classes at each token; traceable.

    Where no sensor has a valid pixel they are those of the whole bank, the most that can be said of it.
    """
    x = scaled(features, scale)
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    x = (x / jnp.where(length > 0, length, 1)).reshape(-1, x.shape[-1])
    chunks = -(-len(x) // QUERIES)
    filled = jnp.pad(x, ((0, chunks * QUERIES - len(x)), (0, 0))).reshape(chunks, QUERIES, -1)
    shares = jax.lax.map(lambda queries: votes(queries, bank, temperature, k), filled)
    shares = shares.reshape(chunks * QUERIES, -1)[: len(x)].reshape(*features.seen.shape, -1)
    return jnp.where(features.seen[..., None], shares, jnp.mean(bank.labels, axis=0))
