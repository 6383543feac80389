"""The folder of an imported encoder: weights under our names, settings with the input preset, provenance.

`python main.py import` writes such folders (see `interop.weights.published`); `encoders.load` takes one where
it takes the working directory of a run.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import traverse_util

from fusmae_jax import storage
from fusmae_jax.config.build import from_dict, to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import Contract
from fusmae_jax.parallel.rules import Params

ABOUT, WEIGHTS, FORMAT = 'published.json', 'params.safetensors', 1


class Imported(NamedTuple):
    """An imported encoder."""

    model: Pretrained
    about: dict[str, Any]  # the rest of published.json: kind, file, its sha256, what the import noted
    untouched: bool  # it has seen no satellite image that a record could be; False: nobody can tell


def is_imported(path: epath.PathLike) -> bool:
    """Whether a path is such a folder."""
    return (epath.Path(path) / ABOUT).is_file()


def digest(folder: epath.PathLike) -> str:
    """16 hexadecimal digits of the settings and weights of such a folder."""
    return storage.digest((epath.Path(folder) / name).read_bytes() for name in (ABOUT, WEIGHTS))


def write(
    folder: epath.PathLike,
    config: Config,
    contract: Contract,
    params: Params,
    about: Mapping[str, Any],
) -> None:
    """Writes the folder; the JSON, by which it is recognised, comes last.

    Args:
        folder: is created; what an earlier import left there is replaced.
        config: the settings of the encoder.
        contract: what is known of the data that it learned from; empty for nothing.
        params: nested arrays.
        about: what JSON can hold, with `untouched` as in `Imported`.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    flat = traverse_util.flatten_dict(params, sep='/')
    weights = {path: np.ascontiguousarray(x) for path, x in flat.items()}
    storage.write_bytes(folder / WEIGHTS, safetensors.numpy.save(weights))
    values = {
        'format': FORMAT,
        'config': to_dict(config),
        'contract': to_dict(contract),
        'about': dict(about),
    }
    storage.write_json(folder / ABOUT, values)


def read(folder: epath.PathLike) -> Imported:
    """The encoder in a folder; raises InputError where it is damaged or of another format."""
    folder = epath.Path(folder)
    file = folder / ABOUT
    try:
        values = json.loads(file.read_text())
        written, about = values['format'], values['about']
        config = from_dict(Config, _with_cls(values['config']), f'{file}: config')
        contract = contracts.from_values(values['contract'], f'{file}: contract')
        untouched = bool(about['untouched'])
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(
            f'{file}: not what an import writes ({error!r}); import the weights again'
        ) from error
    if written != FORMAT:
        raise InputError(f'{file}: format {written!r}, this version reads {FORMAT}; import the weights again')
    try:
        weights = safetensors.numpy.load((folder / WEIGHTS).read_bytes())
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f'{folder / WEIGHTS}: cannot be read ({error}); import the weights again') from error
    params = traverse_util.unflatten_dict(jax.device_put(weights), sep='/')
    return Imported(Pretrained(config, contract, params, 'float32'), about, untouched)


def _with_cls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, of which older ones say in the preset whether the model has a CLS token."""
    preset = dict(values['preset'])
    model = {'cls': preset.pop('cls', True)} | dict(values['model'])
    return {**values, 'preset': preset, 'model': model}
