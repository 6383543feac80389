"""The global batches that a run would accept on a machine."""

from collections.abc import Collection
from typing import NamedTuple

from fusmae_jax.config.run import Data
from fusmae_jax.errors import InputError
from fusmae_jax.input.mixture import check_rows, row_counts
from fusmae_jax.train.setup import Setup

REACH = 16  # rows that even a small batch may grow by, until every set can be split


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
