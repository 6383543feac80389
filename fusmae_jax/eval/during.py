"""What is looked at during training: the held-out masked loss, and the same few pictures."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fusmae_jax.eval.reconstruction import Reconstructor
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_validation
from fusmae_jax.input.source import Source
from fusmae_jax.parallel.mesh import batch_sharding
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
            for name, sums in jax.device_get(self._evaluate(params, ready, key)).items():
                error, weight = totals[name]
                totals[name] = error + float(sums[0]), weight + float(sums[1])
        means = {name: error / max(weight, 1) for name, (error, weight) in totals.items()}
        loss = sum(m.loss_weight * means[name] for name, m in config.model.modalities.items())
        return {'loss': loss} | {f'loss/{name}': mean for name, mean in means.items()}


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
