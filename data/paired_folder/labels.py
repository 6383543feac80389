"""The classes of an image, in whatever way a table writes them; what can be read in two ways is refused."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fusmae_jax.errors import InputError, nearest

from ..records import RecordError
from .settings import Archive

SEPARATOR = ';'
COLUMN = 'labels'
# May part classes, and may as well stand within the name of one.
STRONG, WEAK = (',', '|', '\t', '\n'), (' ', '/', '+', '&', '-', '_', ':')
NOTHING = ('nan', 'none', 'null', '<na>')  # what programs write into a cell that has no value
YES, NO = ('1', '1.0', 'true'), ('0', '0.0', 'false')
_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# A list as Python, JSON or NumPy print it. NumPy sets no commas: Python itself would read that as one text.
_LIST = re.compile(rf'[\[({{]\s*(?:{_TEXT}(?:\s*,\s*|\s+|(?=\s*[\])}}])))*[\])}}]')
_DIGITS = re.compile(r'[01]+|[\[(]\s*[01](?:\s*[,\s]\s*[01])*\s*,?\s*[\])]')

Reader = Callable[[Mapping[str, str], str], tuple[str, ...]]  # (row, where it stands) -> its classes


def class_columns(
    file: Path, columns: Sequence[str], known: Sequence[str], archive: Archive
) -> tuple[str, ...]:
    """The columns that are a class each, which `archive.classes` names; () where `labels` holds the classes.

    Raises InputError where only some of the classes have a column, or the same is said twice.
    """
    there = tuple(name for name in columns if name not in known and name in archive.classes)
    if not there:
        return ()
    if COLUMN in columns:
        raise InputError(
            f'{file}: table: column {there[0]!r} is a class of config.archive.classes, and there is a column '
            f'{COLUMN!r} too; leave one of them out'
        )
    if missing := [name for name in archive.classes if name not in there]:
        raise InputError(
            f'{file}: table: column {missing[0]!r} is missing, or is not that of a class: there are some of '
            f'config.archive.classes={archive.classes}, and each needs its own'
        )
    return there


def unknown_column(
    file: Path, name: str, rows: Sequence[Mapping[str, str]], known: Sequence[str]
) -> InputError:
    """What to say of a column that means nothing here: a misspelt one, or one of a class."""
    others = [n for n in rows[0] if n not in known] if rows else []
    classes = tuple(n for n in others if n and all(_flag(row[n]) is not None for row in rows))
    hint = nearest(name, known)
    if name in classes:
        hint += f'; it holds 0 and 1: for one column a class set config.archive.classes={classes!r}'
    return InputError(f'{file}: table: column {name!r} is not known; {hint}')


def reader(archive: Archive, file: Path, rows: Sequence[Mapping[str, str]], flags: Sequence[str]) -> Reader:
    """How the classes of a row are read; `flags` are the columns of one class each.

    Without `flags` they stand in the column `labels`: texts parted by `;` or by `labels_separator`, a list as
    Python prints it, or a digit for each of `classes`.

    Raises InputError, naming the column and the setting, where the column can be read in more than one way.
    """
    if flags:
        return lambda row, where: tuple(name for name in flags if _is_one(row[name], file, where, name))
    cells = sorted({text for row in rows if (text := (row.get(COLUMN) or '').strip())})
    if _are_digits(cells, archive.classes):
        _check_digits(file, cells, archive.classes)
        return lambda row, where: _of_digits(row.get(COLUMN, '').strip(), archive.classes)
    separator = archive.labels_separator
    if not separator and not archive.classes:
        _check_separator(file, cells)
    parts = {cell: _parts(cell, separator or SEPARATOR) for cell in cells}
    if separator in (',', ', ', *WEAK) and not archive.classes:
        _check_names(file, separator, [p for p in parts.values() if p is not None])

    def read(row: Mapping[str, str], where: str) -> tuple[str, ...]:
        cell = row.get(COLUMN, '').strip()
        return _classes_of(cell, archive, file, where) if cell else ()

    return read


def _classes_of(cell: str, archive: Archive, file: Path, where: str) -> tuple[str, ...]:
    """The classes of one cell."""
    classes, separator = archive.classes, archive.labels_separator
    readings = set[tuple[str, ...]]()
    if (listed := _listed(cell)) is not None:
        readings = {listed}
    elif _in_brackets(cell) and not separator:
        raise RecordError(file, f'{where}, {COLUMN}', f'{cell!r} is no list of texts', _HOW)
    elif classes:
        for sign in (separator,) if separator else (SEPARATOR, *STRONG):
            readings |= _tilings([part.strip() for part in cell.split(sign)], sign, classes)
    else:
        readings = {_parts(cell, separator or SEPARATOR)}
    if len(readings) > 1:
        raise RecordError(
            file, f'{where}, {COLUMN}', f'{cell!r} can be {" or ".join(map(repr, sorted(readings)))}', _HOW
        )
    names = readings.pop() if readings else _parts(cell, separator or SEPARATOR)
    for name in names:
        if classes and name not in classes:
            raise RecordError(file, f'{where}, {COLUMN}', repr(name), nearest(name, classes))
        if name.lower() in NOTHING and name not in classes:
            raise RecordError(
                file,
                f'{where}, {COLUMN}',
                f'{name!r}, which stands for no value',
                'leave the cell empty, or name it in config.archive.classes if it is a class',
            )
    return tuple(sorted(set(names)))


_HOW = (
    "set config.archive.labels_separator to what parts the classes, such as ';', and config.archive.classes "
    'if a name holds it'
)


def _listed(cell: str) -> tuple[str, ...] | None:
    """The texts of a list as a program prints it, or None."""
    if not _LIST.fullmatch(cell):
        return None
    texts = (ast.literal_eval(text).strip() for text in re.findall(_TEXT, cell))
    return tuple(text for text in texts if text)


def _in_brackets(cell: str) -> bool:
    return cell.startswith('[') and cell.endswith(']')


def _parts(cell: str, separator: str) -> tuple[str, ...]:
    if (listed := _listed(cell)) is not None:
        return listed
    return tuple(text for part in cell.split(separator) if (text := part.strip()))


def _tilings(parts: list[str], sign: str, classes: Sequence[str]) -> set[tuple[str, ...]]:
    """All ways to join neighbouring parts to names of classes, which may hold the sign themselves."""
    names = {_tight(name, sign): name for name in classes}
    ways: list[set[tuple[str, ...]]] = [{()}]  # of the parts before each position
    for end in range(1, len(parts) + 1):
        joined = set[tuple[str, ...]]()
        for start in range(end):
            if name := names.get(sign.join(parts[start:end])):
                joined |= {(*way, name) for way in ways[start]}
        if end == len(parts) and not parts[-1]:
            joined |= ways[-1]  # a sign at the end parts nothing
        ways.append(set(sorted(joined)[:2]))
    return ways[-1]


def _tight(name: str, sign: str) -> str:
    return sign.join(part.strip() for part in name.split(sign))


def _check_separator(file: Path, cells: Sequence[str]) -> None:
    """Refuses a column that may be parted by another sign than `;`."""
    plain = [cell for cell in cells if _listed(cell) is None and not _in_brackets(cell)]
    if any(SEPARATOR in cell for cell in plain):
        plain = [cell for cell in plain if SEPARATOR not in cell]
        for sign in STRONG:
            if example := next((cell for cell in plain if _combined(cell, sign, cells)), None):
                raise _ambiguous(file, sign, example)
        return
    for sign in STRONG:
        if example := next((cell for cell in plain if sign in cell), None):
            raise _ambiguous(file, sign, example)
    for sign in WEAK:
        texts = [{part for part in cell.split(sign) if part} for cell in plain]
        # Names have words of their own; combinations of classes share theirs, so they outnumber them.
        if any(len(text) > 1 for text in texts) and len(set().union(*texts)) < len(texts):
            raise _ambiguous(file, sign, next(cell for cell in plain if sign in cell))


def _combined(cell: str, sign: str, cells: Sequence[str]) -> bool:
    """Whether a cell is made of texts that stand alone elsewhere."""
    alone = {part for other in cells if other != cell for part in _parts(other, SEPARATOR)}
    parts = _parts(cell, sign)
    return len(parts) > 1 and alone.issuperset(parts)


def _ambiguous(file: Path, sign: str, example: str) -> InputError:
    return InputError(
        f'{file}: table: column {COLUMN!r}: {example!r} can be one class or several parted by {sign!r}; '
        f'set config.archive.labels_separator={sign!r} (and config.archive.classes, if names hold it too) '
        f"or, if it belongs to the names alone, config.archive.labels_separator='{SEPARATOR}'"
    )


def _check_names(file: Path, sign: str, lists: Sequence[tuple[str, ...]]) -> None:
    """Refuses parts that look like the second half of a name that holds the separator itself."""
    before: dict[str, set[str]] = {}
    for parts in lists:
        for left, right in zip(('', *parts), parts):
            before.setdefault(right, set()).add(left)
    for right, lefts in before.items():
        (left,) = lefts if len(lefts) == 1 else ('',)
        if left:
            raise InputError(
                f'{file}: table: column {COLUMN!r}: {right!r} stands after {left!r} and nowhere else: two '
                f'classes, or one whose name holds {sign!r}? name the classes: config.archive.classes='
                f'{tuple(sorted(before))!r}, but {f"{left}{sign} {right}"!r} where two are one'
            )


def _are_digits(cells: Sequence[str], classes: Sequence[str]) -> bool:
    return bool(cells) and all(map(_DIGITS.fullmatch, cells)) and not set(cells) <= set(classes)


def _check_digits(file: Path, cells: Sequence[str], classes: Sequence[str]) -> None:
    lengths = sorted({len(_only_digits(cell)) for cell in cells})
    if not classes or lengths != [len(classes)]:
        digits = ' or '.join(map(str, lengths))
        names = f'are {len(classes)} names' if classes else 'is empty'
        raise InputError(
            f'{file}: table: column {COLUMN!r}: {cells[-1]!r} looks like one digit a class, {digits} in all, '
            f'but config.archive.classes {names}; name the classes in the order of the digits (or these '
            'texts, if they are names themselves). Spreadsheets drop leading zeros'
        )


def _only_digits(cell: str) -> str:
    return re.sub(r'[^01]', '', cell)


def _of_digits(cell: str, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name, digit in zip(classes, _only_digits(cell)) if digit == '1'))


def _flag(text: str | None) -> bool | None:
    word = (text or '').strip().lower()
    return word in YES if word in (*YES, *NO) else None


def _is_one(text: str, file: Path, where: str, name: str) -> bool:
    flag = _flag(text)
    if flag is None:
        raise RecordError(file, f'{where}, {name}', f'{text!r}', 'the column of a class holds 0 or 1')
    return flag
