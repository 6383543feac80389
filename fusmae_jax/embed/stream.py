"""The stream of `encode`: windows in, rows of cells out, in memory that does not grow with the rows.

One batch of windows is read by a thread while another is on the device and a third is merged.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.progress import track

from fusmae_jax.config.run import Config
from fusmae_jax.embed import windows
from fusmae_jax.embed.quantise import scale_of
from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.settings import EncodeConfig
from fusmae_jax.embed.windows import Axis, Layout, taper
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.parallel.rules import Params

T = TypeVar('T')
EncodeWindows = Callable[[Mapping[str, np.ndarray]], tuple[Array, Array]]


class EncodeJob(NamedTuple):
    """What is settled before the first window is encoded."""

    config: EncodeConfig
    rasters: Mapping[str, Raster]
    groups: Mapping[str, Group]  # field -> what is read of its raster
    layout: Layout
    encoder: EncodeWindows
    width: int  # numbers in one embedding


def rows_of_cells(job: EncodeJob) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Embeds everything, from the top: vectors (rows, cells, width) float32 and validity (rows, cells)."""
    layout = job.layout
    mosaic = Mosaic(layout, job.width, job.config.merge)
    last_column, last_band = layout.positions[-1][1], layout.bands[-1]
    kept, row_of_output = kept_cells(job), 0
    for (row, column), encoded in _encoded(job, layout.positions, 'encoding'):
        if encoded is not None:
            for k, (vectors, valid) in enumerate(zip(*encoded)):
                at = row + k // layout.batch[1], column + k % layout.batch[1]
                if layout.inside(*at):
                    mosaic.add(*at, vectors, valid)
        if column == last_column:
            vectors, valid = mosaic.take(last=row == last_band)
            inside = kept[row_of_output : row_of_output + len(valid)]
            row_of_output += len(valid)
            vectors[~inside] = np.nan
            yield vectors, valid & inside


def kept_cells(job: EncodeJob) -> np.ndarray:
    """Where the output may hold data, (rows, columns) bool: with `edges='drop'` not near the borders."""
    rows, columns = job.layout.rows, job.layout.columns
    kept = np.full((rows.cells, columns.cells), job.config.edges == 'keep')
    kept[slice(*rows.fixed(job.config.merge)), slice(*columns.fixed(job.config.merge))] = True
    return kept


def calibrate(job: EncodeJob) -> np.ndarray:
    """The scales of int8 (width,), from the largest values of evenly spread batches of windows.

    The mean of overlapping windows never exceeds the largest of them, so windows need not be merged.
    """
    positions = job.layout.positions
    batch = job.layout.batch[0] * job.layout.batch[1]
    chosen = windows.spread(len(positions), max(1, job.config.calibration // batch))
    largest = np.zeros(job.width, np.float32)
    for _, encoded in _encoded(job, [positions[i] for i in chosen], 'scale of int8'):
        if encoded is not None:
            vectors, valid = encoded
            largest = np.maximum(largest, np.abs(vectors[valid]).max(axis=0, initial=0))
    return scale_of(largest, complete=len(chosen) == len(positions))


def _encoded(job: EncodeJob, positions: list[tuple[int, int]], title: str) -> Iterator[tuple[Any, Any]]:
    """First window of each batch, and its vectors and validity on the host; None where it has no pixel."""
    with ThreadPoolExecutor(1) as pool:
        reads = _one_ahead((at, pool.submit(_read, job, *at)) for at in positions)
        batches = ((at, read.result()) for at, read in reads)
        # Calls return before the device is done, so that results are fetched one call later.
        calls = _one_ahead((at, None if b is None else job.encoder(b)) for at, b in batches)
        for at, result in track(calls, title, len(positions)):
            yield at, jax.device_get(result)


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each given out when the next has been made."""
    iterator = iter(items)
    try:
        ahead = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield ahead
        ahead = item
    yield ahead


def _read(job: EncodeJob, row: int, column: int) -> dict[str, np.ndarray] | None:
    """The windows of a batch, field -> (batch, rows, columns, bands) float32; None without any pixel."""
    layout, result = job.layout, {}
    down, across = layout.batch
    for name, group in job.groups.items():
        height, width = group.size
        y, top = _pixels(layout.rows, height)
        x, left = _pixels(layout.columns, width)
        size = (down - 1) * y + height, (across - 1) * x + width
        pixels = job.rasters[name].read(group.bands, top + row * y, left + column * x, *size)
        cut = [
            pixels[i * y : i * y + height, j * x : j * x + width] for i in range(down) for j in range(across)
        ]
        result[name] = np.stack(cut)
    return result if any(np.isfinite(pixels).any() for pixels in result.values()) else None


def _pixels(line: Axis, window: int) -> tuple[int, int]:
    """Pixels of a stride, and from the beginning of a raster to its first window of `window` pixels."""
    first = window * line.start / line.grid
    assert first.denominator == 1
    return window * line.stride // line.grid, int(first)


class Mosaic:
    """Weighted sums of the vectors of one band of windows; memory does not grow with the raster's rows.

    For each band: `add` every window, then `take` the rows of cells that no later window reaches.
    """

    def __init__(self, layout: Layout, width: int, merge: Literal['mean', 'centre']):
        """Sums for vectors of `width` numbers."""
        self.layout, self.merge = layout, merge
        rows, columns = layout.rows, layout.columns
        height = (layout.batch[0] - 1) * rows.stride + rows.grid
        length = (columns.windows - 1) * columns.stride + columns.grid
        self._sums = np.zeros((height, length, width), np.float32)
        self._weights = np.zeros((height, length), np.float32)
        self._top = 0  # the row of cells that the sums begin with, counted from the first window

    def add(self, row: int, column: int, vectors: np.ndarray, valid: np.ndarray) -> None:
        """Takes in window (row, column): vectors (grid rows, grid columns, width), valid (rows, columns)."""
        rows, columns = self.layout.rows, self.layout.columns
        weight = taper(rows, row, self.merge)[:, None] * taper(columns, column, self.merge)[None]
        weight = weight * valid
        y, x = row * rows.stride - self._top, column * columns.stride
        here = np.s_[y : y + rows.grid, x : x + columns.grid]
        self._sums[here] += vectors * weight[..., None]
        self._weights[here] += weight

    def take(self, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """The finished rows of cells, from the top: vectors (rows, cells, width) and their validity.

        Vectors of cells without a valid pixel are NaN. `last`: there is no further band.
        """
        rows, columns = self.layout.rows, self.layout.columns
        end = rows.lead + rows.cells
        count = end - self._top if last else min(self.layout.batch[0] * rows.stride, end - self._top)
        here = np.s_[max(0, rows.lead - self._top) : count, columns.lead : columns.lead + columns.cells]
        weights = self._weights[here]
        valid = weights > 0
        with np.errstate(invalid='ignore'):
            vectors = self._sums[here] / np.where(valid, weights, np.float32(np.nan))[..., None]
        self._shift(count)
        return vectors, valid

    def _shift(self, count: int) -> None:
        for sums in (self._sums, self._weights):
            sums[:-count] = sums[count:].copy()
            sums[-count:] = 0
        self._top += count


def make_encoder(
    model: Pretrained,
    config: Config,
    contract: Contract,
    batch: int,
    output: Literal['tokens', 'pooled', 'cls'],
) -> EncodeWindows:
    """Compiles `encode(windows) -> vectors, valid` for batches of one size.

    Args:
        model: the checkpoint, whose weights are used.
        config: its configuration, with the modalities that are given and their statistics.
        contract: the fields of a batch.
        batch: windows in a batch.
        output: what a cell holds. `tokens`: the mean of the tokens that the sensors have there, leaving out
            those without a valid pixel. `pooled` and `cls`: that vector of the window, one cell a window.

    Returns:
        A function of field -> (batch, rows, columns, bands) float32, NaN where nothing was measured. It
        gives vectors (batch, grid rows, grid columns, width) float32 and their validity (without width), on
        the device.
    """
    inputs = make_inputs(config, contract)
    grid = model.config.model.grid if output == 'tokens' else (1, 1)

    def run(params: Params, windows: Any) -> tuple[Array, Array]:
        patches = inputs(windows, None)
        tokens, cls, pooled = model.run(params, patches)
        valid = {name: p.any_valid for name, p in patches.items()}
        if output == 'tokens':
            vectors, some = _mean(tokens, valid)
        else:
            vectors = cls if output == 'cls' else pooled
            some = jnp.any(jnp.concatenate(list(valid.values()), axis=1), axis=1)
        return vectors.astype(jnp.float32).reshape(batch, *grid, -1), some.reshape(batch, *grid)

    shapes = {
        name: jax.ShapeDtypeStruct((batch, *group.size, len(group.bands)), jnp.float32)
        for name, group in contract.groups.items()
    }
    compiled = jax.jit(run).lower(model.params, shapes).compile()

    return lambda windows: compiled(model.params, dict(windows))


def _mean(tokens: Mapping[str, Array], valid: Mapping[str, Array]) -> tuple[Array, Array]:
    """The mean over the sensors whose token rests on a pixel (b, n, d), and where there is one (b, n)."""
    weights = {name: v[..., None].astype(jnp.float32) for name, v in valid.items()}
    total = sum(tokens[name].astype(jnp.float32) * w for name, w in weights.items())
    count = sum(weights.values())
    assert isinstance(total, jax.Array) and isinstance(count, jax.Array)
    return total / jnp.maximum(count, 1), count[..., 0] > 0
