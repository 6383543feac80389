"""Images to flattened patches and back; the layout of a patch is (rows, columns, bands), as in MAE."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Shaped


class Patches(NamedTuple):
    """Normalised, flattened patches of one modality in raster order; 0 is the sensor's mean."""

    values: Float[Array, 'b n p']  # p = rows * columns * bands of a patch; 0 where nothing valid is near
    valid: Bool[Array, 'b n p']  # False for numbers that rest on a missing pixel


def patchify(image: Shaped[Array, 'b h w c'], patch_size: int) -> Shaped[Array, 'b n p']:
    """Cuts images into patches of `patch_size` x `patch_size`, row-major."""
    batch, height, width, bands = image.shape
    rows, columns = height // patch_size, width // patch_size
    x = image.reshape(batch, rows, patch_size, columns, patch_size, bands)
    return x.swapaxes(2, 3).reshape(batch, rows * columns, patch_size**2 * bands)


def unpatchify(
    patches: Shaped[np.ndarray, 'b n p'], grid: tuple[int, int], patch_size: int
) -> Shaped[np.ndarray, 'b h w c']:
    """The inverse of `patchify`, on the host."""
    batch, (rows, columns) = patches.shape[0], grid
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return x.swapaxes(2, 3).reshape(batch, rows * patch_size, columns * patch_size, -1)
