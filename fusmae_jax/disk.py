"""The place that a run writes to: its path, and one sentence when it is full or cannot be written."""

import contextlib
import errno
import os
from collections.abc import Iterator

from etils import epath

from fusmae_jax.errors import InputError
from fusmae_jax.setting import user_path


class SaveError(InputError):
    """A checkpoint, or another file of a run, could not be written; what was saved before is whole."""


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
    """Turns the error of any file of a run that finds the disk full into one sentence."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise SaveError(
            f'{workdir}: the disk is full ({error.filename or "while writing"}); what was saved is whole; '
            'once there is space, the same command goes on from the newest checkpoint'
        ) from error
