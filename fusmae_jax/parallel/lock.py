"""A lock file for one writer a place, which a run that was killed does not leave behind.

On a disk of this machine the kernel holds the lock (`flock`) and drops it with its process, however that
ends. A bucket knows no locks, and those of a network file system may end at the machine. So the file also
names its owner, who rewrites it every few seconds, the heartbeat. Who finds an owner of another machine
watches the file: where it changes the owner lives, where it has not changed for `EXPIRY` seconds the place is
free. No clocks are compared, so it does not matter that those of two machines differ.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from fusmae_jax.errors import InputError
from fusmae_jax.storage import SaveError, absolute

NAME = '.lock'
BEAT = 5.0  # seconds between two heartbeats
EXPIRY = 30.0  # seconds without one, after which the owner is gone
SETTLE = 2.0  # seconds in which another that starts at the same moment has written its name, too
POLL = 1.0  # seconds between two looks at the file of an owner that may be gone
WIDTH = 1024  # bytes of the file, always the same: on a disk it is rewritten in place
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # a file system without flock


class Lock:
    """The lock of one place, for one process.

    `take` until it is True, then `check` now and then, then `release`.
    """

    def __init__(self, place: epath.PathLike, what: str, name: str = NAME):
        """`place` is a folder; `what` is done there, in words; locks of other names are independent."""
        self._place, self._file = absolute(place), absolute(place) / name
        self._remote = '://' in str(self._file)
        self._about: dict[str, Any] = {
            'what': what,
            'host': socket.gethostname(),
            'process': _process(os.getpid()),
        }
        self._about |= {'since': time.strftime('%Y-%m-%d %H:%M:%S'), 'token': uuid.uuid4().hex, 'beat': 0}
        self._descriptor: int | None = None  # of the file on a disk, from the first `take`
        self._flocked = self._made = False  # whether the kernel holds it; whether the folder is ours
        self._watched: tuple[bytes, float] | None = None  # what another owner has written, and since when
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._beat, daemon=True)
        self._lost: dict[str, Any] | None = None  # who has taken the place over

    def take(self) -> bool:
        """Whether the place is ours; False: it is not known yet whether its owner lives, ask again.

        Raises:
            InputError: another process is at work there, or the place cannot be written.
        """
        try:
            if self._descriptor is None and not self._remote:
                self._open()
            content = self._read()
            owner = _owner(content)
            if content and not self._is_free(content, owner):
                return False
            self._write()
        except OSError as error:
            self._close()
            raise InputError(
                f'{self._place}: nothing can be written there ({error.strerror or error}); use another folder'
            ) from error
        except InputError:
            self._close()
            raise
        # Where no kernel has decided, whoever has written last keeps the place.
        if self._remote or not self._flocked:
            time.sleep(SETTLE)
            if (owner := _owner(self._read())) and owner['token'] != self._about['token']:
                raise self._held(owner)
        self._thread.start()
        return True

    def check(self) -> None:
        """Raises SaveError if another process has taken the place over, since this one did not answer."""
        if self._lost is not None:
            raise SaveError(
                f'{self._place}: {_named(self._lost)} has taken over, as this process had not been heard of '
                f'for {EXPIRY:.0f} s; it ends here, what it has saved is whole'
            )

    def release(self) -> None:
        """Frees the place."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(Exception):  # of a bucket that does not answer: the heartbeat ends anyway
            if (owner := _owner(self._read())) and owner['token'] == self._about['token']:
                self._file.unlink()  # while it is still held, so that nobody waits for a file that is gone
        self._close()
        if self._made:
            with contextlib.suppress(OSError):
                os.rmdir(self._place)  # where nothing came of it

    def _open(self) -> None:
        """Opens the file on a disk and asks the kernel for it."""
        self._made = not self._place.exists()
        self._place.mkdir(parents=True, exist_ok=True)
        while True:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._flocked = True
            except BlockingIOError:
                raise self._held(_owner(self._read())) from None
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._file), os.fstat(self._descriptor)):
                    return
            self._close()  # its owner has removed it in between: the name leads to another file by now

    def _is_free(self, content: bytes, owner: dict[str, Any] | None) -> bool:
        """Whether a place that has an owner can be taken."""
        machine, namespace, pid, start = owner['process'] if owner else ('', '', 0, -1)
        here = _process(pid)
        if machine == here[0] and self._flocked:
            return True  # the kernel has dropped the lock of a process of this machine
        if [machine, namespace] == here[:2] and start >= 0:
            if start != here[3]:
                return True  # that process is no more
            raise self._held(owner)
        now = time.monotonic()
        if self._watched is None:
            self._watched = content, now
            print(
                f'{self._place}: {_named(owner)} was at work here; waiting up to {EXPIRY:.0f} s for a sign '
                'of it',
                flush=True,
            )
        if content != self._watched[0]:
            raise self._held(owner)
        return now - self._watched[1] >= EXPIRY

    def _held(self, owner: dict[str, Any] | None) -> InputError:
        return InputError(
            f'{self._place}: {_named(owner)} is at work here; wait until that has ended, or use another '
            'folder'
        )

    def _read(self) -> bytes:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return b''

    def _write(self) -> None:
        content = json.dumps(self._about).encode().ljust(WIDTH)
        if self._descriptor is None:
            self._file.write_bytes(content)
            return
        try:
            os.pwrite(self._descriptor, content, 0)
        except OSError as error:
            if not (self._flocked and error.errno in (errno.ENOSPC, errno.EDQUOT)):
                raise  # a full disk leaves the kernel's lock, and has errors of its own soon enough

    def _beat(self) -> None:
        """Tells that this process lives, and notices when another has taken over; runs in the background."""
        while not self._stop.wait(BEAT):
            with contextlib.suppress(Exception):  # of the moment; the next one comes
                owner = _owner(self._read())
                if owner and owner['token'] != self._about['token']:
                    self._lost = owner
                    return
                self._about['beat'] += 1
                self._write()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._flocked = None, False


@contextlib.contextmanager
def hold(place: epath.PathLike, what: str, name: str = NAME) -> Iterator[None]:
    """Keeps a place for this process until the context ends; raises InputError if another works there."""
    lock = Lock(place, what, name)
    while not lock.take():
        time.sleep(POLL)
    try:
        yield
    finally:
        lock.release()


def _owner(content: bytes) -> dict[str, Any] | None:
    try:
        owner = json.loads(content)
        return owner if len(owner['process']) == 4 and owner['token'] else None
    except (ValueError, LookupError, TypeError):
        return None  # torn, or not written yet


def _named(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return 'another process'
    return f'{owner["what"]} (process {owner["process"][2]} on {owner["host"]}, since {owner["since"]})'


def _process(pid: int) -> list[Any]:
    """What a process is known by for good: machine since its boot, namespace, number, start (-1: unknown)."""
    machine, namespace, start = platform.node(), '', -1
    with contextlib.suppress(OSError, IndexError):  # Linux tells all of it, until the process has ended
        machine = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        namespace = os.readlink('/proc/self/ns/pid')
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        start = -1 if fields[0] in 'ZX' else int(fields[19])
    return [machine, namespace, pid, start]
