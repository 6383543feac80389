"""Fields of settings with the range of their values beside them."""

import dataclasses
import math
from typing import Any

# Metadata of a field that plain data leave out while it has its default: what was stored before the field was
# there, and every digest of it, is what is written today.
SPARSE = {'sparse': True}


def setting(
    default: Any = dataclasses.MISSING,
    *,
    least: int | float | None = None,
    above: int | float | None = None,
    most: int | float | None = None,
    below: int | float | None = None,
    path: bool = False,
    sparse: bool = False,
    key: str = '',
) -> Any:
    """A dataclass field whose values lie in a range, or name a file or folder.

    Args:
        default: of the field; without one it must be given.
        least: the smallest value; of a tuple, of each of its values.
        above: what a value must be greater than.
        most: the greatest value.
        below: what a value must be smaller than.
        path: True: a path, or several; `~` is the home folder.
        sparse: True: see SPARSE.
        key: what users call the field, where that is a word of Python; see `key_of`.
    """
    limits = {'least': least, 'above': above, 'most': most, 'below': below}
    metadata: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    metadata['path'] = path
    metadata = {**metadata, **({'key': key} if key else {})}
    return dataclasses.field(default=default, metadata=metadata | (SPARSE if sparse else {}))


def key_of(field: dataclasses.Field[Any]) -> str:
    """What a field is called in plain data, in configuration files and on the command line."""
    return field.metadata.get('key', field.name)


def range_problems(config: Any, path: str = '') -> list[str]:
    """Every number of a configuration, groups in it included, that is not finite or outside its range."""
    problems = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f'{path}{key_of(field)}'
        for key, item in value.items() if isinstance(value, dict) else [('', value)]:
            where = f'{name}.{key}' if key else name
            if dataclasses.is_dataclass(item):
                problems += range_problems(item, f'{where}.')
            else:
                problems += field_problems(field, item, where)
    return problems


def field_problems(field: dataclasses.Field[Any], value: Any, path: str) -> list[str]:
    """What is wrong with the number, or the numbers, of one field; `path` names it."""
    if isinstance(value, tuple):
        return [text for i, item in enumerate(value) for text in field_problems(field, item, f'{path}[{i}]')]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    if isinstance(value, float) and not math.isfinite(value):
        return [f'{path}={value} must be a finite number']
    limits = field.metadata
    inside = (
        limits.get('least', -math.inf) <= value <= limits.get('most', math.inf)
        and limits.get('above', -math.inf) < value < limits.get('below', math.inf)
    )  # fmt: skip
    return [] if inside else [f'{path}={value} must be {_range(limits)}']


def _range(limits: Any) -> str:
    words = {'least': 'at least', 'above': 'above', 'most': 'at most', 'below': 'below'}
    return ' and '.join(f'{word} {limits[name]:g}' for name, word in words.items() if name in limits)
