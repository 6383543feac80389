"""The index of a converted data set: what is known of every record without reading its images."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input.builder import split_name
from fusmae_jax.storage import read_npz

FILE = 'index-{split}.npz'
# Before the name of a sensor: digests of its images, which a conversion writes to the index alone; sets
# converted earlier have none.
CONTENT = 'content_'


def index_file(path: epath.PathLike, split: str) -> epath.Path:
    """Where the index of a split lies."""
    return epath.Path(path) / FILE.format(split=split_name(split, path))


def has_index(path: epath.PathLike, split: str) -> bool:
    """Whether a split has an index."""
    return index_file(path, split).exists()


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
    parts = [_read(file, fields, optional) for file in files]
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in common}


def _read(file: epath.Path, fields: Sequence[str] | None, optional: Sequence[str]) -> dict[str, np.ndarray]:
    if not file.exists():
        raise InputError(f'{file}: the index of the split is missing; convert the data set again')
    with read_npz(file, 'convert the data set again') as archive:
        for name in fields or ():
            if name not in archive:
                raise InputError(f'{file}: no field {name!r}; {nearest(name, archive.files)}')
        wanted = archive.files if fields is None else [*fields, *(n for n in optional if n in archive)]
        columns = {name: archive[name] for name in wanted}
    lengths = {name: len(values) if values.ndim else 0 for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f'{file}: fields of different lengths ({lengths}); convert the data set again')
    return columns
