"""Fixed two-dimensional sine-cosine positions."""

import numpy as np
from jaxtyping import Float


def sincos_2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, 'n d']:
    """Positions of a grid of patches, row-major, as in MultiMAE: the row half first, then the column half.

    Each half is `[sin(a w), cos(a w)]` with `a` the row (or column) index and the `width / 4` frequencies
    `w_i = 10000 ** (-i / (width / 4))`. MAE's table is the same with the two halves exchanged.

    Args:
        grid: patches along rows and columns.
        width: width of a token, a multiple of 4.

    Returns:
        A float64 table; cast it where it is used.
    """
    if width % 4:
        raise ValueError(f'{width=} must be a multiple of 4.')
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing='ij')
    angles = [np.outer(index.reshape(-1), frequencies) for index in (rows, columns)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
