"""What every image of a unit must satisfy, checked while it is converted; the doctor looks closer."""

from pathlib import Path

import numpy as np

from data.records import RecordError


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
