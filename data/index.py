"""The index of a data set: every field but the images, so that no image is read to know what is where.

Of the images it has a digest for each sensor, by which `leaks` recognises a record under any name.

It is gathered shard by shard while converting, and stored as one NumPy archive for each split; reading it
is `fusmae_jax.input.source`.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from data.records import Record, Schema
from fusmae_jax.input.source import CONTENT

_DIGEST = 6  # bytes: among a million records by chance none is like another


class Rows:
    """The index of the records of one shard, in their order."""

    def __init__(self, schema: Schema):
        self._fields = {name: field for name, field in schema.fields.items() if field.indexed}
        self._groups: dict[str, list[str]] = {}
        for name, group in sorted(schema.groups.items()):
            self._groups.setdefault(group.modality, []).append(name)
        self._rows: list[Record] = []
        self._content: dict[str, list[bytes]] = {modality: [] for modality in self._groups}

    def add(self, record: Record) -> None:
        """Takes in one record."""
        self._rows.append({name: record[name] for name in self._fields})
        for modality, groups in self._groups.items():
            self._content[modality].append(content([record[name] for name in groups]))

    def arrays(self) -> dict[str, np.ndarray]:
        """field -> array over the records; text as UTF-8 bytes."""
        contents = {f'{CONTENT}{name}': np.array(rows, np.bytes_) for name, rows in self._content.items()}
        return contents | {
            name: np.array([row[name].encode() for row in self._rows], np.bytes_)
            if field.dtype == 'text'
            else np.array([row[name] for row in self._rows], field.dtype).reshape(-1, *field.shape)
            for name, field in self._fields.items()
        }


def content(images: Sequence[np.ndarray]) -> bytes:
    """The digest of the images of one sensor, 12 hexadecimal digits.

    Empty where every image has one value in each band: such records, mostly without a measurement, are alike
    without being the same.
    """
    if all((image == image[:1, :1]).all() or (image != image).all() for image in images):
        return b''
    total = hashlib.blake2b(digest_size=_DIGEST)
    for image in images:
        total.update(f'{image.dtype.name} {image.shape} '.encode())
        total.update(np.ascontiguousarray(image).data)
    return total.hexdigest().encode()


def join(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The index of several shards, in their order; of the fields that all have.

    Shards that an earlier version converted, before it was cut off, have no digests of images.
    """
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
