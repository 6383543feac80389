"""Features of a test split with one sensor missing, exchanged or under cloud: one pass over the records."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from fusmae_jax.config.run import Parallel
from fusmae_jax.encoders.systems import System
from fusmae_jax.errors import InputError
from fusmae_jax.eval.features import Features
from fusmae_jax.eval.pooling import check_pooled, pool
from fusmae_jax.eval.reliance.attention import Shares, attention
from fusmae_jax.eval.reliance.config import Reliance
from fusmae_jax.eval.reliance.inputs import OTHER, WithOther, clouded, opacity
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import pipeline
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import Patches, fields, make_prepare
from fusmae_jax.input.source import Source
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fusmae_jax.parallel.rules import Params

Batch = Mapping[str, Array]
ALL = 'all sensors'


def conditions(modalities: tuple[str, ...], clouded_one: str) -> tuple[str, ...]:
    """The names of what is compared, the complete input first."""
    alone = (f'{name} only' for name in modalities)
    return (ALL, *alone, *(f'{name} shuffled' for name in modalities), f'{clouded_one} clouded')


class Disturbed:
    """Reads a test split for one model, in batches of one shape."""

    def __init__(self, config: Reliance, system: System, fitted: Fitted):
        assert system.model is not None
        self._config, self._model, self._fitted = config, system.model, fitted
        self._contract = contracts.read(config.data.path)
        self._mesh = make_mesh(Parallel(), jax.local_devices())
        self._size = -(-config.batch // self._mesh.size) * self._mesh.size
        self._fields = fields(fitted.config, self._contract)
        self._names = tuple(fitted.config.model.modalities)
        if fitted.config.preset:
            raise InputError(f'{system.name}: has inputs of its own; give a checkpoint that `pretrain` wrote')
        check_pooled((config.head.feature,), system.model.config.model, system.name)
        if config.cloud.modality not in self._names:
            raise InputError(f'cloud.modality={config.cloud.modality!r} is not one of {self._names}')

    @property
    def conditions(self) -> tuple[str, ...]:
        """Their names."""
        return conditions(self._names, self._config.cloud.modality)

    def features(self, other: Int[np.ndarray, ' n']) -> dict[str, Features]:
        """The pooled feature of every record under each condition.

        `other` is the position of the record whose image of a sensor each record gets where that sensor is
        shuffled.

        Raises:
            InputError: a feature that is not finite, or a condition without any valid pixel.
        """
        source = WithOther(Source(self._config.data.path, self._config.data.test_split, self._fields), other)
        names = [*self._fields, *(f'{OTHER}{name}' for name in self._fields)]
        features = {
            key: Features(*part) for key, part in self._over(source, names, self._encode, len(source)).items()
        }
        for key, (values, valid) in features.items():
            if not valid.any():
                raise InputError(
                    f'{self._config.data.path}, {self._config.data.test_split}: no record has a valid pixel '
                    f'({key}); there is nothing to compare'
                )
            if not np.isfinite(values).all():
                where = int(np.argmin(np.isfinite(values).all(axis=1)))
                raise InputError(
                    f'{self._config.data.path}, {self._config.data.test_split}: the feature of record '
                    f'{where} is not finite ({key}); has the model diverged?'
                )
        return features

    def attention(self) -> list[dict[str, Shares]]:
        """The shares of attention in each block, of the first records of the split."""
        config, model = self._config, self._model
        source = Source(config.data.path, config.data.test_split, self._fields)
        count = min(config.attention_records, len(source))
        run = attention(self._fitted.config, model.config, self._contract, model.dtype)
        return self._over(source, self._fields, run, count)

    def _over(self, source: Any, names: list[str], function: Callable[[Any, Batch], Any], count: int) -> Any:
        """What a traceable function of the weights and a batch gives for the first `count` records."""
        sharding = batch_sharding(self._mesh)
        with jax.set_mesh(self._mesh):
            params = jax.device_put(self._model.params, replicated(self._mesh))
            run = jax.jit(function, out_shardings=sharding)
            stream = pipeline.over_split(
                source,
                lambda batch: jax.device_get(run(params, batch)),
                sharding,
                self._size,
                self._config.data,
                fields=names,
                batches=-(-count // self._size),
            )
            return pipeline.joined([part for _, part in stream], count)

    def _encode(self, params: Params, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """Traced: feature and validity under every condition, from one batch, prepared once."""
        config, cloud = self._fitted.config, self._config.cloud
        # Before any condition: all of them start from the same normalised patches.
        prepare = make_prepare(config, self._contract, None)
        clean = prepare(batch, None)
        other = prepare({name: batch[f'{OTHER}{name}'] for name in self._fields}, None)
        alpha = opacity(cloud, batch[POSITION], config.model.image_size)
        patch = config.model.patch_size
        under = clouded(clean[cloud.modality], alpha, cloud, patch, config.data)
        swapped = [clean | {name: other[name]} for name in self._names]
        whole = [clean, *swapped, clean | {cloud.modality: under}]
        feature = self._config.head.feature
        graphdef = fusmae.graph(self._model.config.model, self._model.dtype)

        def encode(patches: Mapping[str, Patches]) -> tuple[Array, Array]:
            pooled, seen = pool(nnx.merge(graphdef, params), patches, (feature,))
            return pooled[feature], seen

        # One after the other, so that the encoder is compiled once for all complete inputs.
        first, *rest = zip(*jax.lax.map(encode, jax.tree.map(lambda *x: jnp.stack(x), *whole)))
        alone = [encode({name: clean[name]}) for name in self._names]
        return dict(zip(self.conditions, (first, *alone, *rest)))
