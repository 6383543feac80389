"""python main.py COMMAND --config=configs/FILE.py[:VARIANT] [--workdir=DIR] [--config.key=value].

The one entry, kept short, so that everything it calls can be imported and tested. Bad input ends with one
message and exit code 2, without a traceback.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from fusmae_jax.config_file import load_config
from fusmae_jax.errors import DivergedError, InputError, nearest


class Arguments:
    """What stands on the command line behind the command."""

    def __init__(self, argv: list[str]):
        overrides = [a.removeprefix('--config.') for a in argv if a.startswith('--config.')]
        self._beam = [a for a in argv if a.startswith('--beam.')]
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in OPTIONS:
            parser.add_argument(f'--{name}', default='')
        parser.add_argument('--json', action='store_true')
        parser.add_argument('words', nargs='*')
        rest = [a for a in argv if not a.startswith(('--config.', '--beam.'))]
        self._given, unknown = parser.parse_known_args(rest)
        if unknown:
            name = unknown[0].split('=')[0].lstrip('-')
            hint = nearest(name, [*OPTIONS, 'json', 'config.key', 'beam.key'])
            raise InputError(f'{unknown[0]!r} is not an option; {hint}')
        self._overrides = overrides

    def config(self, default: str = '') -> dict[str, Any]:
        """The configuration file (required, if it has no default) with all --config.key=value settings."""
        name = self.optional('config') or default
        return load_config(name or self.text('config', 'configs/FILE.py[:VARIANT]'), self._overrides)

    def only(self, *names: str) -> None:
        """Refuses options that this command would ignore."""
        given = [name for name in OPTIONS if getattr(self._given, name)]
        given += ['json'] * self._given.json + ['config.*'] * bool(self._overrides)
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

    @property
    def json(self) -> bool:
        """Whether --json was given."""
        return self._given.json

    def optional(self, name: str) -> str:
        """An option, or '' if it was not given."""
        return getattr(self._given, name)

    def sizes(self, name: str) -> list[int]:
        """A list of positive whole numbers, empty if not given."""
        parts = [part for part in getattr(self._given, name).split(',') if part]
        if not all(part.isdigit() and int(part) for part in parts):
            raise InputError(f'--{name}={",".join(parts)} must be positive whole numbers, such as 8,16')
        return [int(part) for part in parts]


# Heavy imports stay inside the commands, so that a misspelt word is answered at once.
def _convert(arguments: Arguments) -> int:
    from data.convert import run

    arguments.only('config', 'config.*', 'beam.*', 'workdir')
    config = arguments.config()
    given = arguments.beam()
    beam = config.get('beam', {})
    config['beam'] = {**beam, **given, 'flags': [*beam.get('flags', ()), *given['flags']]}
    return run(config, arguments.optional('workdir'))


def _pretrain(arguments: Arguments) -> int:
    from fusmae_jax.dino_config import build_any
    from fusmae_jax.experiment import pretrain

    arguments.only('config', 'config.*', 'workdir')
    return pretrain(build_any(arguments.config()), arguments.text('workdir', 'DIR'))


def _reconstruct(arguments: Arguments) -> int:
    from fusmae_jax.reconstruct import reconstruct

    arguments.only('workdir', 'data_path')
    return reconstruct(arguments.text('workdir', 'DIR'), arguments.optional('data_path'))


def _bench(arguments: Arguments) -> int:
    import tempfile

    from etils import epath

    from data.synthetic import write
    from fusmae_jax.bench import bench
    from fusmae_jax.config_build import build, to_dict

    if arguments.words == ['input']:
        from fusmae_jax.bench_input import bench_input

        arguments.only('words', 'data', 'split', 'batch', 'threads', 'json')
        return bench_input(
            arguments.text('data', 'DIR'),
            arguments.optional('split') or 'train',
            arguments.number('batch', 64),
            arguments.number('threads', 2),
            arguments.json,
        )
    arguments.only('config', 'config.*', 'device_batch', 'against')
    values = to_dict(build(arguments.config()))
    if against := arguments.optional('against'):
        if against != 'torch':
            raise InputError(f'--against={against}; {nearest(against, ["torch"])}')
        from fusmae_jax.interop.race import race

        return race(build(values), arguments.sizes('device_batch'))
    with tempfile.TemporaryDirectory() as folder:
        if not epath.Path(values['data']['path']).exists():
            print(f'{values["data"]["path"]} does not exist: timing on random records of the same layout')
            values['data'] |= {'path': write(folder, 128), 'train_split': 'train', 'val_split': ''}
        return bench(build(values), arguments.sizes('device_batch'))


def _compare(arguments: Arguments) -> int:
    from fusmae_jax.config_build import build
    from fusmae_jax.interop.compare import compare

    arguments.only('config', 'config.*', 'weights', 'dtype', 'json')
    return compare(
        build(arguments.config()),
        weights=arguments.optional('weights'),
        dtype=arguments.optional('dtype') or 'float32',
        as_json=arguments.json,
    )


def _generate(arguments: Arguments) -> int:
    from data.generate.command import run

    arguments.only('layout', 'out', 'pairs', 'seed')
    layout, out = arguments.text('layout', 'bigearthnet_mm'), arguments.text('out', 'DIR')
    return run(layout, out, arguments.number('pairs', 64), arguments.number('seed', 0))


def _stats(arguments: Arguments) -> int:
    from data.stats_command import run

    arguments.only('data', 'split', 'json', 'out', 'processes')
    return run(
        arguments.text('data', 'DIR'),
        arguments.optional('split') or 'train',
        arguments.json,
        arguments.optional('out'),
        arguments.number('processes', 1),
    )


def _doctor(arguments: Arguments) -> int:
    from data.doctor.command import run

    arguments.only('words', 'json', 'html')
    if not arguments.words:
        raise InputError('doctor PATH [PATH]: give a folder, a GeoTIFF, a pair of them, or a checkpoint')
    return run(arguments.words, as_json=arguments.json, html=arguments.optional('html'))


def _leaks(arguments: Arguments) -> int:
    from fusmae_jax.leak_command import run

    arguments.only('checkpoint', 'data', 'split', 'json')
    return run(
        arguments.text('checkpoint', 'DIR'),
        arguments.text('data', 'DIR'),
        arguments.optional('split') or 'test',
        arguments.json,
    )


def _encode(arguments: Arguments) -> int:
    from fusmae_jax.config_build import from_dict
    from fusmae_jax.embed.run import encode
    from fusmae_jax.embed.settings import EncodeConfig

    arguments.only('config', 'config.*', 's1', 's2', 'checkpoint', 'out')
    return encode(
        from_dict(EncodeConfig, arguments.config(default='configs/encode.py')),
        arguments.optional('s1'),
        arguments.optional('s2'),
        arguments.text('checkpoint', 'DIR'),
        arguments.text('out', 'emb.tif'),
    )


def _linear_probe(arguments: Arguments) -> int:
    from fusmae_jax.config_build import from_dict
    from fusmae_jax.eval.evaluation_config import LinearProbe
    from fusmae_jax.eval.probe_command import run_linear_probe

    arguments.only('config', 'config.*', 'workdir')
    config = from_dict(LinearProbe, arguments.config(default='configs/linear_probe.py'))
    return run_linear_probe(config, arguments.text('workdir', 'DIR'))


def _knn(arguments: Arguments) -> int:
    from fusmae_jax.config_build import from_dict
    from fusmae_jax.eval.evaluation_config import Knn
    from fusmae_jax.eval.probe_command import run_knn

    arguments.only('config', 'config.*', 'workdir')
    config = from_dict(Knn, arguments.config(default='configs/knn.py'))
    return run_knn(config, arguments.text('workdir', 'DIR'))


OPTIONS = (
    *('config', 'workdir', 'data_path', 'device_batch', 'against', 'weights', 'dtype', 'data', 'split'),
    *('batch', 'threads', 'layout', 'out', 'pairs', 'seed', 'processes', 'html', 'checkpoint', 's1', 's2'),
)
COMMANDS: dict[str, Callable[[Arguments], int]] = {
    'convert': _convert,
    'pretrain': _pretrain,
    'reconstruct': _reconstruct,
    'bench': _bench,
    'compare': _compare,
    'generate': _generate,
    'stats': _stats,
    'doctor': _doctor,
    'leaks': _leaks,
    'encode': _encode,
    'linear_probe': _linear_probe,
    'knn': _knn,
}


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code."""
    usage = f'usage: python main.py {{{",".join(COMMANDS)}}} --config=FILE.py[:VARIANT] [--workdir=DIR]'
    if len(argv) < 2 or argv[1] in ('-h', '--help', 'help'):
        print(usage)
        return 0 if len(argv) > 1 else 2
    try:
        if argv[1] not in COMMANDS:
            raise InputError(f'no command {argv[1]!r}; {nearest(argv[1], COMMANDS)}\n{usage}')
        return COMMANDS[argv[1]](Arguments(argv[2:]))
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv))
