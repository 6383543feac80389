"""What is looked at during training: the held-out masked loss, and the same few pictures."""

from typing import Any

import jax
import numpy as np

from fusmae_jax.eval.reconstruction import Reconstructor
from fusmae_jax.input import pipeline
from fusmae_jax.input.source import Source, open_source
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import make_eval_step
from fusmae_jax.visualize import figure


class Validation:
    """The masked loss on the validation split: no augmentation, and the same masks every time."""

    def __init__(self, setup: Setup):
        self._setup, config = setup, setup.config
        self._source = open_source(config, config.data.val_split)
        self._sharding = batch_sharding(setup.mesh)
        size = config.train.batch_size
        rows = pipeline.local_rows(self._sharding, size)
        self._batches, steps = pipeline.eval_batches(self._source, size, rows)
        self._steps = min(steps, config.log.eval_batches or steps)
        self._evaluate = make_eval_step(config, setup.contract, setup.dtype, setup.mesh, len(self._source))

    def __call__(self, params: Any) -> dict[str, float]:
        """`val/loss` and `val/loss/<modality>`."""
        config, key = self._setup.config, jax.random.key(self._setup.config.seed)
        data, totals = config.data, dict.fromkeys(config.model.modalities, (0.0, 0.0))
        batches = pipeline.iterate(
            self._batches, 0, self._steps, threads=data.threads, prefetch=data.prefetch
        )
        for batch in batches:
            fields = self._setup.objective.fields
            ready = pipeline.to_devices(batch, self._sharding, config.train.batch_size, fields)
            for name, sums in jax.device_get(self._evaluate(params, ready, key)).items():
                error, weight = totals[name]
                totals[name] = error + float(sums[0]), weight + float(sums[1])
        means = {name: error / max(weight, 1) for name, (error, weight) in totals.items()}
        loss = sum(m.loss_weight * means[name] for name, m in config.model.modalities.items())
        return {'val/loss': loss} | {f'val/loss/{name}': mean for name, mean in means.items()}


class Pictures:
    """The same few records, with the same masks, again and again."""

    def __init__(self, setup: Setup, source: Source):
        config = setup.config
        if config.data.val_split:
            source = open_source(config, config.data.val_split)
        self._setup = setup
        self._records = [source[i] for i in range(min(config.log.num_images, len(source)))]
        self._reconstruct = Reconstructor(config, setup.contract, setup.dtype, setup.mesh)

    def __call__(self, params: Any, step: int) -> np.ndarray:
        """The grid, uint8 (rows, columns, 3)."""
        config, contract = self._setup.config, self._setup.contract
        panels = self._reconstruct(params, self._records, self._setup.objective.fields)
        return figure(panels, self._records, config, contract, f'{config.name}, step {step}')
