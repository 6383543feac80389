"""The command line: one function a command, with its options beside it.

Options are checked before anything heavy is imported, so that `--help` and a misspelt word are answered at
once. Settings of a configuration file, `--config.key=value`, go with every command that has `--config`. This
is the one module of the package that knows the converters in `data`.
"""

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from fusmae_jax.errors import DivergedError, InputError, nearest
from fusmae_jax.setting import user_path

if TYPE_CHECKING:
    from fusmae_jax.config import Config

T = TypeVar('T')
Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code. `argv` begins with the name of the program."""
    # A terminal may have no sign for a letter of a file name, and a name may be no text at all.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    try:
        return _main([*argv[1:]])
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except Exception as error:
        from fusmae_jax.disk import is_disk_full

        if not is_disk_full(error):
            raise
        file = getattr(error, 'filename', None) or str(error).splitlines()[0]
        again = 'give the same command again once there is space'
        print(f'error: the disk is full ({file}); {again}', file=sys.stderr)
        return 2


def _main(words: list[str]) -> int:
    if not words or words[0] in ('-h', '--help', 'help'):
        print(_usage())
        return 0 if words else 2
    if {'-h', '--help'} & {*words}:
        name, _ = _command(words)
        Parser(name, COMMANDS[name]).print_help()
        return 0
    command, given = parse(words)
    return command.run(given)


def parse(words: list[str]) -> tuple['Command', argparse.Namespace]:
    """A command and its options, from the words of a command line; raises InputError."""
    name, rest = _command(words)
    return COMMANDS[name], Parser(name, COMMANDS[name]).parse(rest)


def _usage() -> str:
    lines = [f'  {name:<14} {command.title}' for name, command in COMMANDS.items() if name != 'bench']
    return '\n'.join(
        [
            'usage: python main.py COMMAND --config=FILE.py[:VARIANT] [--workdir=DIR] [--config.key=value]',
            '       python main.py COMMAND --help',
            *lines,
        ]
    )


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The name of the command, of one word or two, and what follows it."""
    both = ' '.join(words[:2])
    if both in COMMANDS:
        return both, words[2:]
    kinds = [name for name in COMMANDS if name.startswith(f'{words[0]} ')]
    if kinds and len(words) > 1 and not words[1].startswith('-'):
        raise InputError(f'no command {both!r}; {nearest(both, kinds)}')
    if words[0] not in COMMANDS:
        raise InputError(f'no command {words[0]!r}; {nearest(words[0], COMMANDS)}\n{_usage()}')
    return words[0], words[1:]


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


COMMANDS: dict[str, Command] = {}


def command(name: str, *options: Option) -> Callable[[Run], Run]:
    """Registers a function as a command; its docstring is the title."""

    def register(run: Run) -> Run:
        COMMANDS[name] = Command((run.__doc__ or '').split('\n')[0].rstrip('.'), options, run)
        return run

    return register


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one InputError, with the nearest name for a misspelt option."""

    def __init__(self, name: str, command: Command):
        super().__init__(
            prog=f'python main.py {name}', description=command.title, add_help=False, allow_abbrev=False
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
        everywhere = {option.name for command in COMMANDS.values() for option in command.options}
        there = [option.name.replace('KEY', 'key') for option in self.command.options]
        if name in everywhere or name.startswith(('--config.', '--beam.')):
            raise InputError(f'{name} means nothing here; {self.prog} takes {", ".join(sorted(there))}')
        hint = nearest(name.lstrip('-'), [option.lstrip('-') for option in there])
        raise InputError(f'{word!r} is not an option of {self.prog}; {hint}')

    def error(self, message: str) -> NoReturn:
        """Instead of the usage and an exit."""
        raise InputError(message.removeprefix('argument '))


# Types of options. argparse shows the text of an ArgumentTypeError, and of no other.


def _path(text: str) -> str:
    try:
        return user_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r'[+-]?\d{1,18}', text) or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} must be a whole number, at least {least}')
        return int(text)

    return parse


def _sizes(text: str) -> list[int]:
    return [_whole(1)(part) for part in text.split(',')]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} must be a number in (0, 1], such as 0.4')
    return value


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f'{text!r}; {nearest(text, names)}')
        return text

    return parse


def _option(name: str, metavar: str, text: str, *, required: bool = False, **about: Any) -> Option:
    about = {'metavar': metavar, 'help': f'{text} (required)' if required else text, **about}
    return Option(name, about, required)


def _folder(name: str, text: str, **about: Any) -> Option:
    return _option(name, 'DIR', text, type=_path, **about)


def _config(default: str = '') -> tuple[Option, Option]:
    """`--config`, and the settings on the command line that go with it."""
    text = 'the settings' + (f'; {default} if it is not given' if default else '')
    how: dict[str, Any] = {'default': default} if default else {'required': True}
    return (
        _option('--config', 'FILE.py[:VARIANT]', text, type=_path, **how),
        _option('--config.KEY', 'VALUE', 'a setting of that file, as --config.train.steps=10'),
    )


_WORKDIR = _folder('--workdir', 'where results go, and where a run that was stopped goes on', required=True)
_DATA = _folder('--data', 'a converted data set', required=True)
_DEVICE_BATCH = _option(
    '--device_batch', 'N,...', 'images on each device, such as 4,8', type=_sizes, default=[]
)
_JSON = Option('--json', {'action': 'store_true', 'help': 'prints numbers for programs instead of a table'})


def _split(default: str) -> Option:
    text = f'train, val, test, or a part such as train[:1000]; {default} if it is not given'
    return _option('--split', 'SPLIT', text, default=default)


def _load(args: argparse.Namespace) -> dict[str, Any]:
    from fusmae_jax.config_file import load_config

    return load_config(args.config, args.config_settings)


@command(
    'convert',
    *_config(),
    _folder('--workdir', 'where the data set goes, in place of config.output', default=''),
    _option('--beam.KEY', 'VALUE', 'where the conversion runs, as --beam.direct_num_workers=0'),
)
def _convert(args: argparse.Namespace) -> int:
    """Converts an archive into a data set."""
    config, given = _load(args), _beam(args.beam_settings)
    from data.convert import run

    beam = config.get('beam', {})
    config['beam'] = {**beam, **given, 'flags': [*beam.get('flags', ()), *given['flags']]}
    return run(config, args.workdir)


def _beam(settings: list[str]) -> dict[str, Any]:
    """What runs a pipeline, from `key=value`; what is not ours goes to Beam as it is."""
    values: dict[str, Any] = {'flags': []}
    for setting in settings:
        key, _, value = setting.partition('=')
        if key == 'direct_num_workers':
            if not value.isdigit():
                raise InputError(f'--beam.{setting} must be a whole number; 0 takes one for each core')
            values[key] = int(value)
        elif key == 'runner':
            values[key] = value
        else:
            values['flags'].append(f'--{key}={value}' if value else f'--{key}')
    return values


@command(
    'pretrain',
    *_config(),
    _WORKDIR,
    _option('--profile', 'FIRST:LAST', 'steps to trace, such as 100:110', default=''),
)
def _pretrain(args: argparse.Namespace) -> int:
    """Pretrains an encoder."""
    config = _load(args)
    from fusmae_jax.dino_config import build_any

    settings = build_any(config)
    from fusmae_jax.experiment import pretrain

    return pretrain(settings, args.workdir, args.profile)


@command(
    'reconstruct',
    _WORKDIR,
    _folder('--data_path', 'a converted data set that is no longer where the run read it', default=''),
)
def _reconstruct(args: argparse.Namespace) -> int:
    """Draws what a run reconstructs."""
    from fusmae_jax.reconstruct import reconstruct

    return reconstruct(args.workdir, args.data_path)


@command('bench', *_config(), _DEVICE_BATCH)
@command('bench step', *_config(), _DEVICE_BATCH)
def _bench_step(args: argparse.Namespace) -> int:
    """Times the training step; `bench` alone is the same."""
    config = _build(args)
    from fusmae_jax.bench import bench

    with _records(config) as config:
        return bench(config, args.device_batch)


@command('bench dispatch', *_config())
def _bench_dispatch(args: argparse.Namespace) -> int:
    """Times what the host does for a step."""
    config = _build(args)
    from fusmae_jax.bench_dispatch import bench_dispatch

    with _records(config) as config:
        return bench_dispatch(config)


@command('bench race', *_config(), _DEVICE_BATCH)
def _bench_race(args: argparse.Namespace) -> int:
    """Times the step beside the PyTorch reference."""
    config = _build(args)
    from fusmae_jax.interop.race import race

    return race(config, args.device_batch)


@command(
    'bench input',
    _DATA,
    _split('train'),
    _option('--batch', 'N', 'records in a batch', type=_whole(1), default=64),
    _option('--threads', 'N', 'threads that read', type=_whole(1), default=2),
    _JSON,
)
def _bench_input(args: argparse.Namespace) -> int:
    """Times the reading of records."""
    from fusmae_jax.bench_input import bench_input

    return bench_input(args.data, args.split, args.batch, args.threads, args.json)


def _build(args: argparse.Namespace) -> 'Config':
    config = _load(args)
    from fusmae_jax.config_build import build

    return build(config)


@contextlib.contextmanager
def _records(config: 'Config') -> Iterator['Config']:
    """The settings with a data set that is there: random records where theirs is not."""
    import dataclasses

    from etils import epath

    if epath.Path(config.data.path).exists():
        yield config
        return
    from data.synthetic import write

    with tempfile.TemporaryDirectory() as folder:
        print(f'{config.data.path} does not exist: timing on random records of the same layout')
        data = dataclasses.replace(config.data, path=write(folder, 128), train_split='train', val_split='')
        yield dataclasses.replace(config, data=data)


@command(
    'compare',
    *_config(),
    _option(
        '--weights',
        'FILE',
        '.safetensors or PyTorch, with the names of the reference',
        type=_path,
        default='',
    ),
    _option(
        '--dtype',
        'TYPE',
        'float32, float64 or bfloat16; float32 if it is not given',
        type=_one_of('float32', 'float64', 'bfloat16'),
        default='float32',
    ),
    _JSON,
)
def _compare(args: argparse.Namespace) -> int:
    """Compares model and training step with the PyTorch reference."""
    config = _build(args)
    from fusmae_jax.interop.compare import compare

    return compare(config, weights=args.weights, dtype=args.dtype, as_json=args.json)


@command(
    'generate',
    _option('--layout', 'NAME', 'of the archive: bigearthnet_mm, sen12ms, ...', required=True),
    _folder('--out', 'the folder to write', required=True),
    _option('--pairs', 'N', 'how many; 64 if it is not given', type=_whole(1), default=64),
    _option('--seed', 'N', 'another one gives other random values', type=_whole(0), default=0),
)
def _generate(args: argparse.Namespace) -> int:
    """Makes up an archive."""
    from data.generate.command import run

    return run(args.layout, args.out, args.pairs, args.seed)


@command(
    'stats',
    _DATA,
    _split('train'),
    _JSON,
    _option('--out', 'FILE', 'the statistics as a file of JSON', type=_path, default=''),
    _option('--processes', 'N', 'processes that compute', type=_whole(1), default=1),
)
def _stats(args: argparse.Namespace) -> int:
    """Measures the statistics of a converted data set."""
    from data.stats_command import run

    return run(args.data, args.split, args.json, args.out, args.processes)


@command(
    'doctor',
    _option(
        'paths',
        'PATH',
        'give a folder, a GeoTIFF, a pair of them, or a checkpoint',
        required=True,
        nargs='*',
        type=_path,
    ),
    _JSON,
    _option('--html', 'FILE.html', 'a report with pictures', type=_path, default=''),
)
def _doctor(args: argparse.Namespace) -> int:
    """Looks for what is wrong with data, before it is converted or trained on."""
    from data.doctor.command import run

    return run(args.paths, as_json=args.json, html=args.html)


@command(
    'leaks',
    _folder('--checkpoint', 'a run, or one of its checkpoints', required=True),
    _DATA,
    _split('test'),
    _JSON,
)
def _leaks(args: argparse.Namespace) -> int:
    """Says what an encoder has seen of a split."""
    from fusmae_jax.leak_command import run

    return run(args.checkpoint, args.data, args.split, args.json)


@command(
    'encode',
    *_config('configs/encode.py'),
    _option('--s1', 'FILE', 'GeoTIFF of Sentinel-1', type=_path, default=''),
    _option('--s2', 'FILE', 'GeoTIFF of Sentinel-2', type=_path, default=''),
    _folder('--checkpoint', 'a run, or one of its checkpoints', required=True),
    _option('--out', 'FILE', 'the raster or table of embeddings, such as emb.tif', type=_path, required=True),
)
def _encode(args: argparse.Namespace) -> int:
    """Turns GeoTIFFs into embeddings."""
    config = _load(args)
    from fusmae_jax.config_build import from_dict
    from fusmae_jax.embed.settings import EncodeConfig

    settings = from_dict(EncodeConfig, config)
    from fusmae_jax.embed.run import encode

    return encode(settings, args.s1, args.s2, args.checkpoint, args.out)


def _settings(args: argparse.Namespace, kind: type[T]) -> T:
    config = _load(args)
    from fusmae_jax.config_build import from_dict

    return from_dict(kind, config)


@contextlib.contextmanager
def _alone(workdir: str, kind: str) -> Iterator[None]:
    """Refuses a second process of one command in a folder; other commands there do not meet its files."""
    from fusmae_jax import lock

    with lock.hold(workdir, f'the same command ({kind.lower()})', f'.{kind.lower()}.lock'):
        yield


@command('linear_probe', *_config('configs/linear_probe.py'), _WORKDIR)
def _linear_probe(args: argparse.Namespace) -> int:
    """Trains linear heads on frozen features."""
    from fusmae_jax.eval.evaluation_config import LinearProbe

    settings = _settings(args, LinearProbe)
    from fusmae_jax.eval.probe_command import run_linear_probe

    with _alone(args.workdir, 'LinearProbe'):
        return run_linear_probe(settings, args.workdir)


@command('knn', *_config('configs/knn.py'), _WORKDIR)
def _knn(args: argparse.Namespace) -> int:
    """Scores by nearest neighbours among frozen features."""
    from fusmae_jax.eval.evaluation_config import Knn

    settings = _settings(args, Knn)
    from fusmae_jax.eval.probe_command import run_knn

    with _alone(args.workdir, 'Knn'):
        return run_knn(settings, args.workdir)


@command('finetune', *_config('configs/finetune.py'), _WORKDIR)
def _finetune(args: argparse.Namespace) -> int:
    """Trains an encoder and a linear head together."""
    from fusmae_jax.eval.finetune.config import Finetune

    settings = _settings(args, Finetune)
    from fusmae_jax.eval.finetune.command import run_finetune

    with _alone(args.workdir, 'Finetune'):
        return run_finetune(settings, args.workdir)


@command('reliance', *_config('configs/reliance.py'), _WORKDIR)
def _reliance(args: argparse.Namespace) -> int:
    """Measures what a head does without a sensor, with another image's, or under cloud."""
    from fusmae_jax.eval.reliance.config import Reliance

    settings = _settings(args, Reliance)
    from fusmae_jax.eval.reliance.command import run_reliance

    with _alone(args.workdir, 'Reliance'):
        return run_reliance(settings, args.workdir)


@command('import', *_config(), _WORKDIR)
def _import(args: argparse.Namespace) -> int:
    """Imports published weights of other encoders."""
    from fusmae_jax.interop.published_kinds import Weights

    settings = _settings(args, Weights)
    from fusmae_jax.interop.published import run_import

    with _alone(args.workdir, 'Weights'):
        return run_import(settings, args.workdir)


@command(
    'plan',
    *_config(),
    _option('--topology', 'NAME', 'v5e:16x16, v4:4x4x8, v5e:16x16x2slices, ..., or local', required=True),
    Option('--verify', {'action': 'store_true', 'help': 'also compiles the largest batch'}),
    _option('--mfu', 'SHARE', 'utilisation that the estimate assumes; 0.4', type=_share, default=0.4),
    _option('--examples', 'N', 'records of the training split', type=_whole(0), default=0),
    _JSON,
)
def _plan(args: argparse.Namespace) -> int:
    """Says what a run needs on a machine, without the machine."""
    config = _build(args)
    from fusmae_jax.plan.command import run_plan

    return run_plan(
        config, args.topology, verify=args.verify, as_json=args.json, mfu=args.mfu, examples=args.examples
    )


@command('tables', *_config('configs/tables.py'), _WORKDIR)
def _tables(args: argparse.Namespace) -> int:
    """Runs a study and sets its tables."""
    from fusmae_jax.tables.config import Tables

    settings = _settings(args, Tables)
    from data.generate.converted import make
    from fusmae_jax.tables.run import run_tables

    with _alone(args.workdir, 'Tables'):
        return run_tables(settings, args.workdir, make=make)
