"""What is looked at during training: the held-out masked loss, neighbours by features, a few pictures."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from fusmae_jax.dino_config import DinoConfig
from fusmae_jax.errors import InputError
from fusmae_jax.eval import dino_run, task
from fusmae_jax.eval.evaluation_config import Encoder, Task
from fusmae_jax.eval.knn import knn_scores
from fusmae_jax.eval.measure import values
from fusmae_jax.eval.metrics import multi_label, single_label
from fusmae_jax.eval.pooling import pool
from fusmae_jax.eval.presets import make_inputs
from fusmae_jax.eval.reconstruction import Reconstructor
from fusmae_jax.eval.systems import fit
from fusmae_jax.inference import Pretrained
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_validation
from fusmae_jax.input.prepare import fields
from fusmae_jax.input.source import Source
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.host import read
from fusmae_jax.parallel.mesh import batch_sharding, replicated
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import make_eval_step
from fusmae_jax.visualize import figure


class Validation:
    """The masked loss on the validation splits: no augmentation, and the same masks every time."""

    def __init__(self, setup: Setup, sources: Mapping[str, Source]):
        """`sources` by prefix, as `open_validation` gives them."""
        self._config = setup.config
        self._sets = {prefix: _Held(setup, source) for prefix, source in sources.items()}

    def __call__(self, params: Any) -> dict[str, float]:
        """`val/loss` and `val/loss/<modality>`; of a mixture the weighted means of its sets, and theirs."""
        each = {prefix: held(params) for prefix, held in self._sets.items()}
        mixture = self._config.data.mixture
        weights = {prefix: mixture[prefix[:-1]].weight if prefix else 1.0 for prefix in each}
        total = sum(weights.values())
        names = next(iter(each.values()))
        values = {
            f'val/{name}': sum(weights[prefix] * each[prefix][name] for prefix in each) / total
            for name in names
        }
        parts = {prefix: losses for prefix, losses in each.items() if prefix}
        return values | {
            f'val/{prefix}{name}': x for prefix, losses in parts.items() for name, x in losses.items()
        }


class _Held:
    """The masked loss on one split."""

    def __init__(self, setup: Setup, source: Source):
        self._config = config = setup.config
        self._source, size = source, config.train.batch_size
        self._sharding = batch_sharding(setup.mesh)
        rows = pipeline.local_rows(self._sharding, size)
        self._batches, steps = pipeline.eval_batches(self._source, size, rows)
        self._steps = min(steps, config.log.eval_batches or steps)
        self._evaluate = make_eval_step(config, source.contract, setup.dtype, setup.mesh, len(source))

    def __call__(self, params: Any) -> dict[str, float]:
        """`loss` and `loss/<modality>`."""
        config, key = self._config, jax.random.key(self._config.seed)
        data, totals = config.data, dict.fromkeys(config.model.modalities, (0.0, 0.0))
        batches = pipeline.iterate(
            self._batches, 0, self._steps, threads=data.threads, prefetch=data.prefetch
        )
        for batch in batches:
            rows = {'': config.train.batch_size}
            ready = pipeline.to_devices(batch, self._sharding, rows, self._source.fields)
            for name, sums in read('validation', self._evaluate(params, ready, key)).items():
                error, weight = totals[name]
                totals[name] = error + float(sums[0]), weight + float(sums[1])
        means = {name: error / max(weight, 1) for name, (error, weight) in totals.items()}
        loss = sum(m.loss_weight * means[name] for name, m in config.model.modalities.items())
        return {'loss': loss} | {f'loss/{name}': mean for name, mean in means.items()}


class Neighbours:
    """How well labelled validation records are told by their nearest training records, on frozen features.

    All modalities of the model, whole images, nothing masked; the mean of the patch tokens, or CLS for
    DINO-MM (of the student: the teacher is no part of the parameters). The test split is not opened.
    """

    def __init__(self, setup: Setup, data: Task, k: int = 20, temperature: float = 0.07):
        """`data` is a labelled set; its train_split and val_split may be parts, such as 'train[:5000]'.

        Raises:
            InputError: no such split or labels; the data do not fit the model; fewer records than `k`.
        """
        self._setup, self._data, self._k, self._temperature = setup, data, k, temperature
        config = setup.config
        own = dino_run.encoder_config(config) if isinstance(config, DinoConfig) else config
        self._bank, self._queries = (Source(data.path, s, ()) for s in (data.train_split, data.val_split))
        contract = self._bank.contract
        if data.labels not in contract.classes:
            raise InputError(f'{data.path}: no label field {data.labels!r}; it has {list(contract.classes)}')
        self._classes = contract.classes[data.labels]
        splits = (data.train_split, data.val_split)
        self._known, self._asked = (task.read_split(data, contract, split, '') for split in splits)
        if both := len(np.intersect1d(self._known.keys, self._asked.keys)):
            raise InputError(f'{data.path}: {both:,} records are in {splits[0]!r} and in {splits[1]!r}')
        if len(self._known.keys) < k:
            raise InputError(f'{data.path}, {splits[0]}: {len(self._known.keys)} records, fewer than k={k}')
        accepted = Encoder(accept=config.data.accept, absent_bands='mean')
        model = Pretrained(own, setup.contract, None, setup.dtype)
        self._config = fit(model, contract, tuple(own.model.modalities), accepted, data.path).config
        self._bank.fields = self._queries.fields = tuple(fields(self._config, contract))
        self._sharding = batch_sharding(setup.mesh)
        self._run = jax.jit(self._features, out_shardings=replicated(setup.mesh))

    def __call__(self, params: Any) -> dict[str, float]:
        """`knn/<metric>`: `knn/ap_micro`, `knn/f1_macro`, ..., or `knn/top1`, ...; undefined ones not."""
        bank, queries = (self._extract(source, params) for source in (self._bank, self._queries))
        scores = knn_scores(queries, bank, self._known.labels, self._k, self._temperature)
        labels, names = self._asked.labels, self._asked.keys
        if self._data.kind == 'single_label':
            found = values(single_label(scores, labels.argmax(axis=1), self._classes, names=names))
        else:
            found = values(multi_label(scores, labels, self._classes, threshold=0.5, names=names))
        return {f'knn/{name}': x for name, x in found.items() if '/' not in name and np.isfinite(x)}

    def _features(self, params: Any, batch: Mapping[str, Array]) -> Array:
        config, contract, name = self._setup.config, self._bank.contract, 'mean_patch'
        if isinstance(config, DinoConfig):
            params, name = dino_run.encoder_params(params['backbone'], config), 'cls'
        model = nnx.merge(fusmae.graph(self._config.model, self._setup.dtype), params)
        return pool(model, make_inputs(self._config, contract)(batch, None), (name,))[0][name]

    def _extract(self, source: Source, params: Any) -> np.ndarray:
        """The features (records, width) of a split, in its order."""
        size = self._setup.config.train.batch_size
        batches, steps = pipeline.eval_batches(source, size, pipeline.local_rows(self._sharding, size))
        stream = pipeline.iterate(batches, 0, steps, threads=self._data.threads, prefetch=self._data.prefetch)
        parts = []
        with jax.set_mesh(self._setup.mesh):
            for batch in stream:
                ready = pipeline.to_devices(batch, self._sharding, {'': size}, source.fields)
                parts.append(read('features', self._run(params, ready)))
        return np.concatenate(parts)[: len(source)]


class Pictures:
    """The same few records, with the same masks, again and again."""

    def __init__(self, setup: Setup, source: Mixture):
        """From the first validation split, or else from the first training set."""
        config = setup.config
        held = [*open_validation(config).values(), *source.sources.values()]
        self._setup, self._source = setup, held[0]
        self._records = [self._source[i] for i in range(min(config.log.num_images, len(self._source)))]
        self._reconstruct = Reconstructor(config, self._source.contract, setup.dtype, setup.mesh)

    def __call__(self, params: Any, step: int) -> np.ndarray:
        """The grid, uint8 (rows, columns, 3)."""
        config, contract = self._setup.config, self._source.contract
        panels = self._reconstruct(params, self._records, self._source.fields)
        return figure(panels, self._records, config, contract, f'{config.name}, step {step}')
