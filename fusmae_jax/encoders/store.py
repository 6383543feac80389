"""The folder of an imported encoder: weights under our names, settings with the input preset, provenance.

`python main.py import` writes such folders (see `interop.published`); `systems.open_system` takes one where
it takes the working directory of a run.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.build import from_dict, to_dict
from fusmae_jax.encoders.pretrained import Embedding, Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.presets import PresetConfig, settled

ABOUT, WEIGHTS, FORMAT = 'published.json', 'params.safetensors', 1


class Imported(Pretrained):
    """An encoder whose inputs are made by its preset, which `encode` does not know."""

    def encode(self, images: Mapping[str, Any], *, units: Mapping[str, str], **_: Any) -> Embedding:
        """Raises InputError: `Pretrained.encode` would make other inputs than the weights learned from."""
        raise InputError(
            f'{self.config.name}: imported weights have inputs of their own, which this does not make; '
            'linear_probe, knn and finetune do'
        )


class Published(NamedTuple):
    """An imported encoder."""

    model: Pretrained
    about: dict[str, Any]  # the rest of published.json: kind, file, its sha256, what the import noted
    untouched: bool  # it has seen no satellite image that a record could be; False: nobody can tell


def is_published(path: epath.PathLike) -> bool:
    """Whether a path is such a folder."""
    return (epath.Path(path) / ABOUT).is_file()


def digest(folder: epath.PathLike) -> str:
    """16 hexadecimal digits of the settings and weights of such a folder."""
    return storage.digest((epath.Path(folder) / name).read_bytes() for name in (ABOUT, WEIGHTS))


def write(
    folder: epath.PathLike,
    config: PresetConfig,
    contract: Contract,
    params: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Writes the folder; the JSON, by which it is recognised, comes last.

    Args:
        folder: is created; what an earlier import left there is replaced.
        config: the settings of the encoder.
        contract: what is known of the data that it learned from; empty for nothing.
        params: nested arrays.
        about: what JSON can hold, with `untouched` as in `Published`.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    weights = {path: np.ascontiguousarray(x) for path, x in _flat(params).items()}
    storage.write_bytes(folder / WEIGHTS, safetensors.numpy.save(weights))
    values = {
        'format': FORMAT,
        'config': to_dict(config),
        'contract': to_dict(contract),
        'about': dict(about),
    }
    storage.write_json(folder / ABOUT, values)


def read(folder: epath.PathLike) -> Published:
    """The encoder in a folder; raises InputError where it is damaged or of another format."""
    folder = epath.Path(folder)
    file = folder / ABOUT
    try:
        values = json.loads(file.read_text())
        found, about = values['format'], values['about']
        config = from_dict(PresetConfig, values['config'], f'{file}: config')
        contract = contracts.from_values(values['contract'], f'{file}: contract')
        untouched = bool(about['untouched'])
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(
            f'{file}: not what an import writes ({error!r}); import the weights again'
        ) from error
    if found != FORMAT:
        raise InputError(f'{file}: format {found!r}, this version reads {FORMAT}; import the weights again')
    try:
        weights = safetensors.numpy.load((folder / WEIGHTS).read_bytes())
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f'{folder / WEIGHTS}: cannot be read ({error}); import the weights again') from error
    params: dict[str, Any] = {}
    for path, value in weights.items():
        *parents, leaf = path.split('/')
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(value)
    return Published(Imported(settled(config), contract, params, 'float32'), about, untouched)


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        path = f'{prefix}{name}'
        flat |= _flat(value, f'{path}/') if isinstance(value, Mapping) else {path: np.asarray(value)}
    return flat
