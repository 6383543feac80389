"""Lines of a result file: as a CSV, and as a Markdown table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusmae_jax import storage

Line = dict[str, Any]


def write(folder: Path, name: str, text: str, head: Sequence[str], lines: Sequence[Line]) -> None:
    """Writes `<name>.csv` with these columns, and `<name>.md`; each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / f'{name}.csv', head, lines)
    storage.write_text(folder / f'{name}.md', text)


def write_csv(file: Path, head: Sequence[str], lines: Sequence[Line]) -> None:
    """Writes lines with these columns."""
    part = file.with_name(f'{file.name}.part')
    with part.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, head, lineterminator='\n')
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in one.items()} for one in lines)
    part.replace(file)


def _plain(value: Any) -> Any:
    return f'{value:.5f}' if isinstance(value, float) else value


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = rows
    return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *body])


def interval(one: Mapping[str, float], sign: str = '', digits: int = 4) -> tuple[str, str]:
    """The estimate of a line and its interval, as text; `sign='+'` for differences."""
    estimate, low, high = (f'{one[name]:{sign}.{digits}f}' for name in ('estimate', 'low', 'high'))
    return estimate, f'[{low}, {high}]'
