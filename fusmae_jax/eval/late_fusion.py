"""Late fusion: one unimodal encoder for each sensor, their features side by side. It is no training mode."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.inference import Embedding, Pretrained


class LateFusion:
    """Several encoders as one, each with the modality that it is given under."""

    def __init__(self, models: Mapping[str, Pretrained]):
        """`models` by modality; the features come in this order."""
        if not models:
            raise InputError('late fusion needs at least one model')
        self.models = dict(models)

    def encode(self, images: Mapping[str, Any], *, units: Mapping[str, str]) -> Embedding:
        """Features of any non-empty subset of the modalities.

        Tokens are those of each modality's own encoder. `cls` and `pooled` stand side by side in the order of
        the models, so that they are as wide as those of the encoders in use together.

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
            name: model.encode({name: images[name]}, units=units)
            for name, model in self.models.items()
            if name in images
        }
        sizes = {name: len(part.cls) for name, part in parts.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f'images: the modalities differ in their number of images: {sizes}')
        tokens = {name: part.tokens[name] for name, part in parts.items()}
        cls, pooled = (side_by_side(x) for x in zip(*((part.cls, part.pooled) for part in parts.values())))
        return Embedding(tokens, cls, pooled)


def side_by_side(features: Sequence[np.ndarray]) -> np.ndarray:
    """Features (b, d) of the same records from several encoders as one, (b, sum of d)."""
    if len({len(x) for x in features}) > 1:
        raise InputError(
            f'late fusion: {[len(x) for x in features]} records; the encoders need the same ones'
        )
    return np.concatenate(features, axis=-1)
