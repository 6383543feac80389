"""The persistent compilation cache of a working directory: a run that comes back compiles nothing again.

jax writes an entry in place, once, and without a checksum. One that a kill or a full disk cut short stays:
every start reads it, warns and compiles. One with a flipped bit may even load, as another program. Here
every entry gets a digest once it is known to be whole, and a run begins by deleting each entry that has none
or differs from it; jax then compiles and writes it anew.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from fusmae_jax.parallel.processes import gather
from fusmae_jax.storage import absolute, write_json

FOLDER = 'compilation_cache'
DIGESTS = 'digests.json'
ENTRY = '-cache'  # how jax ends the names of its entries
SETTINGS = {
    'jax_compilation_cache_dir': '',
    'jax_enable_compilation_cache': True,
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,  # small ones too: a run has hundreds of them
}


class CompileCache:
    """The entries of one folder and their digests; only the first process writes, as jax does."""

    def __init__(self, folder: epath.Path):
        self._folder, self._lead = folder, jax.process_index() == 0

    def clean(self) -> list[str]:
        """Deletes the entries that are not as they were sealed; returns their names."""
        known, kept, deleted = self._digests(), {}, []
        for name, file in self._entries().items():
            if name in known and _digest(file.read_bytes()) == known[name]:
                kept[name] = known[name]
            else:
                file.unlink()
                deleted.append(name)
        if kept != known:
            self._write(kept)
        return deleted

    def seal(self) -> int:
        """Gives each new entry its digest, and deletes those that cannot be read; returns how many are new.

        To be called when a program was compiled. It costs a listing of the folder where nothing is new.
        """
        if not self._lead:
            return 0
        known = self._digests()
        new = {name: file for name, file in self._entries().items() if name not in known}
        for name, file in new.items():
            content = file.read_bytes()
            if _readable(content):
                known[name] = _digest(content)
            else:
                file.unlink()
        if new:
            self._write(known)
        return len(new)

    def _entries(self) -> dict[str, epath.Path]:
        if not self._folder.exists():  # an object store has no empty folders
            return {}
        return {path.name: path for path in self._folder.iterdir() if path.name.endswith(ENTRY)}

    def _digests(self) -> dict[str, str]:
        try:
            return json.loads((self._folder / DIGESTS).read_text())
        except (OSError, ValueError):
            return {}  # then no entry can be trusted

    def _write(self, digests: dict[str, str]) -> None:
        write_json(self._folder / DIGESTS, digests, indent=1)


@contextlib.contextmanager
def enabled(workdir: epath.PathLike) -> Iterator[CompileCache | None]:
    """Keeps compiled programs in `workdir` until the context ends; gives None where nothing is to be sealed.

    All processes enter together. A cache that the user has chosen through JAX_COMPILATION_CACHE_DIR is left
    alone: others may be using it.
    """
    chosen = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    folder = absolute(workdir) / FOLDER
    cache = CompileCache(folder)
    if jax.process_index() == 0 and not chosen:
        folder.mkdir(parents=True, exist_ok=True)
        if deleted := cache.clean():
            logging.warning('deleted %d damaged or unfinished entries of %s', len(deleted), folder)
    gather(None)  # the others look when that is done; also one whose environment has chosen another
    if chosen:
        yield None
        return
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    _configure(SETTINGS | {'jax_compilation_cache_dir': str(folder)})
    try:
        yield cache
        with contextlib.suppress(Exception):  # a full disk, a bucket that does not answer: as if never built
            cache.seal()
    finally:
        _configure(before)


def _configure(settings: dict[str, object]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # jax opens the folder once and keeps it


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _readable(content: bytes) -> bool:
    """Whether jax can unpack an entry."""
    from jax._src.compilation_cache import decompress_executable

    try:
        return bool(decompress_executable(content))
    except Exception:  # each codec has errors of its own
        return False
