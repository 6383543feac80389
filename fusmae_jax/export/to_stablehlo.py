"""StableHLO: the encoder as serialised programs of jax.export, with a free batch dimension.

A folder with one program for each set of sensors, the weights beside them in one file, a contract, and an
example. Weights are arguments and no constants: the programs share them, each batch size and platform
compiles without them, and a program stays below the 2 GB that a serialised one may have.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from jax import export

from fusmae_jax import storage
from fusmae_jax.encoders.inputs import describe
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.export.function import encode_function, encoder_weights, given_fields, subsets
from fusmae_jax.installed import need

PLATFORMS = ('cpu', 'cuda', 'tpu')
WEIGHTS, CONTRACT, EXAMPLE = 'weights.safetensors', 'contract.json', 'example.py'
TEXT = '''"""Runs the exported encoder: jax, numpy and flatbuffers are all it needs."""

import json
import pathlib

import jax
import numpy as np

here = pathlib.Path(__file__).parent
raw = (here / 'weights.safetensors').read_bytes()
start = 8 + int.from_bytes(raw[:8], 'little')
entries = {k: v for k, v in json.loads(raw[8:start]).items() if k != '__metadata__'}
weights = {}
for key, entry in entries.items():
    first, last = (start + at for at in entry['data_offsets'])
    weights[key] = np.frombuffer(raw[first:last], '<f4').reshape(entry['shape'])
contract = json.loads((here / 'contract.json').read_text())
name, program = next(reversed(contract['programs'].items()))  # all sensors together
encoder = jax.export.deserialize(bytearray((here / program['file']).read_bytes()))
# Your images, (b, rows, columns, bands) in the units of contract['inputs']; NaN where nothing was measured.
shapes = {field: contract['inputs'][field]['shape'][1:] for field in program['inputs']}
images = {field: np.full([2, *shape], np.nan, 'f4') for field, shape in shapes.items()}
features = encoder.call(weights, images)
print(name, {key: value.shape for key, value in features.items()})
'''


def program_name(given: tuple[str, ...]) -> str:
    """The file name of the program of some sensors, without its suffix."""
    return f'encoder_{"_".join(given)}'


def exported(model: Pretrained, given: tuple[str, ...]) -> export.Exported:
    """The program of some sensors, for all platforms and any number of images."""
    (batch,) = export.symbolic_shape('b')
    images = {
        field: jax.ShapeDtypeStruct((batch, *group.size, len(group.bands)), jnp.float32)
        for field, group in given_fields(model, given).items()
    }
    weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in encoder_weights(model).items()}
    return export.export(jax.jit(encode_function(model, given)), platforms=PLATFORMS)(weights, images)


def write(folder: epath.Path, model: Pretrained) -> dict[str, Any]:
    """Writes the folder; returns what its contract says.

    Raises:
        InputError: the package flatbuffers, which jax serialises with, is not installed.
    """
    check_installed()
    programs = {}
    for given in subsets(model):
        name = f'{program_name(given)}.stablehlo'
        storage.write_bytes(folder / name, bytes(exported(model, given).serialize()))
        programs['+'.join(given)] = {'file': name, 'inputs': [*given_fields(model, given)]}
    weights = {name: np.ascontiguousarray(x) for name, x in encoder_weights(model).items()}
    storage.write_bytes(folder / WEIGHTS, safetensors.numpy.save(weights))
    contract = {
        'format': 'fusmae_jax stablehlo 1',
        'call': f'program(weights, images): both by name; weights are those of {WEIGHTS}',
        'platforms': list(PLATFORMS),
        'jax': jax.__version__,
        'programs': programs,
        'weights': WEIGHTS,
        **describe(model),
    }
    storage.write_json(folder / CONTRACT, contract)
    storage.write_text(folder / EXAMPLE, TEXT)
    return contract


def runner(folder: epath.Path) -> Any:
    """(sensors, images) -> features, of what is stored in a folder."""
    contract = json.loads((folder / CONTRACT).read_text())
    weights = safetensors.numpy.load((folder / WEIGHTS).read_bytes())
    programs = {
        name: export.deserialize(bytearray((folder / program['file']).read_bytes()))
        for name, program in contract['programs'].items()
    }

    def run(given: tuple[str, ...], images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return jax.device_get(programs['+'.join(given)].call(weights, dict(images)))

    return run


def check_installed() -> None:
    """Raises InputError without what jax.export serialises with."""
    need('export', '--to=stablehlo', 'flatbuffers')
