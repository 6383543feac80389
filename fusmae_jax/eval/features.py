"""Features of whole splits: extracted once, in batches of one shape, and kept beside the run.

A stored file says in full what it was made from: weights, data, split, modalities, rule for absent ones,
statistics. It is used again only where all of that is the same.
"""

import functools
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float

from fusmae_jax.config import Config, Parallel
from fusmae_jax.config_build import to_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.evaluation_config import Encoder, Task
from fusmae_jax.eval.systems import Fitted, System, fit
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import pipeline
from fusmae_jax.input.contract import Contract, fingerprint
from fusmae_jax.input.patchify import Patches
from fusmae_jax.input.prepare import fields, make_prepare
from fusmae_jax.input.source import Source
from fusmae_jax.models import fusmae
from fusmae_jax.models.fusmae import FusMAE
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fusmae_jax.train.step import abstract_batch

BAND_STATISTICS = 'band_stats'
FORMAT = 1  # of what a feature means
Batch = Mapping[str, Array]
# From weights and a batch to features by name (b, width) and which records have a valid pixel (b,).
Function = Callable[[Any, Batch], tuple[dict[str, Array], Array]]


class Features(NamedTuple):
    """One pooled feature of the records of a split, in their order."""

    values: np.ndarray  # (records, width) float32
    valid: np.ndarray  # (records,) bool: a given modality has a valid pixel; otherwise the values are 0


def pool(
    model: FusMAE, patches: Mapping[str, Patches], names: Sequence[str]
) -> tuple[dict[str, Float[Array, 'b _']], Array]:
    """Pooled features of a batch, by name, and which records have any valid patch; traceable.

    `mean_patch`         mean over the valid patch tokens of the modalities given
    `mean_all`           the same with the CLS token among them
    `concat_per_sensor`  a mean for each of these modalities, side by side in the order of the model
    `cls`                the CLS token
    `last4_cls`          the CLS tokens after each of the last four blocks and the final norm, side by side
    """
    deep = 'last4_cls' in names
    encoded = model.encode(patches, capture=deep)
    tokens = dict(encoded.tokens)
    valid = {name: jnp.any(patches[name].valid, axis=2) for name in tokens}
    if model.model.fusion.encoder == 'stack':  # every modality has the same tokens: one stream
        tokens = {'all': next(iter(tokens.values()))}
        valid = {'all': jnp.any(jnp.stack(list(valid.values())), axis=0)}
    weights = {name: v[..., None] for name, v in valid.items()}
    sums = {n: jnp.sum(jnp.where(weights[n], z.astype(jnp.float32), 0), axis=1) for n, z in tokens.items()}
    counts = {name: jnp.sum(w, axis=1, dtype=jnp.float32) for name, w in weights.items()}
    total, count = (jnp.sum(jnp.stack(list(x.values())), axis=0) for x in (sums, counts))
    cls = encoded.cls.astype(jnp.float32)
    found = {
        'mean_patch': total / jnp.maximum(count, 1),
        'mean_all': (total + cls) / (count + 1),
        'concat_per_sensor': jnp.concatenate([sums[n] / jnp.maximum(counts[n], 1) for n in sums], axis=-1),
        'cls': cls,
    }
    if deep:
        found['last4_cls'] = _last4(model, encoded.stages)
    seen = count[:, 0] > 0
    return {name: jnp.where(seen[:, None], found[name], 0) for name in names}, seen


def _last4(model: FusMAE, stages: Mapping[str, Array]) -> Float[Array, 'b _']:
    """CLS stands last among the tokens of every block."""
    first = stages['block1'][:, -1][:, None]
    ends = jnp.concatenate([first, jnp.moveaxis(stages['blocks/x'][:, :, -1], 0, 1)], axis=1)[:, -4:]
    ends = model.encoder.norm(ends) if model.model.final_norm else ends
    return ends.astype(jnp.float32).reshape(ends.shape[0], -1)


def band_statistics(contract: Contract, modalities: Sequence[str]) -> tuple[tuple[str, ...], Function]:
    """Mean and standard deviation of each band's valid pixels, as stored and on the native grid: no encoder.

    Returns:
        The record fields that are read, and a traceable function of nothing ({}) and a batch of them that
        gives the feature (b, 2 x bands) and which records have a valid pixel. A band without one has 0 and 0.
    """
    groups = {field: g for name in modalities for field, g in contract.groups.items() if g.modality == name}

    def run(_: Any, batch: Batch) -> tuple[dict[str, Array], Array]:
        means, deviations, some = [], [], []
        for field, group in groups.items():
            stored = batch[field].astype(jnp.float32)
            valid = jnp.isfinite(stored)
            for value in group.nodata:
                valid &= stored != jnp.float32(value)
            count = jnp.sum(valid, axis=(1, 2), dtype=jnp.float32)
            mean = jnp.sum(jnp.where(valid, stored, 0), axis=(1, 2)) / jnp.maximum(count, 1)
            error = jnp.where(valid, stored - mean[:, None, None], 0)
            variance = jnp.sum(error**2, axis=(1, 2)) / jnp.maximum(count, 1)
            means.append(mean)
            deviations.append(jnp.sqrt(variance))
            some.append(jnp.any(count > 0, axis=1))
        values = jnp.concatenate([*means, *deviations], axis=-1)
        return {BAND_STATISTICS: values}, jnp.any(jnp.stack(some), axis=0)

    return tuple(groups), run


class Extractor:
    """Features of any split of a data set, for one system and some modalities: compiled once at most."""

    def __init__(
        self, system: System, data: Task, modalities: Sequence[str], names: Sequence[str], settings: Encoder
    ):
        """`names` of pooled features are replaced with `band_stats` for a system without a model.

        Raises:
            InputError: modalities, data and model do not fit together.
        """
        self._data, self._contract = data, contracts.read(data.path)
        self._mesh = make_mesh(Parallel(), jax.local_devices())
        self.batch = -(-settings.batch // self._mesh.size) * self._mesh.size
        self.fitted: Fitted | None = None  # how the model reads the data
        self._params: Any = {}
        if system.model is None:
            _check_modalities(self._contract, modalities, data.path)
            self.names: tuple[str, ...] = (BAND_STATISTICS,)
            self._fields, self._function = band_statistics(self._contract, modalities)
        else:
            self.fitted = fit(system.model, self._contract, modalities, settings, data.path)
            self.names, self._params = tuple(names), system.model.params
            self._fields = tuple(fields(self.fitted.config, self._contract))
            self._function = _encoded(system, self.fitted.config, self._contract, self.names)
        self._about = _about(system, self._contract, modalities, self.fitted)

    @functools.cached_property
    def _run(self) -> Callable[[Batch], Any]:
        """Compiled when the first split is extracted; not at all where every feature is stored."""
        with jax.set_mesh(self._mesh):
            params = jax.device_put(self._params, replicated(self._mesh))
            batch = abstract_batch(self._contract, self._fields, {'': self.batch}, self._mesh)
            jitted = jax.jit(self._function, out_shardings=batch_sharding(self._mesh))
            return functools.partial(jitted.lower(params, batch).compile(), params)

    def __call__(self, split: str, folder: epath.PathLike | None = None) -> dict[str, Features]:
        """The features of a split by name: read from `folder` if they are there, else extracted and stored.

        Raises:
            InputError: a feature that is not finite.
        """
        found = {name: self._read(split, name, folder) for name in self.names} if folder else {}
        if all(found.get(name) is not None for name in self.names):
            return {name: f for name, f in found.items() if f is not None}
        fresh = self._extract(split)
        if folder:
            for name, features in fresh.items():
                self._write(split, name, features, epath.Path(folder))
        return fresh

    def _extract(self, split: str) -> dict[str, Features]:
        source = Source(self._data.path, split, self._fields)
        where = batch_sharding(self._mesh)
        batches, steps = pipeline.eval_batches(source, self.batch, range(self.batch))
        values: dict[str, np.ndarray] = {}
        valid = np.zeros(len(source), bool)
        stream = pipeline.iterate(batches, 0, steps, threads=self._data.threads, prefetch=self._data.prefetch)
        for step, batch in enumerate(stream):
            ready = pipeline.to_devices(batch, where, {'': self.batch}, self._fields)
            found, seen = jax.device_get(self._run(ready))
            rows = slice(step * self.batch, min((step + 1) * self.batch, len(source)))
            count = rows.stop - rows.start
            valid[rows] = seen[:count]
            for name, x in found.items():
                if not np.isfinite(x).all():
                    raise InputError(
                        f'{self._data.path}, {split}: {name} of records {rows.start} to {rows.stop - 1} is '
                        'not finite; has the model diverged?'
                    )
                values.setdefault(name, np.empty((len(source), x.shape[1]), np.float32))[rows] = x[:count]
        return {name: Features(x, valid) for name, x in values.items()}

    def _file(self, split: str, name: str, folder: epath.Path) -> tuple[epath.Path, str]:
        """Where a feature is stored, and what it is of in words that a stored one must equal."""
        about = self._about | {'split': split, 'feature': name}
        plain = ''.join(c if c.isalnum() else '_' for c in split)
        sensors = '+'.join(self._about['modalities'])
        return folder / f'{plain}-{sensors}-{name}-{fingerprint(about)}.npz', json.dumps(
            about, sort_keys=True
        )

    def _read(self, split: str, name: str, folder: epath.PathLike) -> Features | None:
        file, about = self._file(split, name, epath.Path(folder))
        if not file.exists():
            return None
        try:
            with file.open('rb') as stream, np.load(stream, allow_pickle=False) as archive:
                if str(archive['about']) != about:
                    return None
                return Features(archive['values'], archive['valid'])
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError) as error:
            raise InputError(f'{file}: cannot be read ({error}); remove it') from error

    def _write(self, split: str, name: str, features: Features, folder: epath.Path) -> None:
        """Whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        file, about = self._file(split, name, folder)
        part = folder / f'{file.name}.part'
        with part.open('wb') as stream:
            np.savez(stream, values=features.values, valid=features.valid, about=np.array(about))
        part.replace(file)


def _about(
    system: System, contract: Contract, modalities: Sequence[str], fitted: Fitted | None
) -> dict[str, Any]:
    """Everything that decides the features of a record."""
    about: dict[str, Any] = {
        'format': FORMAT,
        'weights': system.fingerprint,
        'data': contract.fingerprint,
        'modalities': list(modalities),
    }
    if fitted is None:
        return about
    config = fitted.config
    return about | {
        'modalities': list(config.model.modalities),
        'absent': config.model.fusion.absent,
        'input': to_dict(config.model.modalities),
        'normalisation': config.data.normalisation,
        'clip': config.data.clip,
    }


def _encoded(system: System, config: Config, contract: Contract, names: Sequence[str]) -> Function:
    assert system.model is not None
    whole = system.model.config.model
    if 'last4_cls' in names and whole.depth < 4:
        raise InputError(f"features: 'last4_cls' needs four blocks, {system.name} has {whole.depth}")
    prepare = make_prepare(config, contract, None)
    graphdef = fusmae.graph(whole, system.model.dtype)

    def run(params: Any, batch: Batch) -> tuple[dict[str, Array], Array]:
        return pool(nnx.merge(graphdef, params), prepare(batch, None), names)

    return run


def _check_modalities(contract: Contract, modalities: Sequence[str], path: str) -> None:
    known = sorted({group.modality for group in contract.groups.values()})
    for name in modalities:
        if name not in known:
            raise InputError(f'encoder.modalities: {name!r} is not in {path}; {nearest(name, known)}')
