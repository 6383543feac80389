"""Names of files and folders as a user writes them: home folders, and bytes that are no text."""

import os
import re

from fusmae_jax.errors import InputError


def escaped(text: object) -> str:
    """A text that can be printed and stored anywhere: bytes of a file name that are no UTF-8 as `\\xff`."""
    # Python keeps such a byte as one half of a surrogate pair, from U+DC80 to U+DCFF.
    return re.sub('[\ud800-\udfff]', lambda half: f'\\x{ord(half[0]) & 0xFF:02x}', str(text))


def check_text(text: str) -> None:
    """Raises InputError for the name of a file or folder that is not UTF-8."""
    if escaped(text) != text:
        raise InputError(f'{escaped(text)}: this name is not UTF-8; rename it, such as with `convmv` or `mv`')


def user_path(text: str) -> str:
    """A path of a command line or a configuration: `~` and `~NAME` at its start are home folders.

    A shell expands them at the start of a word alone, so not in `--workdir=~/run`. Raises InputError for a
    user that there is not, and for a name that is no UTF-8, which contracts and reports could not hold.
    """
    check_text(text)
    if not text.startswith('~'):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith('~'):
        raise InputError(
            f'{text}: {text.split("/")[0]} is no home folder here; write the path out, or ./{text} for a '
            'file of that name'
        )
    return expanded
