import itertools

import numpy as np
import pytest

from fusmae_jax.embed.stream import Mosaic
from fusmae_jax.embed.windows import (
    Layout,
    axis,
    batch_shape,
    choose_overlap,
    common_steps,
    on_ground,
    overlaps,
    spread,
    taper,
)
from fusmae_jax.errors import InputError


def test_windows_start_at_whole_pixels_of_every_input():
    assert overlaps(14, [120]) == overlaps(14, [120, 60]) == overlaps(14, [20]) == [7, 0]
    assert overlaps(15, [120]) == list(range(14, -1, -1))
    assert overlaps(15, [120, 40]) == [12, 9, 6, 3, 0]
    for grid, pixels in itertools.product((1, 4, 14, 15, 16), ([120], [120, 60], [264, 132], [7])):
        for overlap in range(grid):
            whole = all((grid - overlap) * count % grid == 0 for count in pixels)
            assert (overlap in overlaps(grid, pixels)) == whole


def test_the_overlap_is_chosen_or_refused():
    assert choose_overlap(-1, 14, [120]) == 7
    assert choose_overlap(-1, 15, [120]) == 4
    assert choose_overlap(-1, 1, [120]) == 0
    assert choose_overlap(-1, 7, [120]) == 0  # a seventh of 120 pixels is no whole number of them
    with pytest.raises(InputError, match=r'would start between pixels; possible: 0, 7'):
        choose_overlap(4, 14, [120])


def test_windows_cover_every_cell_and_none_is_idle():
    rng = np.random.default_rng(0)
    for _ in range(300):
        grid = int(rng.integers(1, 16))
        overlap = int(rng.integers(0, grid))
        length = float(rng.integers(1, 4000))
        line = axis(length, 1200.0, grid, overlap)
        assert (line.cells - 1) * 1200 / grid < length <= line.cells * 1200 / grid + 1e-3
        reach = [(i * line.stride, i * line.stride + grid) for i in range(line.windows)]
        assert reach[-1][1] >= line.cells
        if line.windows > 1:
            assert reach[-2][1] < line.cells  # the last one is needed


@pytest.mark.parametrize('merge', ['mean', 'centre'])
def test_weights_of_overlapping_windows(merge):
    for grid, overlap, windows in itertools.product((1, 4, 5, 14), range(13), (1, 2, 5)):
        if overlap >= grid:
            continue
        stride = grid - overlap
        line = axis(float((windows - 1) * stride + grid), float(grid), grid, overlap)
        assert line.windows == windows
        total = np.zeros(line.cells)
        for i in range(windows):
            weight = taper(line, i, merge)
            assert weight.min() >= 0 and weight.dtype == np.float32
            total[i * stride : i * stride + grid] += weight
        if merge == 'centre':
            np.testing.assert_array_equal(total, 1)
        elif overlap <= stride and windows > 2:
            np.testing.assert_allclose(total[overlap : stride * (windows - 1)], 1, atol=1e-6)
        assert total.min() > 0
    line = axis(21.0, 14.0, 14, 7)
    if merge == 'centre':  # each cell from the window whose middle is nearer
        np.testing.assert_array_equal(np.nonzero(taper(line, 0, merge))[0], range(10))
        np.testing.assert_array_equal(np.nonzero(taper(line, 1, merge))[0], range(3, 14))


@pytest.mark.parametrize('merge', ['mean', 'centre'])
def test_every_cut_has_the_windows_of_the_ground_and_fixed_cells_see_no_other(merge):
    """Pixels of 10 and 20 m that begin at 5 m; cells of 80 m, windows of 1200 m, overlaps of 5 cells."""
    rng = np.random.default_rng(0)
    steps = common_steps(15, 5, [120, 60])
    assert steps == 40  # a stride is 800 m, and both inputs begin at every 20 m
    fixed_cells = 0
    for _ in range(200):
        begin, length = 5.0 + 20 * int(rng.integers(-9999, 9999)), 20.0 * int(rng.integers(60, 300))
        line = on_ground(begin, length, 1200.0, 15, 5, steps)
        left = begin + float(line.start) * 80
        assert (float(line.start) * 80) % 20 == 0 and line.start <= 0
        # The output reaches over the raster, and by less than a cell beyond it.
        first, end = begin + float(line.first) * 80, begin + (float(line.first) + line.cells) * 80
        assert first <= begin < first + 80 and end - 80 < begin + length <= end
        assert line.lead + line.cells <= (line.windows - 1) * line.stride + 15
        if line.inner is None:
            assert (line.start, line.lead, line.fixed(merge)) == (0, 0, (0, 0))
            continue
        assert (left - 5) % 800 == 0
        low, high = line.fixed(merge)
        fixed_cells += high - low
        assert 0 <= low <= high <= line.cells
        for cell in range(low, high):
            middle = first + (cell + 0.5) * 80
            starts = [
                s for s in range(-14, 15) if 0 <= middle - (s * 800 + 5 + (left - 5) // 800 * 800) < 1200
            ]
            for s in starts:
                window = s * 800 + (left - 5) // 800 * 800 + 5
                near = 2 <= (middle - window) // 80 < 12  # with `centre` only this window gives the cell
                whole = begin <= window and window + 1200 <= begin + length
                assert whole or (merge == 'centre' and not near)
    assert fixed_cells > 1000


def test_batches_come_out_even():
    assert batch_shape(1, 1, 32) == (1, 1)
    assert batch_shape(10, 33, 32) == (1, 17)
    assert batch_shape(10, 10, 32) == (3, 10)
    assert batch_shape(2, 3, 32) == (2, 3)
    for rows, columns, batch in itertools.product(range(1, 12), range(1, 12), (1, 3, 8, 40)):
        height, width = batch_shape(rows, columns, batch)
        assert 1 <= height * width <= batch and height <= rows and width <= columns
        layout = Layout(axis(rows, 1, 1, 0), axis(columns, 1, 1, 0), (height, width))
        seen = [(r + i, c + j) for r, c in layout.positions for i in range(height) for j in range(width)]
        real = [at for at in seen if layout.inside(*at)]
        assert sorted(real) == list(itertools.product(range(rows), range(columns)))


def test_spread():
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(100, 3) in ([0, 49, 99], [0, 50, 99])
    assert spread(7, 1) == [0]


@pytest.mark.parametrize('merge', ['mean', 'centre'])
@pytest.mark.parametrize('overlap', [0, 1, 2, 3])
def test_a_mosaic_of_bands_is_that_of_all_windows_at_once(merge, overlap):
    rng = np.random.default_rng(overlap)
    rows, columns = axis(19.0, 4.0, 4, overlap), axis(10.3, 4.0, 4, overlap)
    count = rows.windows, columns.windows
    vectors = rng.standard_normal((*count, 4, 4, 3)).astype(np.float32)
    valid = rng.random((*count, 4, 4)) < 0.7
    vectors[~valid] = 1e6  # must not be looked at
    sums, weights = np.zeros((60, 60, 3)), np.zeros((60, 60))
    for i, j in itertools.product(*map(range, count)):
        weight = np.outer(taper(rows, i, merge), taper(columns, j, merge)) * valid[i, j]
        here = np.s_[i * rows.stride : i * rows.stride + 4, j * columns.stride : j * columns.stride + 4]
        sums[here] += vectors[i, j] * weight[..., None]
        weights[here] += weight
    weights, sums = weights[: rows.cells, : columns.cells], sums[: rows.cells, : columns.cells]
    for batch in ((1, 1), (1, 2), (2, columns.windows), (3, columns.windows)):
        layout = Layout(rows, columns, batch)
        mosaic, parts = Mosaic(layout, 3, merge), []
        for row in layout.bands:
            for i in range(row, min(row + batch[0], rows.windows)):
                for j in range(columns.windows):
                    mosaic.add(i, j, vectors[i, j], valid[i, j])
            parts.append(mosaic.take(last=row == layout.bands[-1]))
        merged, there = (np.concatenate(x) for x in zip(*parts))
        assert merged.shape == (rows.cells, columns.cells, 3)
        np.testing.assert_array_equal(there, weights > 0)
        assert np.isnan(merged[~there]).all()
        np.testing.assert_allclose(merged[there], sums[there] / weights[there][:, None], atol=1e-5)
