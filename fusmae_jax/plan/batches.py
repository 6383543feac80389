"""The global batches that a run would accept on a machine, and the most rows of one that fit its memory.

The memory of a device is taken as a straight line over its rows of a micro-batch.
"""

from collections.abc import Collection
from typing import NamedTuple

from fusmae_jax.config.run import Data
from fusmae_jax.errors import InputError
from fusmae_jax.input.mixture import check_rows, row_counts
from fusmae_jax.train.setup import Setup

REACH = 16  # rows that even a small batch may grow by, until every set can be split
MARGIN = 0.05  # share of the memory that is left free: for the fit's error and for what is outside the step


class Batches(NamedTuple):
    """Batches in parts of equal size: one part is one row of each device in each micro-batch.

    Of a single data set every multiple of `parts` can be split. Of a mixture it must be possible for the
    rows of each set, which the weights and the rounding to whole rows decide, so there are gaps.
    """

    data: Data
    parts: int  # devices x micro-batches

    def rows(self, batch_size: int) -> int:
        """Rows of a device in a micro-batch."""
        return batch_size // self.parts

    def splits(self, batch_size: int) -> bool:
        """Whether every device gets the same rows of every set in every micro-batch."""
        try:
            check_rows(row_counts(self.data, batch_size), self.parts)
        except InputError:
            return False
        return True

    def near(self, rows: int, most: int | None = None, without: Collection[int] = ()) -> int:
        """The batch nearest to so many rows, of two as near the larger; 0 if there is none within reach.

        Args:
            rows: of a device in a micro-batch, 1 or more.
            most: rows that it must not have more of.
            without: batches that it must not be.
        """
        last = rows + max(rows, REACH)
        candidates = range(1, (last if most is None else min(last, most)) + 1)
        for count in sorted(candidates, key=lambda count: (abs(count - rows), -count)):
            batch_size = count * self.parts
            if batch_size not in without and self.splits(batch_size):
                return batch_size
        return 0

    def below(self, rows: int) -> int:
        """The largest batch of at most so many rows; 0 if there is none."""
        return next((n * self.parts for n in range(rows, 0, -1) if self.splits(n * self.parts)), 0)


def batches_of(setup: Setup) -> Batches:
    """The batches of a run."""
    return Batches(setup.config.data, setup.mesh.size * setup.config.train.accumulation)


class MemoryLine(NamedTuple):
    """Bytes of one device = fixed + per_row * rows."""

    fixed: float
    per_row: float

    def at(self, rows: float) -> float:
        """Bytes at a number of rows."""
        return self.fixed + self.per_row * rows


def line_through(first: tuple[int, float], second: tuple[int, float]) -> MemoryLine:
    """The line through two points (rows, bytes) with different rows."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return MemoryLine(first[1] - slope * first[0], slope)


def largest_rows(line: MemoryLine, limit: float) -> int | None:
    """Most rows whose bytes stay under the limit less the margin; None where memory does not grow."""
    if line.per_row <= 0:
        return None
    return max(0, int((limit * (1 - MARGIN) - line.fixed) // line.per_row))


def second_point(rows: int, total: float, fixed: float, limit: float) -> int:
    """Rows to compile next: near where the memory is full if all but `fixed` bytes grow with the rows.

    So the largest batch is read off between or close to two compiled sizes, and not far beyond them. At
    most eight times and at least an eighth of `rows`, and never `rows` itself.
    """
    room = (limit * (1 - MARGIN) - fixed) * rows / max(total - fixed, 1.0)
    guess = int(min(max(room, rows / 8, 1), rows * 8))
    if guess != rows:
        return guess
    return rows // 2 if rows > 1 else 2
