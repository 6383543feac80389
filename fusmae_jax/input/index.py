"""The index of a converted data set: what is known of every record without reading its images."""

import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from fusmae_jax.errors import InputError, nearest

FILE = 'index-{split}.npz'


def read_index(
    path: epath.PathLike, split: str, fields: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Fields of the records of a split, in the order of the split; text fields are arrays of bytes.

    Args:
        path: the folder of a converted data set.
        split: a split as it is stored (no alias), or several joined by `+`.
        fields: which ones; all by default.

    Raises:
        InputError: no index, a damaged one, or a field that it does not have.
    """
    parts = [_read(epath.Path(path) / FILE.format(split=name.strip()), fields) for name in split.split('+')]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read(file: epath.Path, fields: Sequence[str] | None) -> dict[str, np.ndarray]:
    if not file.exists():
        raise InputError(f'{file}: the index of the split is missing; convert the data set again')
    try:
        with file.open('rb') as stream, np.load(stream, allow_pickle=False) as archive:
            for name in fields or ():
                if name not in archive:
                    raise InputError(f'{file}: no field {name!r}; {nearest(name, archive.files)}')
            return {name: archive[name] for name in fields or archive.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{file}: cannot be read ({error}); convert the data set again') from error
