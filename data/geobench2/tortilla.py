"""The container of GEO-Bench-2, a tortilla: files one behind the other, then a table of them.

    bytes 0-1      #y
    bytes 2-17     where the table begins and its length, two little-endian numbers of 64 bits
    bytes 18-25    the number of files that a data set is spread over, likewise
    to byte 199    not used
    from byte 200  the members, then the table as Parquet

A member of the format TORTILLA is a container again, and its table counts bytes from its own beginning.
Described at https://deepwiki.com/tacofoundation/tacoreader/5.2-v1-loading-operations and compared with the
file that the benchmark tests itself with.

Every number is checked against the bytes that are there before anything is read, and nothing but numbers,
text and flags is taken from the table.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..records import RecordError

MAGIC, HEADER = b'#y', 200
ID, FORMAT, OFFSET, LENGTH = 'tortilla:id', 'tortilla:file_format', 'tortilla:offset', 'tortilla:length'
PLACES: Mapping[str, type] = {ID: str, FORMAT: str, OFFSET: int, LENGTH: int}
AGAIN = 'the file is truncated or damaged; download it again'
OTHER = 'give a .tortilla file of GEO-Bench-2, and say with --config.archive.name which set it holds'
# A table of 28,000 samples takes 5 MB. What unpacks to more than this is none.
MOST_BYTES, MOST_ROWS = 2**30, 10**6

Row = dict[str, Any]


class Span(NamedTuple):
    """Some of the bytes of a file."""

    file: Path
    begin: int
    length: int
    name: str = ''  # of the member, for errors

    @property
    def title(self) -> str:
        """What an error calls it."""
        return f'{self.file}: {self.name}' if self.name else str(self.file)


def whole(file: Path) -> Span:
    """All bytes of a file; raises RecordError if there is none."""
    if not file.is_file():
        raise RecordError(file, 'file', 'there is no such file', OTHER)
    return Span(file, 0, file.stat().st_size)


def read_bytes(span: Span) -> bytes:
    """The bytes of a span; raises RecordError where the file ends before it, or cannot be read."""
    try:
        with open(span.file, 'rb') as stream:
            stream.seek(span.begin)
            content = stream.read(span.length)
    except OSError as error:
        raise RecordError(span.title, 'file', f'cannot be read: {error}', 'see to its permissions') from error
    if len(content) < span.length:
        raise RecordError(span.title, 'length', f'{len(content):,} of {span.length:,} bytes', AGAIN)
    return content


def read_table(span: Span, columns: Mapping[str, type]) -> list[Row]:
    """The table of a container: a row for each member, in their order.

    Args:
        span: the container.
        columns: name -> type of its values, beside those of PLACES; other columns are not read.

    Raises:
        RecordError: no container, one that is damaged or in several parts, a missing column, a value of
            another type, or a member that lies outside.
    """
    begin, length = _place_of_table(span)
    wanted = {**PLACES, **columns}
    rows = _parquet(span, read_bytes(span._replace(begin=span.begin + begin, length=length)), list(wanted))
    for number, row in enumerate(rows):
        for column, kind in wanted.items():
            if type(row[column]) is not kind:
                message = f'row {number}: {row[column]!r}, expected {kind.__name__}'
                raise RecordError(span.title, column, message, AGAIN)
        if row[OFFSET] < HEADER or row[LENGTH] < 1 or row[OFFSET] + row[LENGTH] > begin:
            message = f'row {number}: {row[LENGTH]:,} bytes from {row[OFFSET]:,}'
            message += f', but the members lie between {HEADER} and {begin:,}'
            raise RecordError(span.title, OFFSET, message, AGAIN)
    return rows


def member(span: Span, row: Row, name: str = '') -> Span:
    """The bytes of the member that a row of the table of `span` stands for."""
    title = f'{span.name}/{name or row[ID]}'.lstrip('/')
    return Span(span.file, span.begin + row[OFFSET], row[LENGTH], title)


def _place_of_table(span: Span) -> tuple[int, int]:
    """Where the table begins, from the beginning of the container, and how long it is."""
    if span.length < HEADER:
        raise RecordError(span.title, 'header', f'{span.length:,} bytes, expected more than {HEADER}', OTHER)
    magic, begin, length, parts = struct.unpack('<2sQQQ', read_bytes(span._replace(length=26)))
    if magic != MAGIC:
        raise RecordError(span.title, 'header', f'begins with {magic!r}, expected {MAGIC!r}', OTHER)
    if parts != 1:
        advice = 'only sets in one file are read'
        raise RecordError(span.title, 'header', f'one of {parts:,} parts', advice)
    if begin < HEADER or begin + length != span.length or length > MOST_BYTES:
        message = f'a table of {length:,} bytes from {begin:,}, but there are {span.length:,} bytes'
        raise RecordError(span.title, 'header', message, AGAIN)
    return begin, length


def _parquet(span: Span, content: bytes, columns: list[str]) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        about, names = table.metadata, table.schema_arrow.names
        missing = [name for name in columns if name not in names]
        if missing:
            message = f'no column {", ".join(missing)} (found: {", ".join(names)})'
            raise RecordError(span.title, 'table', message, OTHER)
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > MOST_ROWS or unpacked > MOST_BYTES:
            message = f'{about.num_rows:,} rows, {unpacked:,} bytes'
            raise RecordError(span.title, 'table', message, 'such a table is none of a benchmark')
        return table.read(columns=columns).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise RecordError(span.title, 'table', f'cannot be read as Parquet: {error}', AGAIN) from error
