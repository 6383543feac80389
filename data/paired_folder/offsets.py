"""Images of Sentinel-2 with different offsets in one data set, whose records have one.

Products since processing baseline 04.00 hold 1000 more than the older ones. Whole numbers are brought to the
lowest offset without a loss: 1000 is added to the others, which the offset of the contract takes off again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.paired_folder.layout import Kind, Layout
from data.records import RecordError, validity
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Group


def aligned(kind: Kind, first: Kind) -> Kind:
    """A kind of whole numbers with the offset of the first one, so that this alone is no difference."""
    if kind.dtype.startswith('float') or first.dtype.startswith('float'):
        return kind
    return kind._replace(values=kind.values._replace(offset=first.values.offset))


def lowest(layout: Layout, kinds: Sequence[Mapping[str, Sequence[Kind]]]) -> dict[str, float]:
    """Optical group of records -> the lowest offset of any image."""
    offsets: dict[str, float] = {}
    for part in layout.parts:
        if part.modality == 's2':
            own = min(image['s2'][part.index].values.offset for image in kinds)
            offsets[part.group] = min(own, offsets.get(part.group, own))
    return offsets


def shifts(layout: Layout, offsets: Mapping[str, float], kinds: Sequence[Kind]) -> list[int]:
    """What is added to the stored numbers of each Sentinel-2 file of an image; [] where nothing is.

    Raises InputError where it is no whole number.
    """
    parts = [part for part in layout.parts if part.modality == 's2']
    values = [kinds[part.index].values for part in parts]
    exact = [(v.offset - offsets[part.group]) / v.scale for part, v in zip(parts, values)]
    if odd := [x for x in exact if abs(x - round(x)) > 1e-6]:
        raise InputError(
            f'column s2_offset: the offsets of the images differ by {odd[0]:.6g} stored numbers, which is no '
            'whole one; convert images of one offset at a time'
        )
    return [*map(round, exact)] if any(map(round, exact)) else []


def shifted(file: Path, block: np.ndarray, group: Group, shift: int) -> np.ndarray:
    """Stored numbers with `shift` added where they are valid.

    Raises RecordError where a sum does not fit its type or would mean nodata.
    """
    valid = validity(block, group)
    moved = block.astype(np.int64) + shift
    values = moved[valid]
    highest = values.max(initial=0)
    if highest > np.iinfo(block.dtype).max or np.isin(values, np.array(group.nodata)).any():
        raise RecordError(
            file,
            's2 offset',
            f'{highest - shift} + {shift} has no room in {block.dtype} with nodata {group.nodata}',
            'numbers of images with another offset than the others are moved; convert this image apart',
        )
    return np.where(valid, moved, block).astype(block.dtype)
