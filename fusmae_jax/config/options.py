"""Options of a command line: their types, and a parser that names the nearest one for what is misspelt."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from fusmae_jax import installed
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.paths import user_path

Run = Callable[[argparse.Namespace], int]


class Option(NamedTuple):
    """One option of a command: its name, and what `ArgumentParser.add_argument` takes."""

    name: str
    about: dict[str, Any]
    required: bool = False  # checked here, after misspelt names: argparse would see one of them as missing


class Command(NamedTuple):
    """What stands behind a word of the command line."""

    title: str
    options: tuple[Option, ...]
    run: Run
    needs: str = ''  # the extra whose packages it imports (`installed.EXTRAS`)


COMMANDS: dict[str, Command] = {}


def command(name: str, *options: Option, needs: str = '') -> Callable[[Run], Run]:
    """Registers a function as a command; its docstring is the title, `needs` the extra that it imports."""

    def register(run: Run) -> Run:
        COMMANDS[name] = Command((run.__doc__ or '').split('\n')[0].rstrip('.'), options, run, needs)
        return run

    return register


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one InputError, with the nearest name for a misspelt option."""

    def __init__(self, name: str, command: Command):
        super().__init__(
            prog=f'{installed.program()} {name}',
            description=command.title,
            add_help=False,
            allow_abbrev=False,
        )
        self.command = command
        # Options that stand for many, such as --config.KEY: kept apart, for argparse knows no prefix.
        self.prefixes = [o.name.removesuffix('KEY') for o in command.options if o.name.endswith('.KEY')]
        for option in command.options:
            # A prefix has no value of its own; it is there for the help.
            default = {'default': argparse.SUPPRESS} if option.name.endswith('.KEY') else {}
            self.add_argument(option.name, **(option.about | default))

    def parse(self, words: list[str]) -> argparse.Namespace:
        """The options; of `--config.key=value`, a list of `key=value` under `config_settings`."""
        kept: dict[str, list[str]] = {prefix: [] for prefix in self.prefixes}
        rest: list[str] = []
        for word in words:
            prefix = next((p for p in kept if word.startswith(p)), '')
            (kept[prefix] if prefix else rest).append(word.removeprefix(prefix))
        given, unknown = self.parse_known_intermixed_args(rest)
        for word in unknown:
            self._refuse(word)
        for option in self.command.options:
            if option.required and not getattr(given, option.name.lstrip('-')):
                if option.name.startswith('--'):
                    raise InputError(f'{option.name}={option.about["metavar"]} is missing')
                raise InputError(f'{self.prog}: {option.about["help"]}')
        for prefix, settings in kept.items():
            setattr(given, f'{prefix.strip("-.")}_settings', settings)
        return given

    def _refuse(self, word: str) -> NoReturn:
        if not word.startswith('-'):
            raise InputError(f'{word!r} means nothing here; options start with --')
        name = word.split('=')[0]
        everywhere = {option.name for entry in COMMANDS.values() for option in entry.options}
        there = [option.name.replace('KEY', 'key') for option in self.command.options]
        prefixes = tuple(other.removesuffix('KEY') for other in everywhere if other.endswith('.KEY'))
        if name in everywhere or name.startswith(prefixes):
            raise InputError(f'{name} means nothing here; {self.prog} takes {", ".join(sorted(there))}')
        hint = nearest(name.lstrip('-'), [option.lstrip('-') for option in there])
        raise InputError(f'{word!r} is not an option of {self.prog}; {hint}')

    def error(self, message: str) -> NoReturn:
        """Instead of the usage and an exit."""
        raise InputError(message.removeprefix('argument '))


def parse(words: list[str]) -> tuple[Command, argparse.Namespace]:
    """A command and its options, from the words of a command line; raises InputError."""
    name, rest = split(words)
    return COMMANDS[name], Parser(name, COMMANDS[name]).parse(rest)


def usage() -> str:
    """All commands, a line each."""
    program = installed.program()
    lines = [f'  {name:<14} {entry.title}' for name, entry in COMMANDS.items() if name != 'bench']
    return '\n'.join(
        [
            f'usage: {program} COMMAND --config=FILE.py[:VARIANT] [--workdir=DIR] [--config.key=value]',
            f'       {program} COMMAND --help',
            *lines,
        ]
    )


def split(words: list[str]) -> tuple[str, list[str]]:
    """The name of the command, of one word or two, and what follows it."""
    both = ' '.join(words[:2])
    if both in COMMANDS:
        return both, words[2:]
    kinds = [name for name in COMMANDS if name.startswith(f'{words[0]} ')]
    if kinds and len(words) > 1 and not words[1].startswith('-'):
        raise InputError(f'no command {both!r}; {nearest(both, kinds)}')
    if words[0] not in COMMANDS:
        raise InputError(f'no command {words[0]!r}; {nearest(words[0], COMMANDS)}\n{usage()}')
    return words[0], words[1:]


# Types of options: argparse shows the text of an ArgumentTypeError, and of no other error.


def path(text: str) -> str:
    """A file or folder, with `~` expanded."""
    try:
        return user_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole(least: int) -> Callable[[str], int]:
    """A whole number."""

    def parse(text: str) -> int:
        if not re.fullmatch(r'[+-]?\d{1,18}', text) or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} must be a whole number, at least {least}')
        return int(text)

    return parse


def sizes(text: str) -> list[int]:
    """Positive whole numbers parted by commas."""
    return [whole(1)(part) for part in text.split(',')]


def share(text: str) -> float:
    """A number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} must be a number in (0, 1], such as 0.4')
    return value


def one_of(*names: str) -> Callable[[str], str]:
    """One of several words."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f'{text!r}; {nearest(text, names)}')
        return text

    return parse


def option(name: str, metavar: str, text: str, *, required: bool = False, **about: Any) -> Option:
    """An option with a value; `about` are further arguments of `add_argument`."""
    about = {'metavar': metavar, 'help': f'{text} (required)' if required else text, **about}
    return Option(name, about, required)


def folder(name: str, text: str, **about: Any) -> Option:
    """An option that names a folder."""
    return option(name, 'DIR', text, type=path, **about)


def named(words: Sequence[str], prefix: str) -> dict[str, str]:
    """Name -> file, of the words `name=file` that an option with a prefix has left; raises InputError."""
    files: dict[str, str] = {}
    for word in words:
        name, equals, file = word.partition('=')
        if not equals or not file or not name or '.' in name:
            raise InputError(f'{prefix}{word}: write {prefix}NAME=FILE, with the name of a sensor')
        if name in files:
            raise InputError(f'{prefix}{name} is given twice')
        files[name] = user_path(file)
    return files


# Options of several commands.


def config_file(default: str = '') -> tuple[Option, Option]:
    """`--config`, and the settings on the command line that go with it."""
    text = 'the settings' + (f'; {default} if it is not given' if default else '')
    how: dict[str, Any] = {'default': default} if default else {'required': True}
    return (
        option('--config', 'FILE.py[:VARIANT]', text, type=path, **how),
        option('--config.KEY', 'VALUE', 'a setting of that file, as --config.train.steps=10'),
    )


WORKDIR = folder('--workdir', 'where results go, and where a run that was stopped goes on', required=True)
DATA = folder('--data', 'a converted data set', required=True)
DEVICE_BATCH = option('--device_batch', 'N,...', 'images on each device, such as 4,8', type=sizes, default=[])
JSON = Option('--json', {'action': 'store_true', 'help': 'prints numbers for programs instead of a table'})


def split_of(default: str) -> Option:
    """`--split`."""
    text = f'train, val, test, or a part such as train[:1000]; {default} if it is not given'
    return option('--split', 'SPLIT', text, default=default)
