"""How backscatter is stored: as the archive gives it, or in 16 bits with a loss that is declared and checked.

Two fifths of a BigEarthNet record are Sentinel-1 in float32. `int16` holds steps of 0.01 dB, `float16` has
11 significant bits. The contract says so (type, scale, nodata), and whoever reads the set needs nothing else.
The digests by which `leaks` knows an image are of what the archive gave, however it is stored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.geo.bands import RADAR
from fusmae_jax.input.contract import Group

from .records import Record, RecordError, Schema, validity

Kind = Literal['float32', 'float16', 'int16']
STEP = 0.01  # dB of an int16
NODATA = -32768
# What rounding may change a value by, in dB: half a step, and float32's own rounding of values up to 328.
LIMITS = {'int16': STEP / 2 + 2e-5, 'float16': 2.0**-6}
# A float16 keeps that limit up to here; int16 has no numbers beyond.
LARGEST = {'int16': 327.67, 'float16': 64.0}


def stored_schema(schema: Schema, kind: Kind) -> Schema:
    """The schema of the records that are written.

    Raises:
        InputError: there is no float32 backscatter in decibels to be stored so.
    """
    if kind == 'float32':
        return schema
    groups = {name: group for name, group in schema.groups.items() if group.modality in RADAR}
    if not groups:
        raise InputError(
            f'config.s1_storage={kind!r}: {schema.name} has no Sentinel-1; leave the setting out'
        )
    for name, group in groups.items():
        if group.dtype != 'float32' or group.unit != 'dB':
            raise InputError(
                f'config.s1_storage={kind!r}: {name} is {group.dtype} in {group.unit!r}; float32 in dB alone '
                'can be stored in 16 bits with a known loss; leave the setting out'
            )
    note = f'stored as {kind}, by which a value changes by at most {LIMITS[kind]:.2g} dB'
    return dataclasses.replace(
        schema,
        groups={**schema.groups, **{name: _stored_group(group, kind) for name, group in groups.items()}},
        products={
            **schema.products,
            **{
                name: dataclasses.replace(product, description=f'{product.description}; {note}')
                for name, product in schema.products.items()
                if name in RADAR
            },
        },
    )


def _stored_group(group: Group, kind: Kind) -> Group:
    scale, nodata = (STEP, (float(NODATA),)) if kind == 'int16' else (1.0, ())
    return dataclasses.replace(group, dtype=kind, scale=scale, offset=0.0, nodata=nodata)


def store(record: Record, given: Schema, stored: Schema) -> tuple[Record, dict[str, float]]:
    """A record as it is written, and the largest change of a value in each field that was rounded, dB.

    Args:
        record: with the images of the archive.
        given: their schema.
        stored: that of `stored_schema`.

    Raises:
        RecordError: a value that the type cannot hold with the declared loss.
    """
    images, losses = {}, {}
    for name, group in stored.groups.items():
        if group != given.groups[name]:
            where = str(record[given.key])
            images[name], losses[name] = _round(record[name], given.groups[name], group, where)
    return record | images, losses


def _round(image: np.ndarray, given: Group, stored: Group, where: str) -> tuple[np.ndarray, float]:
    """The image in its new type and the largest change; `where` names the record."""
    valid = validity(image, given)
    decibels = np.where(valid, image, 0).astype(np.float64) * given.scale + given.offset
    decibels[~valid] = 0
    largest = LARGEST[stored.dtype]
    if (beyond := np.abs(decibels) > largest).any():
        band = stored.bands[int(np.argwhere(beyond)[0][-1])]
        raise RecordError(
            where,
            f's1 {band}',
            f'{decibels[beyond][0]:.6g} dB, and s1_storage={stored.dtype} holds {largest:g} dB at most',
            'set s1_storage=float32, or leave such records out with on_error=skip',
        )
    whole = np.dtype(stored.dtype).kind == 'i'
    values = np.rint(decibels / stored.scale) if whole else decibels
    result = np.where(valid, values, NODATA if whole else np.nan).astype(stored.dtype)
    back = result.astype(np.float32) * np.float32(stored.scale)
    loss = float(np.abs(np.where(valid, back - decibels, 0)).max(initial=0.0))
    if loss > LIMITS[stored.dtype]:
        raise RecordError(
            where,
            's1',
            f'stored as {stored.dtype} a value changes by {loss:.3g} dB, more than {LIMITS[stored.dtype]:g}',
            'set s1_storage=float32',
        )
    return result, loss


def largest(losses: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """The larger of two losses in each field."""
    return {name: max(losses.get(name, 0.0), more.get(name, 0.0)) for name in {**losses, **more}}
