"""Late fusion: one unimodal encoder for each sensor, their features side by side. It is no training mode."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from fusmae_jax.encoders.pretrained import Embedding, Pretrained
from fusmae_jax.encoders.settings import Encoder
from fusmae_jax.encoders.systems import System
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.evaluation_config import Task
from fusmae_jax.eval.features import Extractor, Features


class LateFusion:
    """Several encoders as one, each with the modality that it is given under."""

    def __init__(self, models: Mapping[str, Pretrained]):
        """`models` by modality; the features come in this order."""
        if not models:
            raise InputError('late fusion needs at least one model')
        self.models = dict(models)

    def encode(
        self,
        images: Mapping[str, Any],
        *,
        units: Mapping[str, str],
        resolution: float | Mapping[str, float] | None = None,
        accept: Sequence[str] = (),
    ) -> Embedding:
        """Features of any non-empty subset of the modalities.

        Tokens are those of each modality's own encoder. `cls` and `pooled` stand side by side in the order of
        the models, so that they are as wide as those of the encoders in use together. Arguments are those of
        `Pretrained.encode`.

        Raises:
            InputError: for a modality without an encoder; for images of different number; and as the
                encoders do.
        """
        for name in images:
            if name not in self.models:
                raise InputError(f'images[{name!r}] has no encoder here; {nearest(name, self.models)}')
        if not images:
            raise InputError(f'images is empty; give one or more of {list(self.models)}')
        parts = {
            name: model.encode(
                {name: images[name]},
                units=units,
                resolution=_part(resolution, name, images[name]),
                accept=accept,
            )
            for name, model in self.models.items()
            if name in images
        }
        sizes = {name: len(part.cls) for name, part in parts.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f'images: the modalities differ in their number of images: {sizes}')
        tokens = {name: part.tokens[name] for name, part in parts.items()}
        cls, pooled = (side_by_side(x) for x in zip(*((part.cls, part.pooled) for part in parts.values())))
        return Embedding(tokens, cls, pooled)


def _part(resolution: Any, name: str, image: Any) -> Any:
    """What of a `resolution` by name is about one modality, or one of its record fields."""
    if not isinstance(resolution, Mapping):
        return resolution
    fields = image if isinstance(image, Mapping) else ()
    return {key: value for key, value in resolution.items() if key == name or key in fields}


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
