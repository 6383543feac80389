"""What tests do to files: damage of any, and GeoTIFFs that are read and written again."""

from pathlib import Path

import numpy as np
import rasterio


def flip(file: Path) -> None:
    """Turns one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path, size: int | None = None) -> None:
    """Leaves the first `size` bytes, or half of them."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 if size is None else size])


def pixels(file: Path) -> np.ndarray:
    with rasterio.open(file) as dataset:
        return dataset.read()


def rewrite(file: Path, values=None, **changes) -> None:
    """Writes a GeoTIFF again with other pixels (bands, rows, columns), or another profile."""
    with rasterio.open(file) as old:
        profile, values = old.profile, old.read() if values is None else values
    values = values.reshape(-1, *values.shape[-2:])  # one band may come without its axis
    profile |= {'count': values.shape[0], 'height': values.shape[1], 'width': values.shape[2]}
    file.unlink()
    with rasterio.open(file, 'w', **{**profile, 'dtype': values.dtype, **changes}) as new:
        new.write(values)


def shift(file: Path, step: float) -> None:
    """Moves a GeoTIFF by so many of its own pixels to the right."""
    with rasterio.open(file) as dataset:
        transform = dataset.transform
    rewrite(file, transform=transform @ rasterio.Affine.translation(step, 0))
