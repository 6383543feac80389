"""Validation during training: the held-out masked loss, a few pictures."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging

from fusmae_jax import installed
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_validation
from fusmae_jax.input.seen import Seen, read_records, same_records
from fusmae_jax.input.source import Source
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.parallel.processes import gather, read
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


def tell_seen(sources: Mapping[str, Source], seen: Seen) -> None:
    """Says which validation splits hold records that the model learns from: their loss is not held out."""
    for source in sources.values():
        try:
            _, records = read_records(source.path, source.split)
        except InputError as error:
            logging.info('held-out loss: nobody can tell whether it is held out (%s)', error)
            continue
        if count := same_records(records, seen):
            logging.warning(
                'held-out loss: %d of %d records of %s, split %s, are among those that the model learns from',
                *(count, len(source), source.path, source.split),
            )


def make_pictures(setup: Setup, source: Mixture) -> 'Pictures | None':
    """What draws during a run; None where that is off, or where a process has nothing installed that draws.

    What is drawn is computed by all devices, so that all processes must come to the same.
    """
    if not (every := setup.config.log.images_every_steps):
        return None
    if absent := [name for names in gather(installed.missing('plot')) for name in names]:
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
