"""Paths as a user writes them, and one sentence where a place is full or cannot be written."""

import contextlib
import errno
import glob
import os
import re
from collections.abc import Iterator

from etils import epath

from fusmae_jax.errors import InputError


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


def escaped(text: object) -> str:
    """A text that can be printed and stored anywhere: bytes of a file name that are no UTF-8 as `\\xff`."""
    # Python keeps such a byte as one half of a surrogate pair, from U+DC80 to U+DCFF.
    return re.sub('[\ud800-\udfff]', lambda half: f'\\x{ord(half[0]) & 0xFF:02x}', str(text))


def check_text(text: str) -> None:
    """Raises InputError for the name of a file or folder that is not UTF-8."""
    if escaped(text) != text:
        raise InputError(f'{escaped(text)}: this name is not UTF-8; rename it, such as with `convmv` or `mv`')


def user_path(text: str) -> str:
    """A path of a command line or a configuration: `~` and `~NAME` at its start are home folders.

    A shell expands them at the start of a word alone, so not in `--workdir=~/run`. Raises InputError for a
    user that there is not, and for a name that is no UTF-8, which contracts and reports could not hold.
    """
    check_text(text)
    if not text.startswith('~'):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith('~'):
        raise InputError(
            f'{text}: {text.split("/")[0]} is no home folder here; write the path out, or ./{text} for a '
            'file of that name'
        )
    return expanded


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
