"""Windows in, rows of cells out: read ahead, encoded, merged, in memory that does not grow with the rows.

One batch of windows is read by a thread while another is on the device and a third is merged.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from rich.progress import track

from fusmae_jax.embed import windows
from fusmae_jax.embed.encoder import Encoder
from fusmae_jax.embed.mosaic import Mosaic
from fusmae_jax.embed.quantise import scale_of
from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.settings import EncodeConfig
from fusmae_jax.embed.windows import Layout
from fusmae_jax.input.contract import Group

T = TypeVar('T')


class Job(NamedTuple):
    """What is settled before the first window is encoded."""

    config: EncodeConfig
    rasters: Mapping[str, Raster]
    groups: Mapping[str, Group]  # modality -> what is read of its raster
    layout: Layout
    encoder: Encoder
    width: int  # numbers in one embedding


def rows_of_cells(job: Job) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Embeds everything, from the top: vectors (rows, cells, width) float32 and validity (rows, cells)."""
    layout = job.layout
    mosaic = Mosaic(layout, job.width, job.config.merge)
    last_column, last_band = layout.positions[-1][1], layout.bands[-1]
    for (row, column), encoded in _encoded(job, layout.positions, 'encoding'):
        if encoded is not None:
            for k, (vectors, valid) in enumerate(zip(*encoded)):
                at = row + k // layout.batch[1], column + k % layout.batch[1]
                if layout.inside(*at):
                    mosaic.add(*at, vectors, valid)
        if column == last_column:
            yield mosaic.take(last=row == last_band)


def calibrate(job: Job) -> np.ndarray:
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


def _encoded(job: Job, positions: list[tuple[int, int]], title: str) -> Iterator[tuple[Any, Any]]:
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


def _read(job: Job, row: int, column: int) -> dict[str, np.ndarray] | None:
    """The windows of a batch, modality -> (batch, rows, columns, bands) float32; None without any pixel."""
    layout, result = job.layout, {}
    down, across = layout.batch
    for name, group in job.groups.items():
        height, width = group.size
        y = height * layout.rows.stride // layout.rows.grid
        x = width * layout.columns.stride // layout.columns.grid
        size = (down - 1) * y + height, (across - 1) * x + width
        pixels = job.rasters[name].read(group.bands, row * y, column * x, *size)
        cut = [
            pixels[i * y : i * y + height, j * x : j * x + width] for i in range(down) for j in range(across)
        ]
        result[name] = np.stack(cut)
    return result if any(np.isfinite(pixels).any() for pixels in result.values()) else None
