"""Records of a converted data set and the index of their splits, read through TFDS without TensorFlow.

What stands in files beside the shards (labels, splits, places) is joined to the records by position, so every
record that is read is compared with the index by its key. A shard that is missing, cut off, exchanged or
damaged is an InputError that names it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from fusmae_jax.errors import DamagedRecordError, InputError, nearest
from fusmae_jax.input import cache, shards
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.builder import open_builder, split_name
from fusmae_jax.input.example import Example, Image
from fusmae_jax.storage import read_npz

# Fields kept beside the images, on the host: they name a record in logs and pictures.
LABELS = ('name', 's1_name', 's2_name', 'snow', 'cloud')
INDEX = 'index-{split}.npz'  # what is known of every record without reading its images
# Before the name of a sensor: digests of its images, which a conversion writes to the index alone; sets
# converted earlier have none.
CONTENT = 'content_'
PIXELS = 'pixels_'  # before the name of a map: what a conversion counts of its pixels in the index


class Source:
    """Random access to one split: `source[i]` is a dict of arrays with the wanted fields and LABELS.

    Fields are images (rows, columns, bands) or label maps (rows, columns); a map is read where it is asked
    for, and only there.

    Splits and files are TFDS's; a record is decoded here, from the contract: an image is stored as plain
    bytes, and a view of them is all that it takes (`input/example.py`). Pickles small: the reader opens on
    first use, in whichever thread or process that is.

    Raises:
        InputError: no such data set or split, a shard that is missing or not as long as it was written;
            when reading, a record that is damaged or not the one that the index names.
    """

    def __init__(self, path: str, split: str, fields: Sequence[str]):
        self.path, self.fields = path, tuple(fields)
        if not path or not epath.Path(path).exists():
            raise InputError(f'{path!r} does not exist; give the folder of a converted data set (data.path)')
        self.contract = contracts.read(path)
        self.split = self.contract.split_aliases.get(split, split)
        self._images: dict[str, Image] = {}
        self._files: list[Any] = []  # of a copy; none: of the data set itself
        self._records: Any = None
        self._keys: np.ndarray | None = None  # of the records, by the index; None without one
        self._check(split)

    def _check(self, split: str) -> None:
        splits = open_builder(self.path).info.splits
        known = {s.name: s.num_examples for s in splits.values()}
        for part in self.split.split('+'):
            name = part.split('[')[0].strip()
            if name not in known:
                valid = [*known, *self.contract.split_aliases]
                raise InputError(f'{self.path}: there is no split {name!r}; {nearest(name, valid)}')
        try:
            chosen = splits[self.split]
        except (ValueError, KeyError) as error:
            raise InputError(f'{self.path}: split {split!r} cannot be used ({error})') from error
        if not chosen.num_examples:
            raise InputError(
                f'{self.path}: split {split!r} is empty; the data set has '
                + ', '.join(f'{name} ({count:,})' for name, count in known.items())
            )
        if damaged := shards.problems(self.path, chosen.file_instructions):
            more = f' ({len(damaged) - 1:,} more like it)' if damaged[1:] else ''
            raise InputError(damaged[0] + more)

    def copy_to(self, folder: str) -> None:
        """Reads from copies of the shards in a folder of this machine from now on; makes those that lack.

        Raises:
            InputError: see `cache.copies`.
        """
        self._files = cache.copies(folder, self.contract, self._instructions())
        self._records = None

    def _instructions(self) -> list[Any]:
        """TFDS's file instructions of this split, of its shards as they lie in the data set."""
        return list(open_builder(self.path).info.splits[self.split].file_instructions)

    @property
    def records(self) -> Any:
        """The serialised records by position."""
        if self._records is None:
            # Before the records: a thread that finds them finds the keys too.
            self._keys = self._index(open_builder(self.path), (), ())[0]
            self._records = ArrayRecordDataSource(self._files or self._instructions())
        return self._records

    def __len__(self) -> int:
        return len(self.records)

    def raw(self, index: int) -> bytes:
        """The serialised record."""
        try:
            return self.records[index]
        except InputError:
            raise
        except Exception as error:  # ArrayRecord's own, which do not name the file
            if not 0 <= index < len(self):
                raise
            raise self._damaged(index, str(error)) from error

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        data = self.raw(index)
        try:
            example = Example(data)
            self._check_key(index, example)
            record = {name: example.image(self._image(name)) for name in self.fields}
            return record | {name: example.label(name) for name in LABELS if name in example}
        except (IndexError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(index, f'not as the contract says ({error})') from error

    def _image(self, name: str) -> Image:
        if name not in self._images:
            known: dict[str, Any] = {**self.contract.groups, **(self.contract.maps or {})}
            self._images[name] = Image(name, (known | {**(self.contract.number_maps or {})})[name])
        return self._images[name]

    def index(self, fields: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Fields of the index for the records of this split, in their order.

        The first record of every shard is read to see that the index is of these shards.

        Args:
            fields: which ones.
            optional: taken where the index has them.

        Raises:
            InputError: no index, one without such a field, or one of other records.
        """
        builder = open_builder(self.path)
        keys, values = self._index(builder, fields, optional)
        if keys is None:
            name = self.split.split('+')[0].split('[')[0].strip()
            file = index_file(self.path, name)
            raise InputError(f'{file}: the index of the split is missing; convert the data set again')
        len(self)  # opens the reader once, and not in each of the threads that come next
        shards.for_each(self.check, shards.starts(builder.info.splits[self.split].file_instructions))
        return values

    def check(self, index: int) -> None:
        """Reads a record; raises InputError if it is damaged or not the one that the index names."""
        data = self.raw(index)
        try:
            self._check_key(index, Example(data))
        except (IndexError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(index, f'not as the contract says ({error})') from error

    def _check_key(self, index: int, example: Example) -> None:
        if self._keys is None:
            return
        key = example.text(self.contract.key)
        if key != self._keys[index]:
            file, position = self._where(index)
            raise DamagedRecordError(
                f'{file}: record {position} is {key.decode(errors="replace")!r}, by the index of the split '
                f'it is {self._keys[index].decode(errors="replace")!r}: shards or index were exchanged; '
                'copy the data set again, or convert again'
            )

    def _index(
        self, builder: Any, fields: Sequence[str], optional: Sequence[str]
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """The keys of the records and fields of their index; None and nothing where there is no index."""
        import tensorflow_datasets as tfds

        splits, key = builder.info.splits, self.contract.key
        wanted = list(dict.fromkeys([key, *fields]))
        parts = []
        for part in tfds.core.ReadInstruction.from_spec(self.split).to_absolute(splits):
            if not index_file(self.path, part.splitname).exists():
                return None, {}
            index = read_index(self.path, part.splitname, wanted, optional)
            if (here := len(index[key])) != (there := splits[part.splitname].num_examples):
                raise InputError(
                    f'{index_file(self.path, part.splitname)}: {here:,} records, the shards have {there:,}; '
                    'copy the data set again, or convert again'
                )
            parts.append({name: values[part.from_ : part.to] for name, values in index.items()})
        common = [name for name in parts[0] if all(name in part for part in parts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in common}
        return joined[key], {name: joined[name] for name in (*fields, *optional) if name in joined}

    def _damaged(self, index: int, reason: str) -> DamagedRecordError:
        file, position = self._where(index)
        return DamagedRecordError(f'{file}: record {position} cannot be read ({reason}); {shards.REMEDY}')

    def _where(self, index: int) -> tuple[str, int]:
        """The shard of a record and its position there."""
        return shards.locate(self._files or self._instructions(), int(index))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_records': None, '_keys': None}


def index_file(path: epath.PathLike, split: str) -> epath.Path:
    """Where the index of a split lies."""
    return epath.Path(path) / INDEX.format(split=split_name(split, path))


def read_index(
    path: epath.PathLike, split: str, fields: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Fields of the records of a split, in the order of the split; text fields are arrays of bytes.

    They are as the file has them. What is joined to records is read with `Source.index`, which sees that the
    index is of these records.

    Args:
        path: the folder of a converted data set.
        split: a split as it is stored (no alias), or several joined by `+`.
        fields: which ones; all by default.
        optional: more of them, taken where they are.

    Raises:
        InputError: no index, a damaged one, or a field that it does not have.
    """
    files = [index_file(path, name.strip()) for name in split.split('+')]
    parts = [_read_index(file, fields, optional) for file in files]
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in common}


def _read_index(
    file: epath.Path, fields: Sequence[str] | None, optional: Sequence[str]
) -> dict[str, np.ndarray]:
    if not file.exists():
        raise InputError(f'{file}: the index of the split is missing; convert the data set again')
    with read_npz(file, 'convert the data set again') as archive:
        for name in fields or ():
            if name not in archive:
                raise InputError(f'{file}: no field {name!r}; {nearest(name, archive.files)}')
        wanted = archive.files if fields is None else [*fields, *(n for n in optional if n in archive)]
        index = {name: archive[name] for name in wanted}
    lengths = {name: len(values) if values.ndim else 0 for name, values in index.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f'{file}: fields of different lengths ({lengths}); convert the data set again')
    return index
