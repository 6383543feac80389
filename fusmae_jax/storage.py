"""Files that are written whole or not at all, and guarded reads.

A place is on a disk or in a bucket; where it is full, or holds something damaged, one sentence says so.
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
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
    # resolve() makes /HERE/gs:/... of gs://...
    return path if is_remote(path) else path.resolve()


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in a bucket, where nothing can be renamed in place or added to."""
    return '://' in os.fspath(path)


def write_bytes(file: epath.PathLike, content: bytes, shared: bool = False) -> None:
    """Writes a file whole or not at all; `shared`: several processes may write it at the same time."""
    with _whole(epath.Path(file), shared) as stream:
        stream.write(content)


def write_text(file: epath.PathLike, text: str, shared: bool = False) -> None:
    """`write_bytes` of a text."""
    write_bytes(file, text.encode(), shared)


def write_json(file: epath.PathLike, values: Any, indent: int | None = 2, shared: bool = False) -> None:
    """`write_bytes` of what JSON can hold."""
    write_text(file, json.dumps(values, indent=indent), shared)


def write_npz(file: epath.PathLike, arrays: Mapping[str, Any], compressed: bool = False) -> None:
    """`write_bytes` of a NumPy archive, which is not held in memory a second time on a disk."""
    with _whole(epath.Path(file)) as stream:
        (np.savez_compressed if compressed else np.savez)(stream, **arrays)


@contextlib.contextmanager
def _whole(file: epath.Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """A stream whose content gets the name of the file once it is complete."""
    with explain_full_disk(file.parent):
        if is_remote(file):
            # An object appears at once when its stream is closed, so also after an error half-way.
            content = io.BytesIO()
            yield content
            file.write_bytes(content.getvalue())
            return
        # One name, so that what a kill has left behind is replaced by the next attempt.
        part = file.parent / (f'{file.name}.{os.getpid()}.part' if shared else f'{file.name}.part')
        try:
            with part.open('wb') as stream:
                yield stream
            # Beside the file and so on the same file system: a reader sees the old content or the new one.
            part.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


# What NumPy raises for an archive that is cut short, changed or none.
DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError)


@contextlib.contextmanager
def read_npz(file: epath.Path, remedy: str) -> Iterator[Any]:
    """A NumPy archive, of which each array is read when it is asked for.

    Raises:
        InputError: it, or an array that is asked for, cannot be read; `remedy` says what to do.
    """
    try:
        with file.open('rb') as stream, np.load(stream, allow_pickle=False) as archive:
            yield archive
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f'{file}: cannot be read ({error}); {remedy}') from error


def read_json(file: epath.Path, remedy: str) -> Any:
    """The JSON in a file; raises InputError where it is none, with `remedy` as what to do."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f'{file}: not valid JSON ({error}); {remedy}') from error


def digest(parts: Iterable[Any]) -> str:
    """16 hexadecimal digits that change with any byte of the parts, which are texts, bytes or arrays."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()[:16]


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
