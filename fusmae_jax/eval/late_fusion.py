"""Late fusion: one unimodal encoder for each sensor, their features side by side. It is no training mode."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from fusmae_jax.encoders.settings import Encoder
from fusmae_jax.encoders.systems import System
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.evaluation_config import Task
from fusmae_jax.eval.features import Extractor, Features


def side_by_side(features: Sequence[np.ndarray]) -> np.ndarray:
    """Features (b, d) of the same records from several encoders as one, (b, sum of d)."""
    if len({len(x) for x in features}) > 1:
        raise InputError(
            f'late fusion: {[len(x) for x in features]} records; the encoders need the same ones'
        )
    return np.concatenate(features, axis=-1)


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
                side_by_side([found[name].values for found in each]),
                np.logical_or.reduce([found[name].valid for found in each]),
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
    settings: Encoder,
    image: str = 'resize',
) -> Extractor | Extractors:
    """Features of one encoder, or of those of late fusion that read one of the modalities.

    Raises:
        InputError: a modality that no encoder reads; and as `Extractor` does.
    """
    if not system.parts:
        return Extractor(system, data, modalities, names, settings, image)
    known = [(part, tuple(part.model.config.model.modalities)) for part in system.parts if part.model]
    every = [name for _, own in known for name in own]
    for name in modalities:
        if name not in every:
            raise InputError(f'encoder.modalities: {name!r} is not in {system.name}; {nearest(name, every)}')
    used = [(part, tuple(m for m in own if m in modalities)) for part, own in known]
    return Extractors([Extractor(part, data, given, names, settings, image) for part, given in used if given])
