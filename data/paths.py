"""Names that come from outside: they must stay inside the folder that they are looked up in."""

from pathlib import Path, PurePosixPath

from data.records import RecordError
from fusmae_jax.paths import escaped


def check_name(name: str, source: object, field: str = 'name') -> None:
    """Raises RecordError for a name that is not UTF-8, which no record and no report can hold."""
    if (text := escaped(name)) != name:
        advice = 'rename the file or the folder that it is in'
        raise RecordError(source, field, f"'{text}' is not UTF-8", advice)


def inside(root: Path, name: str, source: object = '', field: str = 'name') -> Path:
    """`root / name`, where `name` is relative and leads nowhere else, not even through a link.

    Args:
      root: the folder that the archive was unpacked to.
      name: as a table, an archive or a JSON file gives it; `/` parts folders.
      source: the file that the name stands in, for the error.
      field: the column or key that it stands in.

    Raises:
      RecordError: a name that is empty, absolute or not UTF-8, one with `..`, or a link that leaves `root`.
    """
    check_name(name, source or root, field)
    parts = PurePosixPath(name.replace('\\', '/')).parts
    escapes = not parts or parts[0] == '/' or '..' in parts or ':' in parts[0] or '\0' in name
    path = root / Path(*parts) if not escapes else root
    if not escapes and not path.resolve().is_relative_to(root.resolve()):
        escapes = True
    if escapes:
        raise RecordError(
            source or root,
            field,
            f'{name!r} leads out of {root}',
            'names are relative to that folder, without `..`; repair the table or move the files there',
        )
    return path
