"""What stands on the command line behind the command."""

import argparse
from typing import Any

from fusmae_jax.config_file import load_config
from fusmae_jax.errors import InputError, nearest

OPTIONS = (
    *('config', 'workdir', 'data_path', 'device_batch', 'against', 'weights', 'dtype', 'data', 'split'),
    *('batch', 'threads', 'layout', 'out', 'pairs', 'seed', 'processes', 'html', 'checkpoint', 's1', 's2'),
    *('profile', 'topology', 'mfu', 'examples'),
)
SWITCHES = ('json', 'dispatch', 'verify')


class Arguments:
    """Options and words, each asked for by the command that it means something to."""

    def __init__(self, argv: list[str]):
        overrides = [a.removeprefix('--config.') for a in argv if a.startswith('--config.')]
        self._beam = [a for a in argv if a.startswith('--beam.')]
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in OPTIONS:
            parser.add_argument(f'--{name}', default='')
        for name in SWITCHES:
            parser.add_argument(f'--{name}', action='store_true')
        parser.add_argument('words', nargs='*')
        rest = [a for a in argv if not a.startswith(('--config.', '--beam.'))]
        self._given, unknown = parser.parse_known_args(rest)
        if unknown:
            name = unknown[0].split('=')[0].lstrip('-')
            hint = nearest(name, [*OPTIONS, *SWITCHES, 'config.key', 'beam.key'])
            raise InputError(f'{unknown[0]!r} is not an option; {hint}')
        self._overrides = overrides

    def config(self, default: str = '') -> dict[str, Any]:
        """The configuration file (required, if it has no default) with all --config.key=value settings."""
        name = self.optional('config') or default
        return load_config(name or self.text('config', 'configs/FILE.py[:VARIANT]'), self._overrides)

    def only(self, *names: str) -> None:
        """Refuses options that this command would ignore."""
        given = [name for name in (*OPTIONS, *SWITCHES) if getattr(self._given, name)]
        given += ['config.*'] * bool(self._overrides)
        given += ['beam.*'] * bool(self._beam)
        given += ['words'] * bool(self._given.words)
        if extra := [name for name in given if name not in names]:
            if extra[0] == 'words':
                raise InputError(f'{self._given.words[0]!r} means nothing here; options start with --')
            raise InputError(f'--{extra[0]} means nothing here; this command takes --{", --".join(names)}')

    def text(self, name: str, example: str) -> str:
        """A required option."""
        if not (value := getattr(self._given, name)):
            raise InputError(f'--{name}={example} is missing')
        return value

    def beam(self) -> dict[str, Any]:
        """The --beam.key=value options: where a pipeline runs; what is not ours goes to Beam as it is."""
        values: dict[str, Any] = {'flags': []}
        for option in self._beam:
            key, _, value = option.removeprefix('--beam.').partition('=')
            if key == 'direct_num_workers':
                if not value.isdigit():
                    raise InputError(f'{option!r} must be a whole number; 0 takes one for each core')
                values[key] = int(value)
            elif key == 'runner':
                values[key] = value
            else:
                values['flags'].append(f'--{key}={value}' if value else f'--{key}')
        return values

    @property
    def words(self) -> list[str]:
        """What stands on the command line without dashes."""
        return self._given.words

    def number(self, name: str, default: int) -> int:
        """A whole number, or the default if it was not given."""
        value = getattr(self._given, name)
        if value and not value.isdigit():
            raise InputError(f'--{name}={value} must be a whole number')
        return int(value) if value else default

    def switch(self, name: str) -> bool:
        """Whether --json, for one, was given."""
        return getattr(self._given, name)

    def optional(self, name: str) -> str:
        """An option, or '' if it was not given."""
        return getattr(self._given, name)

    def sizes(self, name: str) -> list[int]:
        """A list of positive whole numbers, empty if not given."""
        parts = [part for part in getattr(self._given, name).split(',') if part]
        if not all(part.isdigit() and int(part) for part in parts):
            raise InputError(f'--{name}={",".join(parts)} must be positive whole numbers, such as 8,16')
        return [int(part) for part in parts]
