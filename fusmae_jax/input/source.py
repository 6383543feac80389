"""Records of a converted data set, by index, read through TFDS without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from fusmae_jax.config import Config
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import contract as contracts

# Fields kept beside the images, on the host: they name a record in logs and pictures.
LABELS = ('s1_name', 's2_name', 'snow', 'cloud')


class Source:
    """Random access to one split: `source[i]` is a dict of arrays with the wanted fields.

    Pickles small: the reader opens on first use, in whichever thread or process that is.
    """

    def __init__(self, path: str, split: str, fields: Sequence[str]):
        self.path, self.fields = path, tuple(fields)
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
        if not splits[self.split].num_examples:
            raise InputError(
                f'{self.path}: split {split!r} is empty; the data set has '
                + ', '.join(f'{name} ({count:,})' for name, count in known.items())
            )

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        if not epath.Path(self.path).exists():
            raise InputError(f'config.data.path: {self.path} does not exist; convert a data set first')
        return tfds.builder_from_directory(self.path)

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
    """The records of a split at `data.path`, with the image fields of the model's modalities."""
    source = Source(config.data.path, split, ())
    wanted = config.model.modalities
    source.fields = tuple(name for name, group in source.contract.groups.items() if group.modality in wanted)
    return source
