"""What a labelled set says while a model trains: neighbours and a linear head on frozen features."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fit
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.eval import linear_probe, task
from fusmae_jax.eval.config import METRICS, Task
from fusmae_jax.eval.features import Features
from fusmae_jax.eval.knn import knn_scores
from fusmae_jax.eval.metrics import MultiLabel, SingleLabel, multi_label, single_label, values
from fusmae_jax.eval.pooling import pool
from fusmae_jax.eval.task import LabelledSplit
from fusmae_jax.input import pipeline
from fusmae_jax.input.prepare import fields
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.input.source import Source
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.mesh import batch_sharding, replicated
from fusmae_jax.parallel.processes import read
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train.setup import Setup

KNN, PROBE = 'knn', 'probe'  # what the names of the metrics begin with
HELD = 5  # one labelled record of so many settles the learning rate of the head and is not learned from
RATES, BATCH, SMOOTHING = (1e-3, 3e-3, 1e-2, 3e-2), 128, 0.1  # of the head, as of `linear_probe`


class LabelledEvaluation:
    """How well labelled validation records are told by training records: by the nearest, or by a linear head.

    All modalities of the model, whole images, nothing masked; the feature that the recipe names, of the
    parameters that are trained (of a student, then: its teacher is no part of them). The test split is not
    opened.
    """

    def __init__(
        self, setup: Setup, data: Task, k: int = 20, temperature: float = 0.07, probe_epochs: float = 0.0
    ):
        """Reads the labels.

        Args:
            setup: the run.
            data: a labelled set; its train_split and val_split may be parts, such as 'train[:5000]'.
            k: neighbours.
            temperature: of their weights.
            probe_epochs: passes of a linear head; 0 trains none.

        Raises:
            InputError: no such split or labels; the data do not fit the model; fewer records than `k`, or
                too few for a head.
        """
        self._setup, self._data, self._k, self._temperature = setup, data, k, temperature
        self._epochs = probe_epochs
        config = setup.config
        encoder = setup.recipe.encoder_config(config)
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
        self._held = np.arange(len(self._known.keys)) % HELD == 0
        if probe_epochs and (self._held.all() or not self._known.labels[self._held].any()):
            raise InputError(
                f'{data.path}, {splits[0]}: {len(self._known.keys)} records are too few for a linear head, '
                f'which learns from {HELD - 1} of {HELD} and is settled on the others; take more, or set '
                'log.knn.probe_epochs=0'
            )
        accepted = EncoderSettings(accept=config.data.accept, absent_bands='mean')
        model = Pretrained(encoder, setup.contract, {}, setup.dtype)
        self._config = fit(model, contract, tuple(encoder.model.modalities), accepted, data.path).config
        self._bank.fields = self._queries.fields = tuple(fields(self._config, contract))
        self._sharding = batch_sharding(setup.mesh)
        self._run = jax.jit(self._features, out_shardings=replicated(setup.mesh))

    def __call__(self, params: Params) -> dict[str, float]:
        """`knn/<metric>`: `knn/ap_micro`, `knn/f1_macro`, ..., or `knn/top1`, ...; undefined ones not.

        And `probe/<metric>`, where a head is wanted and did not diverge. Nothing where no record of one of
        the two splits has a valid pixel.
        """
        bank, queries = (Features(*self._extract(s, params)) for s in (self._bank, self._queries))
        if not (bank.valid.any() and queries.valid.any()):
            return {}
        scores = knn_scores(queries.values, bank.values, self._known.labels, self._k, self._temperature)
        measured = {KNN: self._measure(self._asked, scores, 0.5)}
        if self._epochs and (logits := self._probe(bank, queries)) is not None:
            measured[PROBE] = self._measure(self._asked, logits, 0.0)
        return {
            f'{method}/{name}': x
            for method, metrics in measured.items()
            for name, x in values(metrics).items()
            if '/' not in name and np.isfinite(x)
        }

    def _measure(
        self, split: LabelledSplit, scores: np.ndarray, threshold: float
    ) -> MultiLabel | SingleLabel:
        if self._data.kind == 'single_label':
            return single_label(scores, split.labels.argmax(axis=1), self._classes, names=split.keys)
        return multi_label(scores, split.labels, self._classes, threshold=threshold, names=split.keys)

    def _probe(self, bank: Features, queries: Features) -> np.ndarray | None:
        """Logits (queries, classes) of a head; its rate is settled on records that it did not learn from."""
        held, learned = self._held, ~self._held
        if not (bank.valid[learned].any() and bank.valid[held].any()):
            return None
        scale = linear_probe.batch_norm(bank.values[learned & bank.valid])

        def scaled(features: Features, part: Any = slice(None)) -> np.ndarray:
            # A head gives a record without a valid pixel its bias.
            return np.where(features.valid[part, None], scale(features.values[part]), np.float32(0))

        def metric(scores: np.ndarray) -> float:
            known = self._known._replace(keys=self._known.keys[held], labels=self._known.labels[held])
            return values(self._measure(known, scores, 0.0))[METRICS[self._data.kind][0]]

        swept = linear_probe.points(RATES, (0.0,), (0,))
        order = linear_probe.batch_order(int(learned.sum()), BATCH, self._epochs)
        recipe = linear_probe.make_recipe(self._data.kind, SMOOTHING)
        labels = self._known.labels[learned]
        heads = linear_probe.train(scaled(bank, learned), labels, order, swept, recipe)
        try:
            settled = linear_probe.settle(heads, swept, scaled(bank, held), metric)
        except DivergedError:
            return None
        return linear_probe.scores(heads, scaled(queries), settled.heads[0])

    def _features(self, params: Params, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        recipe, contract = self._setup.recipe, self._bank.contract
        params = recipe.encoder_params(params, self._setup.config)
        model = nnx.merge(fusmae.graph(self._config.model, self._setup.dtype), params)
        features, seen = pool(model, make_inputs(self._config, contract)(batch, None), (recipe.feature,))
        return features[recipe.feature], seen

    def _extract(self, source: Source, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """The features (records, width) of a split, in its order, and which records have a valid pixel."""
        stream = pipeline.over_split(
            source,
            lambda batch: read('features', self._run(params, batch)),
            self._sharding,
            self._setup.config.train.batch_size,
            self._data,
        )
        with jax.set_mesh(self._setup.mesh):
            return pipeline.joined([part for _, part in stream], len(source))
