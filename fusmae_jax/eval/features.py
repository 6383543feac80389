"""Features of whole splits: extracted once, in batches of one shape, and kept beside the run.

A stored file says in full what it was made from: weights, data, split, modalities, rule for absent ones,
statistics; and the digest of the records' names in their order. It is used again only where all of that is
the same.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array

from fusmae_jax.config.build import to_dict
from fusmae_jax.config.run import Config, Parallel
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import System, fit
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval import crops
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.pooling import BAND_STATISTICS, Batch, Function, band_statistics, check_pooled, pool
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import pipeline, presets
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract, fingerprint
from fusmae_jax.input.fractions import digest
from fusmae_jax.input.prepare import fields
from fusmae_jax.input.source import Source
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fusmae_jax.parallel.rules import Params
from fusmae_jax.storage import read_npz, write_npz
from fusmae_jax.train.step import abstract_batch

FORMAT = 1  # of what a feature means


class Features(NamedTuple):
    """One pooled feature of the records of a split, in their order."""

    values: np.ndarray  # (records, width) float32
    valid: np.ndarray  # (records,) bool: a given modality has a valid pixel; otherwise the values are 0


class Extractor:
    """Features of any split of a data set, for one system and some modalities: compiled once at most."""

    def __init__(
        self,
        system: System,
        data: Task,
        modalities: Sequence[str],
        names: Sequence[str],
        settings: EncoderSettings,
        image: str = 'resize',
    ):
        """`names` of pooled features are replaced with `band_stats` for a system without a model.

        With image='crops' a feature is the mean over the four quarters of a record; band statistics are
        always of the whole.

        Raises:
            InputError: modalities, data and model do not fit together.
        """
        self._data, self._contract = data, contracts.read(data.path)
        self._image, self._view = image, crops.view_contract(self._contract, image)
        self._modalities = tuple(modalities)
        # Every process extracts all records on its own devices: a feature depends on no other record.
        self._mesh = make_mesh(Parallel(), jax.local_devices())
        self.batch = -(-settings.batch // self._mesh.size) * self._mesh.size
        self.fitted: Fitted | None = None  # how the model reads the data
        self._params: Any = {}
        if system.model is None:
            known = sorted({group.modality for group in self._contract.groups.values()})
            for name in modalities:
                if name not in known:
                    raise InputError(
                        f'encoder.modalities: {name!r} is not in {data.path}; {nearest(name, known)}'
                    )
            self.names: tuple[str, ...] = (BAND_STATISTICS,)
            self._fields, self._function = band_statistics(self._contract, modalities)
        else:
            self.fitted = fit(system.model, self._view, modalities, settings, data.path)
            self.names, self._params = tuple(names), system.model.params
            self._fields = tuple(fields(self.fitted.config, self._contract))
            self._function = _encoded(system, self.fitted.config, self._contract, self.names, image)
        self._digests: dict[str, str] = {}  # split -> of its records
        self._about = _about(system, self._contract, modalities, self.fitted, image)

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
            InputError: a feature that is not finite, or no record with a valid pixel.
        """
        # All or none: one pass through the encoder gives every feature.
        stored = {name: self._read(split, name, folder) for name in self.names} if folder else {}
        if all(stored.get(name) is not None for name in self.names):
            return {name: f for name, f in stored.items() if f is not None}
        fresh = self._extract(split)
        # Only once the whole split has passed the checks.
        if folder:
            for name, features in fresh.items():
                self._write(split, name, features, epath.Path(folder))
        return fresh

    @property
    def notes(self) -> list[str]:
        """How the data differ from what the model knows, in words."""
        return self.fitted.notes if self.fitted else []

    def row_fields(self) -> dict[str, Any]:
        """The fields of a result row that tell what the encoder saw."""
        if self.fitted is None:
            return {
                'modalities': self._modalities,
                'absent': None,
                'image': 'native grids',
                'statistics': 'those of the labelled records',
                'accepted': (),
            }
        config = self.fitted.config
        return {
            'modalities': tuple(config.model.modalities),
            'absent': config.model.fusion.absent,
            'image': presets.describe_image(config, self._view, self._image == 'crops'),
            'statistics': presets.describe_statistics(config),
            'accepted': self.fitted.shifts,
        }

    def _extract(self, split: str) -> dict[str, Features]:
        source = Source(self._data.path, split, self._fields)
        values: dict[str, np.ndarray] = {}
        valid = np.zeros(len(source), bool)
        stream = pipeline.over_split(
            source,
            lambda batch: jax.device_get(self._run(batch)),
            batch_sharding(self._mesh),
            self.batch,
            self._data,
        )
        for rows, (features, seen) in stream:
            count = rows.stop - rows.start
            valid[rows] = seen[:count]
            for name, x in features.items():
                # At once: what comes after is not worth extracting.
                if not np.isfinite(x).all():
                    raise InputError(
                        f'{self._data.path}, {split}: {name} of records {rows.start} to {rows.stop - 1} is '
                        'not finite; has the model diverged?'
                    )
                values.setdefault(name, np.empty((len(source), x.shape[1]), np.float32))[rows] = x[:count]
        if not valid.any():
            raise InputError(
                f'{self._data.path}, {split}: no record has a valid pixel of {"+".join(self._modalities)}; '
                'there is nothing to evaluate'
            )
        return {name: Features(x, valid) for name, x in values.items()}

    def _file(self, split: str, name: str, folder: epath.Path) -> tuple[epath.Path, str]:
        """Where a feature is stored, and what it is of in words that a stored one must equal."""
        about = self._about | {'split': split, 'feature': name}
        plain = ''.join(c if c.isalnum() else '_' for c in split)
        sensors = '+'.join(self._about['modalities'])
        return folder / f'{plain}-{sensors}-{name}-{fingerprint(about)}.npz', json.dumps(
            about, sort_keys=True
        )

    def _records(self, split: str) -> str:
        """The digest of the names of a split's records in their order."""
        if split not in self._digests:
            key = self._contract.key
            self._digests[split] = digest(Source(self._data.path, split, ()).index([key])[key])
        return self._digests[split]

    def _read(self, split: str, name: str, folder: epath.PathLike) -> Features | None:
        file, about = self._file(split, name, epath.Path(folder))
        if not file.exists():
            return None
        with read_npz(file, 'remove it') as archive:
            # Files of earlier versions have no digest: their records were not compared with the index.
            if str(archive['about']) != about or str(archive.get('records')) != self._records(split):
                return None
            return Features(archive['values'], archive['valid'])

    def _write(self, split: str, name: str, features: Features, folder: epath.Path) -> None:
        """Whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        file, about = self._file(split, name, folder)
        arrays = {'values': features.values, 'valid': features.valid}
        write_npz(file, arrays | {'about': np.array(about), 'records': np.array(self._records(split))})


class Extractors:
    """The features of late fusion, as an `Extractor` gives those of one encoder.

    The encoders of modalities that are not given take no part, so nothing stands in for them.
    """

    def __init__(self, parts: Sequence[Extractor]):
        """One extractor for each encoder in use, in the order of their features."""
        self._parts, self.names = parts, parts[0].names

    def __call__(self, split: str, folder: epath.PathLike | None = None) -> dict[str, Features]:
        """The features of a split by name; a record is valid where one of its encoders has seen something."""
        each = [part(split, folder) for part in self._parts]
        return {
            name: Features(
                np.concatenate([features[name].values for features in each], axis=-1),
                np.logical_or.reduce([features[name].valid for features in each]),
            )
            for name in self.names
        }

    @property
    def notes(self) -> list[str]:
        """How the data differ from what the encoders know, in words."""
        return list(dict.fromkeys(line for part in self._parts for line in part.notes))

    def row_fields(self) -> dict[str, Any]:
        """The fields of a result row that tell what the encoders saw."""
        each = [part.row_fields() for part in self._parts]
        images = dict.fromkeys(fields['image'] for fields in each)
        return {
            'modalities': tuple(name for fields in each for name in fields['modalities']),
            'absent': None,
            'image': ', '.join(images),
            'statistics': '; '.join(dict.fromkeys(fields['statistics'] for fields in each)),
            'accepted': tuple(dict.fromkeys(shift for fields in each for shift in fields['accepted'])),
        }


def make_extractor(
    system: System,
    data: Task,
    modalities: Sequence[str],
    names: Sequence[str],
    settings: EncoderSettings,
    image: str = 'resize',
) -> Extractor | Extractors:
    """Features of one encoder, or of those of late fusion that read one of the modalities.

    Raises:
        InputError: a modality that no encoder reads; and as `Extractor` does.
    """
    if not system.parts:
        return Extractor(system, data, modalities, names, settings, image)
    known = [(part, tuple(part.model.config.model.modalities)) for part in system.parts if part.model]
    every = [name for _, readable in known for name in readable]
    for name in modalities:
        if name not in every:
            raise InputError(f'encoder.modalities: {name!r} is not in {system.name}; {nearest(name, every)}')
    used = [(part, tuple(m for m in readable if m in modalities)) for part, readable in known]
    return Extractors([Extractor(part, data, given, names, settings, image) for part, given in used if given])


def _about(
    system: System, contract: Contract, modalities: Sequence[str], fitted: Fitted | None, image: str
) -> dict[str, Any]:
    """Everything that decides the features of a record."""
    about: dict[str, Any] = {
        'format': FORMAT,
        'weights': system.fingerprint,
        'data': contract.digest,
        'modalities': list(modalities),
    }
    if fitted is None:
        return about
    config = fitted.config
    preset = {'preset': presets.preset_fields(config)} if config.preset else {}
    view = {'image': image} if image != 'resize' else {}
    return about | {
        'modalities': list(config.model.modalities),
        'absent': config.model.fusion.absent,
        'input': to_dict(config.model.modalities),
        'normalisation': config.data.normalisation,
        'clip': config.data.clip,
        **preset,
        **view,
    }


def _encoded(
    system: System, config: Config, contract: Contract, names: Sequence[str], image: str
) -> Function:
    assert system.model is not None
    # The whole model is built, since its parameters have the names of all sensors; inputs are those given.
    whole = system.model.config.model
    check_pooled(names, whole, system.name)
    inputs = presets.make_inputs(config, crops.view_contract(contract, image))
    graphdef = fusmae.graph(whole, system.model.dtype)

    def run(params: Params, batch: Batch) -> tuple[dict[str, Array], Array]:
        model = nnx.merge(graphdef, params)
        if image == 'resize':
            return pool(model, inputs(batch, None), names)
        pooled, seen = pool(model, inputs(crops.all_crops(batch, contract), None), names)
        means = {name: crops.crop_mean(x, seen) for name, x in pooled.items()}
        return {name: mean for name, (mean, _) in means.items()}, crops.crop_any(seen)

    return run
