"""Tables of positions: sine-cosine ones, and the matrix that brings a table to another grid.

In NumPy alone, so that whoever reads weight files need not load jax.
"""

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


def cubic_matrix(old: int, new: int, offset: float = 0.0) -> Float[np.ndarray, 'new old']:
    """Cubic convolution (a = -0.75, half-pixel centres, clamped border) from `old` to `new` samples.

    With an `offset`, `new + offset` instead of `new` samples would span the old ones: DINO's code adds 0.1 to
    the scale that it hands to PyTorch, against a rounding error, and so shifts its positions a little.
    """
    if old == new:
        return np.eye(old)
    # PyTorch's constant; Keys's own -1/2 would fit no published table.
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.floor(centre) + tap
        t = np.abs(centre - index)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0))
        # Taps beyond the border count for the sample at the border, so several may add up.
        np.add.at(matrix, (np.arange(new), np.clip(index, 0, old - 1).astype(int)), weight)
    return matrix
