"""The configurations that ship with the package: `fusmae configs`."""

import ast
import shutil
from pathlib import Path

from fusmae_jax import installed, shipped
from fusmae_jax.errors import InputError, nearest

FOLDER = shipped.ROOT / 'configs'


def shipped_files() -> dict[str, Path]:
    """Name without `.py` -> file."""
    return {file.stem: file for file in sorted(FOLDER.glob('*.py')) if file.stem != '__init__'}


def shipped_file(name: str) -> Path | None:
    """The shipped file for `configs/NAME.py`, or None; for where the working directory has no such file."""
    path = Path(name)
    file = FOLDER / path.name
    return file if path.parts == ('configs', path.name) and file.stem in shipped_files() else None


def title(file: Path) -> str:
    """The first line of a file's docstring, which is all that is looked at: nothing in it is run."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ''
    return text.split('\n')[0]


def run(copy: str = '', to: str = 'configs') -> int:
    """Lists the shipped configurations, or copies one for editing; returns the exit code 0.

    Args:
        copy: the name of one, with or without `configs/` and `.py`; '' lists all.
        to: the folder for the copy. In `configs`, `--config=configs/NAME.py` means the copy from then on.

    Raises:
        InputError: no such configuration, or a file where the copy would go.
    """
    if copy:
        _copy(copy, Path(to))
        return 0
    for name, file in shipped_files().items():
        print(f'configs/{name + ".py":<28} {title(file)}')
    print(f'\n{installed.program()} configs --copy=NAME [--to=DIR] copies one for editing')
    return 0


def _copy(name: str, folder: Path) -> None:
    files = shipped_files()
    stem = name.removeprefix('configs/').removesuffix('.py')
    if stem not in files:
        raise InputError(f'--copy={name}: no such configuration; {nearest(stem, files)}')
    target = folder / files[stem].name
    if target.exists() or target.is_symlink():
        raise InputError(f'--to={folder}: {target} is there already; give another folder, or remove it')
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[stem], target)
    print(f'{target}: use it as --config={target}')
