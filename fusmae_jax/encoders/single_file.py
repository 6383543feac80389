"""An encoder as one safetensors file, whose header says how to feed it.

The tensors are the parameters under our own names. The metadata of the header are texts, as the format wants
them: `config` (the settings of the encoder, with its preset), `contract` (of the data that it learned from),
`inputs` (what a program has to give it, for readers without this package) and `card`. `fusmae_jax.load` takes
such a file where it takes the working directory of a run.
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
from fusmae_jax.config.checks import check_model
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import seen as seen_records
from fusmae_jax.input.seen import Seen
from fusmae_jax.models import fusmae

SUFFIX = '.safetensors'
FORMAT = 'fusmae_jax encoder 1'
SEEN = 'records_seen'  # beside the parameters: the names of the records that the encoder learned from
REMEDY = 'give a file that `python main.py export --to=safetensors` wrote'


class Opened(NamedTuple):
    """What such a file holds."""

    model: Pretrained
    card: dict[str, Any]  # the essentials of its model card
    seen: Seen | None  # None where nobody wrote them down


def is_single_file(path: epath.PathLike) -> bool:
    """Whether a path has the name of such a file."""
    return str(path).endswith(SUFFIX)


def digest(file: epath.PathLike) -> str:
    """16 hexadecimal digits of the content of such a file."""
    return storage.digest([epath.Path(file).read_bytes()])


def write(
    file: epath.PathLike,
    model: Pretrained,
    *,
    dtype: str,
    inputs: Mapping[str, Any],
    card: Mapping[str, Any],
    seen: bytes | None,
) -> None:
    """Writes the file, whole or not at all.

    Args:
        file: a name that ends in .safetensors.
        model: the encoder.
        dtype: the type of its matrix products on an accelerator.
        inputs: what to give it, as JSON can hold it.
        card: the essentials of its model card, likewise.
        seen: the records that it learned from (`input.seen.to_bytes`), or None.
    """
    tensors = {name: np.asarray(x) for name, x in traverse_util.flatten_dict(model.params, sep='/').items()}
    if seen is not None:
        tensors[SEEN] = np.frombuffer(seen, np.uint8)
    metadata = {
        'format': FORMAT,
        'dtype': dtype,
        'config': json.dumps(to_dict(model.config)),
        'contract': json.dumps(to_dict(model.contract)),
        'inputs': json.dumps(inputs),
        'card': json.dumps(card),
    }
    content = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    storage.write_bytes(file, safetensors.numpy.save(content, metadata))


def read(file: epath.PathLike) -> Opened:
    """The encoder in a file; raises InputError where it is missing, damaged, or another kind of file."""
    file = epath.Path(file)
    if not file.is_file():
        raise InputError(f'{file}: no such file; {REMEDY}')
    tensors, about = _parts(file)
    if about.get('format') != FORMAT:
        raise InputError(
            f'{file}: a safetensors file of format {about.get("format", "")!r}, not {FORMAT!r}; {REMEDY}, or '
            'read weights of another project with `python main.py import`'
        )
    try:
        config = from_dict(Config, json.loads(about['config']), f'{file}: config')
        contract = contracts.from_values(json.loads(about['contract']), f'{file}: contract')
        card, dtype = json.loads(about['card']), about['dtype']
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(f'{file}: its header is not what an export writes ({error!r}); {REMEDY}') from error
    raise_all(f'{file}: its settings cannot be used', check_model(config.model))
    packed = tensors.pop(SEEN, None)
    seen = None if packed is None else seen_records.from_bytes(packed.tobytes(), str(file))
    if card.get('untouched'):
        seen = seen_records.nothing()
    _check_shapes(file, config, tensors)
    params = traverse_util.unflatten_dict(jax.device_put(tensors), sep='/')
    # As of a checkpoint: a CPU has no fast bfloat16.
    dtype = 'float32' if jax.default_backend() == 'cpu' and dtype == 'bfloat16' else dtype
    return Opened(Pretrained(config, contract, params, dtype), card, seen)


def _parts(file: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata."""
    content = file.read_bytes()
    try:
        tensors = dict(safetensors.numpy.load(content))
        # Already checked by the library, which gives the metadata of local files alone.
        length = int.from_bytes(content[:8], 'little')
        metadata = json.loads(content[8 : 8 + length]).get('__metadata__') or {}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{file}: not a whole safetensors file ({error}); {REMEDY}') from error
    return tensors, metadata


def _check_shapes(file: epath.Path, config: Config, tensors: Mapping[str, np.ndarray]) -> None:
    shapes = fusmae.param_shapes(config.model)
    expected = {n: tuple(x.shape) for n, x in traverse_util.flatten_dict(shapes, sep='/').items()}
    given = {name: x.shape for name, x in tensors.items()}
    names = sorted(expected.keys() | given.keys())
    problems = [
        f'{name}: the file has {given.get(name, "none")}, the settings say {expected.get(name, "none")}'
        for name in names
        if given.get(name) != expected.get(name)
    ]
    raise_all(f'{file}: its weights do not fit its settings', problems[:10])
