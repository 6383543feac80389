"""The manifest of a checkpoint: size and CRC-32 of each of its files, written once it is complete.

A file system can lose or change what it has confirmed, and nothing else holds a checksum of the values in
a checkpoint: a flipped bit would load without a word. CRC-32 finds every damage of up to 32 bits in a row,
and misses one in 2^32 of the others.
"""

import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

NAME = 'manifest.json'
ASIDE = 'damaged_checkpoints'
PARTS = ('params', 'opt_state', 'meta')  # without which a run cannot go on
BLOCK = 2**22  # bytes read at a time
THREADS = 4  # zlib and file reads run outside the interpreter's lock


def write(folder: epath.Path) -> None:
    """Writes the manifest of a complete checkpoint, whole or not at all."""
    part = folder / f'{NAME}.part'
    part.write_text(json.dumps({'files': _measure(folder, '')}))
    part.replace(folder / NAME)


def damage(folder: epath.Path, part: str = '') -> str | None:
    """What is wrong with a checkpoint, in words; None if every byte is as it was written.

    Args:
        folder: the checkpoint.
        part: looks at one part of it alone, such as `params`.
    """
    if not (folder / NAME).exists():
        return _unreadable(folder, (part,) if part else PARTS)
    try:
        stored = json.loads((folder / NAME).read_text())['files']
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f'{NAME} cannot be read ({error})'
    prefix = f'{part}/' if part else ''
    wanted = {name: tuple(known) for name, known in stored.items() if name.startswith(prefix)}
    try:
        found = _measure(folder, part)
    except OSError as error:
        return f'cannot be read ({error})'
    for name, (size, crc) in sorted(wanted.items()):
        if name not in found:
            return f'{name} is missing'
        if found[name][0] != size:
            return f'{name} has {found[name][0]:,} bytes, {size:,} were written'
        if found[name][1] != crc:
            return f'{name} has changed since it was written'
    return None


def saved_steps(directory: epath.Path) -> list[int]:
    """The steps that have a folder, ascending; orbax gives it this name when it is complete."""
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def set_damaged_aside(directory: epath.Path) -> None:
    """Moves the newest checkpoint away if it is damaged, and those before it up to the first good one."""
    for step in reversed(saved_steps(directory)):
        folder = directory / str(step)
        if (what := damage(folder)) is None:
            return
        place = directory.parent / ASIDE / str(step)
        for number in itertools.count(2):
            if not place.exists():
                break
            place = place.parent / f'{step}.{number}'
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(place)
        before = saved_steps(directory)
        instead = f'checkpoint {before[-1]}' if before else 'the beginning'
        print(f'checkpoint {step} is damaged: {what}; moved to {place}; falling back to {instead}')


def _measure(folder: epath.Path, part: str) -> dict[str, tuple[int, int]]:
    """Bytes and CRC-32 of the files of a checkpoint, or of one part of it, by their path in it."""
    own = (folder / NAME, folder / f'{NAME}.part')
    files = [file for file in _files(folder / part) if file not in own]
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


def _unreadable(folder: epath.Path, parts: Sequence[str]) -> str | None:
    """Reads the stored values of a checkpoint whose writer was killed before it wrote the manifest.

    Finds what is missing or cut short; a changed value only where its compression notices.
    """
    import tensorstore as ts

    for part in parts:
        place = folder / part
        base = str(place) if '://' in str(place) else f'file://{place}'
        try:
            json.loads((place / '_METADATA').read_text())
            store = ts.KvStore.open({'driver': 'ocdbt', 'base': f'{base}/'}).result()
            for read in [store.read(key) for key in store.list().result()]:
                read.result()
        except (OSError, ValueError) as error:
            return f'{part} cannot be read ({str(error).splitlines()[0][:200]})'
    return None
