"""Validation during training: the held-out masked loss, neighbours by features, a few pictures."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array

from fusmae_jax import installed
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fit
from fusmae_jax.errors import InputError
from fusmae_jax.eval import task
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.knn import knn_scores
from fusmae_jax.eval.metrics import multi_label, single_label, values
from fusmae_jax.eval.pooling import pool
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_validation
from fusmae_jax.input.prepare import fields
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.input.source import Source
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.mesh import batch_sharding, replicated
from fusmae_jax.parallel.processes import read
from fusmae_jax.parallel.rules import Params
from fusmae_jax.pictures.figure import figure
from fusmae_jax.pictures.panels import Reconstructor
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import make_eval_step


class Validation:
    """The masked loss on the validation splits: no augmentation, and the same masks every time."""

    def __init__(self, setup: Setup, sources: Mapping[str, Source]):
        """`sources` by prefix, as `open_validation` gives them."""
        self._config = setup.config
        self._sets = {prefix: _Held(setup, source) for prefix, source in sources.items()}
        self._told = False  # that something is not measured

    def __call__(self, params: Params) -> dict[str, float]:
        """`val/loss` and `val/loss/<modality>`; of a mixture the weighted means of its sets, and theirs.

        NaN where nothing was measured: a loss of a sensor without a valid hidden pixel, and one that would
        have to sum up such a loss. The means of a mixture are over the sets that have one.
        """
        each = {prefix: held(params) for prefix, held in self._sets.items()}
        mixture = self._config.data.mixture
        weights = {prefix: mixture[prefix[:-1]].weight if prefix else 1.0 for prefix in each}
        means = {
            name: _mean([(weights[prefix], losses[name]) for prefix, losses in each.items()])
            for name in next(iter(each.values()))
        }
        values = {'loss': _total(means, self._config)} | means
        values |= {
            f'{prefix}{name}': x
            for prefix, losses in each.items()
            if prefix
            for name, x in ({'loss': _total(losses, self._config)} | losses).items()
        }
        self._tell(means)
        return {f'val/{name}': x for name, x in values.items()}

    def _tell(self, means: Mapping[str, float]) -> None:
        """Says once what the validation splits do not hold."""
        empty = [name.removeprefix('loss/') for name, mean in means.items() if math.isnan(mean)]
        if empty and not self._told:
            self._told = True
            logging.warning(
                'held-out loss: not measured, as no hidden pixel of %s is valid in the validation records; '
                'no checkpoint counts as the best',
                ', '.join(empty),
            )


def _mean(parts: Sequence[tuple[float, float]]) -> float:
    """The mean of (weight, value) over those that were measured."""
    measured = [(weight, value) for weight, value in parts if not math.isnan(value)]
    total = sum(weight for weight, _ in measured)
    return sum(weight * value for weight, value in measured) / total if measured else math.nan


def _total(means: Mapping[str, float], config: Config) -> float:
    """The loss that the means of the modalities amount to."""
    modalities = config.model.modalities.items()
    return sum(m.loss_weight * means[f'loss/{name}'] for name, m in modalities if m.loss_weight)


class _Held:
    """The masked loss on one split."""

    def __init__(self, setup: Setup, source: Source):
        self._config = config = setup.config
        self._source, self._sharding = source, batch_sharding(setup.mesh)
        self._evaluate = make_eval_step(config, source.contract, setup.dtype, setup.mesh, len(source))

    def __call__(self, params: Params) -> dict[str, float]:
        """`loss/<modality>`."""
        config, key = self._config, jax.random.key(self._config.seed)
        totals = dict.fromkeys(config.model.modalities, (0.0, 0.0))
        stream = pipeline.over_split(
            self._source,
            lambda batch: read('validation', self._evaluate(params, batch, key)),
            self._sharding,
            config.train.batch_size,
            config.data,
            batches=config.log.eval_batches,
        )
        for _, losses in stream:
            for name, (error, weight) in losses.items():
                before = totals[name]
                totals[name] = before[0] + float(error), before[1] + float(weight)
        return {f'loss/{name}': _quotient(*sums) for name, sums in totals.items()}


def _quotient(error: float, weight: float) -> float:
    """A mean squared error; NaN where nothing was measured, inf where the predictions are not finite."""
    if not weight:
        return math.nan
    return math.inf if math.isnan(error) else error / weight


class Neighbours:
    """How well labelled validation records are told by their nearest training records, on frozen features.

    All modalities of the model, whole images, nothing masked; the feature that the recipe names, of the
    parameters that are trained (of a student, then: its teacher is no part of them). The test split is not
    opened.
    """

    def __init__(self, setup: Setup, data: Task, k: int = 20, temperature: float = 0.07):
        """`data` is a labelled set; its train_split and val_split may be parts, such as 'train[:5000]'.

        Raises:
            InputError: no such split or labels; the data do not fit the model; fewer records than `k`.
        """
        self._setup, self._data, self._k, self._temperature = setup, data, k, temperature
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
        accepted = EncoderSettings(accept=config.data.accept, absent_bands='mean')
        model = Pretrained(encoder, setup.contract, {}, setup.dtype)
        self._config = fit(model, contract, tuple(encoder.model.modalities), accepted, data.path).config
        self._bank.fields = self._queries.fields = tuple(fields(self._config, contract))
        self._sharding = batch_sharding(setup.mesh)
        self._run = jax.jit(self._features, out_shardings=replicated(setup.mesh))

    def __call__(self, params: Params) -> dict[str, float]:
        """`knn/<metric>`: `knn/ap_micro`, `knn/f1_macro`, ..., or `knn/top1`, ...; undefined ones not.

        Nothing where no record of one of the two splits has a valid pixel.
        """
        (bank, known), (queries, asked) = (self._extract(s, params) for s in (self._bank, self._queries))
        if not (known.any() and asked.any()):
            return {}
        scores = knn_scores(queries, bank, self._known.labels, self._k, self._temperature)
        labels, names = self._asked.labels, self._asked.keys
        if self._data.kind == 'single_label':
            metrics = values(single_label(scores, labels.argmax(axis=1), self._classes, names=names))
        else:
            metrics = values(multi_label(scores, labels, self._classes, threshold=0.5, names=names))
        return {f'knn/{name}': x for name, x in metrics.items() if '/' not in name and np.isfinite(x)}

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


def make_pictures(setup: Setup, source: Mixture) -> 'Pictures | None':
    """What draws during a run; None where that is off, or where nothing is installed that draws."""
    if not (every := setup.config.log.images_every_steps):
        return None
    if absent := installed.missing('plot'):
        how = installed.install('plot')
        logging.warning('log.images_every_steps=%d: no pictures without %s: %s', every, absent[0], how)
        return None
    return Pictures(setup, source)


class Pictures:
    """The same few records, with the same masks, again and again."""

    def __init__(self, setup: Setup, source: Mixture):
        """From the first validation split, or else from the first training set."""
        config = setup.config
        held = [*open_validation(config).values(), *source.sources.values()]
        self._setup, self._source = setup, held[0]
        self._records = [self._source[i] for i in range(min(config.log.num_images, len(self._source)))]
        self._reconstruct = Reconstructor(config, self._source.contract, setup.dtype, setup.mesh)

    def __call__(self, params: Params, step: int) -> np.ndarray:
        """The grid, uint8 (rows, columns, 3)."""
        config, contract = self._setup.config, self._source.contract
        panels = self._reconstruct(params, self._records, self._source.fields)
        return figure(panels, self._records, config, contract, f'{config.name}, step {step}')
