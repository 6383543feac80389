"""Records of a converted data set, by index, read through TFDS without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from fusmae_jax.config import Config
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.prepare import fields

# Fields kept beside the images, on the host: they name a record in logs and pictures.
LABELS = ('s1_name', 's2_name', 'snow', 'cloud')


class Source:
    """Random access to one split: `source[i]` is a dict of arrays with the wanted fields.

    Pickles small: the reader opens on first use, in whichever thread or process that is.
    """

    def __init__(self, path: str, split: str, fields: Sequence[str]):
        self.path, self.fields = path, tuple(fields)
        if not path or not epath.Path(path).exists():
            raise InputError(f'config.data.path={path!r} does not exist; convert a data set first')
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

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.records[index]
        wanted = (*self.fields, *(name for name in LABELS if name in record))
        return {name: np.asarray(record[name]) for name in wanted}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_records': None}


def open_source(config: Config, split: str) -> Source:
    """The records of a split at `data.path`, with the image fields that the model needs."""
    source = Source(config.data.path, split, ())
    source.fields = tuple(fields(config, source.contract))
    return source
