import math

import numpy as np
import pytest

from fusmae_jax.models.positions import sincos_2d


@pytest.mark.parametrize('grid', [(3, 3), (2, 5)])
def test_every_entry_follows_the_formula_row_half_first(grid):
    width = 16
    table = sincos_2d(grid, width)
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = table[row * grid[1] + column]
            for i in range(quarter):
                w = 10000 ** (-i / quarter)
                assert token[i] == pytest.approx(math.sin(row * w), abs=1e-15)
                assert token[quarter + i] == pytest.approx(math.cos(row * w), abs=1e-15)
                assert token[2 * quarter + i] == pytest.approx(math.sin(column * w), abs=1e-15)
                assert token[3 * quarter + i] == pytest.approx(math.cos(column * w), abs=1e-15)


def test_positions_are_distinct_and_width_is_checked():
    assert len(np.unique(sincos_2d((14, 14), 64).round(9), axis=0)) == 196
    with pytest.raises(ValueError, match='multiple of 4'):
        sincos_2d((2, 2), 6)
