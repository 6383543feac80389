"""One safetensors file that `fusmae_jax.load` opens as any other encoder, and that says how to feed it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from fusmae_jax.encoders import single_file
from fusmae_jax.encoders.inputs import describe
from fusmae_jax.export.parity import expected
from fusmae_jax.export.source import Source


def write(file: epath.PathLike, source: Source) -> None:
    """Writes the file."""
    single_file.write(
        file,
        source.model,
        dtype=source.dtype,
        inputs=describe(source.model),
        card=source.card,
        seen=source.seen,
    )


def runner(file: epath.PathLike) -> Any:
    """(sensors, images) -> features of the encoder in the file."""
    model = single_file.read(file).model

    def run(given: tuple[str, ...], images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return expected(model, dict(images))

    return run
