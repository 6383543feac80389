"""The index of a data set: every field but the images, so that no image is read to know what is where.

It is gathered shard by shard while converting, and stored as one NumPy archive for each split; reading it
is `fusmae_jax.input.index`.
"""

from collections.abc import Sequence

import numpy as np

from data.records import Record, Schema


class Rows:
    """The index of the records of one shard, in their order."""

    def __init__(self, schema: Schema):
        self._fields = {name: field for name, field in schema.fields.items() if field.indexed}
        self._rows: list[Record] = []

    def add(self, record: Record) -> None:
        """Takes in one record."""
        self._rows.append({name: record[name] for name in self._fields})

    def arrays(self) -> dict[str, np.ndarray]:
        """field -> array over the records; text as UTF-8 bytes."""
        return {
            name: np.array([row[name].encode() for row in self._rows], np.bytes_)
            if field.dtype == 'text'
            else np.array([row[name] for row in self._rows], field.dtype).reshape(-1, *field.shape)
            for name, field in self._fields.items()
        }


def join(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The index of several shards, in their order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
