"""The place that a run writes to: its path, and one sentence when it is full or cannot be written."""

import contextlib
import errno
import glob
import os
from collections.abc import Iterator

from etils import epath

from fusmae_jax.errors import InputError
from fusmae_jax.paths import user_path


class SaveError(InputError):
    """A checkpoint, or another file of a run, could not be written; what was saved before is whole."""


_Folder = type(epath.Path('/'))
_match = _Folder.glob


def _glob(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """What a pattern matches in a folder, whose own name is no pattern."""
    return _match(epath.Path(glob.escape(os.fspath(folder))), pattern)


# etils takes folder and pattern together for the pattern, unlike pathlib: in `runs[1]` it finds nothing, in
# `run*` the files of `run2`. Orbax collects in this way what each process has saved, and would complete a
# checkpoint without a single array.
_Folder.glob = _glob


def check_name(path: epath.PathLike) -> None:
    """Raises InputError for a place that orbax and tensorstore, which store arrays, take for another one."""
    name = str(absolute(path))
    if '\\' in name:
        raise InputError(
            f'{path}: no checkpoint can be kept below a folder whose name has a backslash; use another name'
        )
    if 'gs:/' in f'{name}/'.removeprefix('gs://'):
        raise InputError(
            f"{path}: no checkpoint can be kept below a folder whose name ends in 'gs:'; the address of a "
            'bucket is written gs://BUCKET/FOLDER'
        )


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that holds wherever the process stands; one with a scheme, such as gs://, already does."""
    path = epath.Path(user_path(os.fspath(path)))
    return path if '://' in str(path) else path.resolve()  # resolve() makes /HERE/gs:/... of gs://...


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that no space is left."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or 'No space left' in str(error) or 'quota exceeded' in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def explain_full_disk(workdir: epath.PathLike) -> Iterator[None]:
    """Turns the error of any file below `workdir` that finds the disk full into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # the last two are those of libraries
        if not is_disk_full(error):
            raise
        file = getattr(error, 'filename', None) or 'while writing'
        raise SaveError(
            f'{workdir}: the disk is full ({file}); what was completed before is whole; once there is space, '
            'the same command goes on from there'
        ) from error
