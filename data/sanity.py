"""What every image of a unit must satisfy, checked while it is converted; the doctor looks closer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.records import Item, Record, RecordError, Schema
from fusmae_jax.input import ranges


def read(reader: Callable[[Item], Record], item: Item, schema: Schema) -> Record:
    """The record of an item, whatever archive it comes from; raises RecordError for impossible values."""
    record = reader(item)
    for modality in dict.fromkeys(group.modality for group in schema.groups.values()):
        groups = {field: group for field, group in schema.groups.items() if group.modality == modality}
        problem = ranges.check_image({field: record[field] for field in groups}, groups)
        if problem is not None:
            where = f'{modality} {problem.band or "unit"}'
            raise RecordError(record[schema.key], where, problem.found, problem.advice)
    return record


def check_decibel(file: Path, image: np.ndarray) -> None:
    """Raises RecordError for backscatter without a negative value: power and amplitude have none, dB does."""
    finite = image[np.isfinite(image)]
    if finite.size and finite.min() >= 0:
        raise RecordError(
            file,
            's1 (VV, VH)',
            f'no negative value (from {finite.min():.4g} to {finite.max():.4g}): not dB',
            'linear power or digital numbers? Convert with 10 log10(power), or unpack the original patch',
        )
