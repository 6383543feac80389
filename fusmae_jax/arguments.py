"""What stands on the command line behind the command."""

import argparse
from typing import Any

from fusmae_jax.config_file import load_config
from fusmae_jax.errors import InputError, nearest

OPTIONS = {
    'config': 'FILE.py[:VARIANT], the settings',
    'workdir': 'DIR, where results go, and where a run that was stopped goes on',
    'data_path': 'DIR of a converted set, where it is no longer where the run read it',
    'device_batch': 'images on each device, such as 4 or 4,8',
    'against': 'torch: races the PyTorch reference',
    'weights': 'FILE, a .safetensors or PyTorch file with the names of the reference',
    'dtype': 'float32, float64 or bfloat16',
    'data': 'DIR of a converted set',
    'split': 'train, val, test, or a part such as train[:1000]',
    'batch': 'records in a batch',
    'threads': 'that read',
    'layout': 'of the archive that is made up: bigearthnet_mm, sen12ms, ...',
    'out': 'a folder or file to write',
    'pairs': 'how many',
    'seed': 'a whole number; another one gives other random values',
    'processes': 'that compute',
    'html': 'FILE.html, a report with pictures',
    'checkpoint': 'DIR of a run, or one of its checkpoints',
    's1': 'GeoTIFF of Sentinel-1',
    's2': 'GeoTIFF of Sentinel-2',
    'profile': 'STEPS to trace, such as 100:110',
    'topology': 'v5e:16x16, v4:4x4x8, v5e:16x16x2slices, ..., or local',
    'mfu': 'utilisation that the estimate assumes, such as 0.4',
    'examples': 'records of the training split',
}
SWITCHES = {
    'json': 'prints numbers for programs instead of a table',
    'dispatch': 'times the host alone',
    'verify': 'also compiles the largest batch',
}
OTHERS = {
    'config.*': 'a setting of the file, as --config.train.steps=10',
    'beam.*': 'where a conversion runs, as --beam.direct_num_workers=0',
    'words': 'paths, or what is meant, without dashes',
}


class HelpAsked(Exception):  # noqa: N818 (nothing went wrong)
    """Somebody wants to know what a command takes; the message says it."""


class Arguments:
    """Options and words, each asked for by the command that it means something to."""

    def __init__(self, argv: list[str]):
        self._help = bool({'-h', '--help'} & set(argv))
        argv = [a for a in argv if a not in ('-h', '--help')]
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
        """Refuses options that this command would ignore; raises HelpAsked, if that is what is wanted."""
        if self._help:
            meaning = OPTIONS | SWITCHES | OTHERS
            dashed = {name: name if name == 'words' else f'--{name}' for name in names}
            raise HelpAsked('\n'.join(f'  {dashed[name]:<16} {meaning[name]}' for name in names))
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
