"""Records of a converted data set, by index, read through TFDS without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import Group

# Fields kept beside the images, on the host: they name a record in logs and pictures.
LABELS = ('name', 's1_name', 's2_name', 'snow', 'cloud')


class Source:
    """Random access to one split: `source[i]` is a dict of arrays with the wanted image fields and LABELS.

    Splits and files are TFDS's; a record is decoded here, from the contract: an image is stored as plain
    bytes, and TFDS's general decoder takes a quarter of the time that reading takes. Pickles small: the
    reader opens on first use, in whichever thread or process that is.
    """

    def __init__(self, path: str, split: str, fields: Sequence[str]):
        self.path, self.fields = path, tuple(fields)
        if not path or not epath.Path(path).exists():
            raise InputError(f'{path!r} does not exist; give the folder of a converted data set (data.path)')
        self.contract = contracts.read(path)
        self.split = self.contract.split_aliases.get(split, split)
        self._records: Any = None
        self._check(split)

    def _check(self, split: str) -> None:
        splits = self._builder().info.splits
        known = {s.name: s.num_examples for s in splits.values()}
        for part in self.split.split('+'):
            name = part.split('[')[0].strip()
            if name not in known:
                valid = [*known, *self.contract.split_aliases]
                raise InputError(f'{self.path}: there is no split {name!r}; {nearest(name, valid)}')
        try:
            count = splits[self.split].num_examples
        except (ValueError, KeyError) as error:
            raise InputError(f'{self.path}: split {split!r} cannot be used ({error})') from error
        if not count:
            raise InputError(
                f'{self.path}: split {split!r} is empty; the data set has '
                + ', '.join(f'{name} ({count:,})' for name, count in known.items())
            )

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            return tfds.builder_from_directory(self.path)
        except Exception as error:  # TFDS has a class of its own for each file that can be missing or broken
            raise InputError(
                f'{self.path}: TFDS cannot read this folder ({error}); convert it again'
            ) from error

    @property
    def records(self) -> Any:
        """The TFDS data source behind this split."""
        if self._records is None:
            self._records = self._builder().as_data_source(split=self.split)
        return self._records

    def __len__(self) -> int:
        return len(self.records)

    def raw(self, index: int) -> bytes:
        """The serialised record."""
        return self.records.data_source[index]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = tf_example_pb2.Example.FromString(self.raw(index)).features.feature
        record = {name: _image(example[name], self.contract.groups[name]) for name in self.fields}
        return record | {name: _label(example[name]) for name in LABELS if name in example}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_records': None}


def _image(feature: Any, group: Group) -> np.ndarray:
    """(rows, columns, bands), read-only, of the stored bytes."""
    stored = np.frombuffer(feature.bytes_list.value[0], group.dtype)
    return stored.reshape(*group.size, len(group.bands))


def _label(feature: Any) -> np.ndarray:
    """A name or a number."""
    if feature.bytes_list.value:
        return np.asarray(feature.bytes_list.value[0])
    return np.asarray(feature.int64_list.value[0] if feature.int64_list.value else b'')
