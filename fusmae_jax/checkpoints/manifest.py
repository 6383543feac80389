"""The manifest of a checkpoint: size and CRC-32 of each of its files, written once it is complete.

A file system can lose or change what it has confirmed, and nothing else holds a checksum of the values in
a checkpoint: a flipped bit would load without a word. CRC-32 finds every damage of up to 32 bits in a row,
and misses one in 2^32 of the others.
"""

import itertools
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import InputError

NAME = 'manifest.json'
ASIDE = 'damaged_checkpoints'
PARTS = ('params', 'opt_state', 'meta')  # without which a run cannot go on
INDEX = '_CHECKPOINT_METADATA'  # orbax lists the parts of a checkpoint there
COMMITTED = 'commit_success.txt'  # orbax's last file
BLOCK = 2**22  # bytes read at a time
THREADS = 4  # zlib and file reads run outside the interpreter's lock
# What a damaged checkpoint raises. Any other error, such as a stale handle or a denied access, is one of the
# moment and says nothing about the bytes.
BROKEN = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
    *(ValueError, LookupError, TypeError, AttributeError),
)
# How tensorstore, which raises ValueError for everything, begins its words on an error of the moment.
PASSING = (
    *('PERMISSION_DENIED', 'UNAUTHENTICATED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED'),
    *('ABORTED', 'CANCELLED', 'INTERNAL', 'UNKNOWN'),
)


def write(folder: epath.Path) -> None:
    """Writes the manifest of a complete checkpoint, whole or not at all."""
    # Last of all: a manifest says that every file it lists was complete.
    storage.write_json(folder / NAME, {'files': _measure(folder, '')}, indent=None)


def damage(folder: epath.Path, part: str = '') -> str | None:
    """What is wrong with a checkpoint, in words; None if every byte is as it was written.

    Args:
        folder: the checkpoint.
        part: looks at one part of it alone, such as `params`.

    Raises:
        InputError: it cannot be read at this moment, which is no damage.
    """
    try:
        look = _difference if (folder / NAME).exists() else unreadable
        return look(folder, part)
    except Exception as error:  # an object store has errors of its own
        raise InputError(
            f'{folder} cannot be read at this moment ({_first_line(error)}); nothing was moved. Give the '
            'same command again once it can; if it never can, move that folder away: the one before serves'
        ) from error


def _difference(folder: epath.Path, part: str) -> str | None:
    """What the manifest and the files of a checkpoint do not agree on."""
    try:
        stored = json.loads((folder / NAME).read_text())['files']
        prefix = f'{part}/' if part else ''
        wanted = {name: tuple(known) for name, known in stored.items() if name.startswith(prefix)}
    except BROKEN as error:
        return f'{NAME} cannot be read ({_first_line(error)})'
    try:
        measured = _measure(folder, part)
    except BROKEN as error:
        return f'cannot be read ({_first_line(error)})'
    for name, (size, crc) in sorted(wanted.items()):
        if name not in measured:
            return f'{name} is missing'
        if measured[name][0] != size:
            return f'{name} has {measured[name][0]:,} bytes, {size:,} were written'
        if measured[name][1] != crc:
            return f'{name} has changed since it was written'
    return None


def saved_steps(directory: epath.Path) -> list[int]:
    """The steps that have a complete checkpoint, ascending.

    On a disk orbax gives a folder this name when it is complete. An object store renames nothing: there a
    file says so.
    """
    try:
        folders = [path for path in directory.iterdir() if path.name.isdigit()]
    except FileNotFoundError:
        return []
    remote = storage.is_remote(directory)
    return sorted(int(path.name) for path in folders if not remote or (path / COMMITTED).exists())


def set_damaged_aside(directory: epath.Path) -> None:
    """Moves the newest checkpoint away if it is damaged, and those before it up to the first good one.

    Raises:
        InputError: one of them cannot be read at this moment, or none is good; then nothing is moved.
    """
    try:
        steps, damaged = saved_steps(directory), {}
    except Exception as error:
        raise InputError(
            f'{directory} cannot be read at this moment ({_first_line(error)}); give the same command again '
            'once it can'
        ) from error
    for step in reversed(steps):
        if (what := damage(directory / str(step))) is None:
            break
        damaged[step] = what
    if damaged and len(damaged) == len(steps):
        each = '; '.join(f'{step}: {what}' for step, what in damaged.items())
        raise InputError(
            f'{directory}: none of the checkpoints is whole ({each}); nothing was moved. Put back what is '
            'missing, or move that folder away to begin again from step 0'
        )
    for step, what in damaged.items():
        steps.remove(step)
        place = _move_aside(directory / str(step))
        print(
            f'checkpoint {step} is damaged: {what}; moved to {place}; falling back to checkpoint {steps[-1]}'
        )


def _move_aside(folder: epath.Path) -> epath.Path:
    place = folder.parent.parent / ASIDE / folder.name
    for number in itertools.count(2):
        if not place.exists():
            break
        place = place.parent / f'{folder.name}.{number}'
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.parent.exists():  # an object store has no empty folders, and renames only into one
        (place.parent / 'README').write_text('Checkpoints in which a start has found damage.\n')
    folder.rename(place)
    return place


def _measure(folder: epath.Path, part: str) -> dict[str, tuple[int, int]]:
    """Bytes and CRC-32 of the files of a checkpoint, or of one part of it, by their path in it."""
    # A kill may have left half a manifest behind.
    manifests = (folder / NAME, folder / f'{NAME}.part')
    files = [file for file in _files(folder / part) if file not in manifests]
    with ThreadPoolExecutor(THREADS) as pool:
        return {
            str(file.relative_to(folder)): known for file, known in zip(files, pool.map(_checksum, files))
        }


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _checksum(path: epath.Path) -> tuple[int, int]:
    size = crc = 0
    with path.open('rb') as file:
        while block := file.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def unreadable(folder: epath.Path, part: str = '') -> str | None:
    """What is wrong with a checkpoint, or a part of it, that has no manifest yet; reads all its values.

    Finds what is missing or cut short; a changed value only where its compression notices.
    """
    name = INDEX
    try:
        listed = json.loads((folder / INDEX).read_text())['item_handlers']
        # PARTS whatever the list says: without one of them no run can go on.
        for name in (part,) if part else sorted({*PARTS, *listed}):
            _read_through(folder / name)
    except BROKEN as error:
        return f'{name} cannot be read ({_first_line(error)})'
    return None


def _read_through(place: epath.Path) -> None:
    """Reads one part of a checkpoint; raises one of BROKEN if it is damaged."""
    import tensorstore as ts

    if place.name == 'metrics':  # JSON alone; the others are trees of arrays
        json.loads((place / 'metrics').read_text())
        return
    json.loads((place / '_METADATA').read_text())
    if place.name == 'meta':
        json.loads((place / '_strings.json').read_text())
    # As an address, a path on disk would have to be quoted: %, # and ? mean something there.
    base = f'{place}/' if storage.is_remote(place) else {'driver': 'file', 'path': f'{place}/'}
    try:
        store = ts.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
        keys = store.list().result()
        # A list, so that all reads are under way before the first is waited for.
        for read in [store.read(key) for key in keys]:
            read.result()
    except ValueError as error:
        if str(error).startswith(PASSING):
            raise OSError(_first_line(error)) from error
        raise
    if not keys:  # so it looks where the list of the values is missing
        raise ValueError('it lists no values')


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0][:200]
