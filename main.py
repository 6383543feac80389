"""python main.py COMMAND --config=configs/FILE.py[:VARIANT] [--workdir=DIR] [--config.key=value].

The one entry, kept short, so that everything it calls can be imported and tested. Bad input ends with one
message and exit code 2, without a traceback.
"""

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

from fusmae_jax.arguments import Arguments, HelpAsked
from fusmae_jax.errors import DivergedError, InputError, nearest

T = TypeVar('T')


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

    arguments.only('config', 'config.*', 'workdir', 'profile')
    config = build_any(arguments.config())
    return pretrain(config, arguments.text('workdir', 'DIR'), arguments.optional('profile'))


def _reconstruct(arguments: Arguments) -> int:
    from fusmae_jax.reconstruct import reconstruct

    arguments.only('workdir', 'data_path')
    return reconstruct(arguments.text('workdir', 'DIR'), arguments.optional('data_path'))


def _bench(arguments: Arguments) -> int:
    import tempfile

    from etils import epath

    from data.synthetic import write
    from fusmae_jax.bench import bench
    from fusmae_jax.bench_dispatch import bench_dispatch
    from fusmae_jax.config_build import build, to_dict

    if arguments.words == ['input']:
        from fusmae_jax.bench_input import bench_input

        arguments.only('words', 'data', 'split', 'batch', 'threads', 'json')
        return bench_input(
            arguments.text('data', 'DIR'),
            arguments.optional('split') or 'train',
            arguments.number('batch', 64),
            arguments.number('threads', 2),
            arguments.switch('json'),
        )
    arguments.only('config', 'config.*', 'device_batch', 'against', 'dispatch')
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
        if arguments.switch('dispatch'):
            return bench_dispatch(build(values))
        return bench(build(values), arguments.sizes('device_batch'))


def _compare(arguments: Arguments) -> int:
    from fusmae_jax.config_build import build
    from fusmae_jax.interop.compare import compare

    arguments.only('config', 'config.*', 'weights', 'dtype', 'json')
    return compare(
        build(arguments.config()),
        weights=arguments.optional('weights'),
        dtype=arguments.optional('dtype') or 'float32',
        as_json=arguments.switch('json'),
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
        arguments.switch('json'),
        arguments.optional('out'),
        arguments.number('processes', 1),
    )


def _doctor(arguments: Arguments) -> int:
    from data.doctor.command import run

    arguments.only('words', 'json', 'html')
    if not arguments.words:
        raise InputError('doctor PATH [PATH]: give a folder, a GeoTIFF, a pair of them, or a checkpoint')
    return run(arguments.words, as_json=arguments.switch('json'), html=arguments.optional('html'))


def _leaks(arguments: Arguments) -> int:
    from fusmae_jax.leak_command import run

    arguments.only('checkpoint', 'data', 'split', 'json')
    return run(
        arguments.text('checkpoint', 'DIR'),
        arguments.text('data', 'DIR'),
        arguments.optional('split') or 'test',
        arguments.switch('json'),
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


def _in_workdir(arguments: Arguments, kind: type[T], run: Callable[[T, str], int], default: str = '') -> int:
    """A command that has a configuration and a working directory, and nothing else."""
    from fusmae_jax import lock
    from fusmae_jax.config_build import from_dict

    arguments.only('config', 'config.*', 'workdir')
    config, workdir = from_dict(kind, arguments.config(default)), arguments.text('workdir', 'DIR')
    name = kind.__name__.lower()  # those of other commands in the same folder do not meet its files
    with lock.hold(workdir, f'the same command ({name})', f'.{name}.lock'):
        return run(config, workdir)


def _linear_probe(arguments: Arguments) -> int:
    from fusmae_jax.eval.evaluation_config import LinearProbe
    from fusmae_jax.eval.probe_command import run_linear_probe

    return _in_workdir(arguments, LinearProbe, run_linear_probe, 'configs/linear_probe.py')


def _knn(arguments: Arguments) -> int:
    from fusmae_jax.eval.evaluation_config import Knn
    from fusmae_jax.eval.probe_command import run_knn

    return _in_workdir(arguments, Knn, run_knn, 'configs/knn.py')


def _finetune(arguments: Arguments) -> int:
    from fusmae_jax.eval.finetune.command import run_finetune
    from fusmae_jax.eval.finetune.config import Finetune

    return _in_workdir(arguments, Finetune, run_finetune, 'configs/finetune.py')


def _reliance(arguments: Arguments) -> int:
    from fusmae_jax.eval.reliance.command import run_reliance
    from fusmae_jax.eval.reliance.config import Reliance

    return _in_workdir(arguments, Reliance, run_reliance, 'configs/reliance.py')


def _plan(arguments: Arguments) -> int:
    from fusmae_jax.config_build import build
    from fusmae_jax.plan.command import run_plan

    arguments.only('config', 'config.*', 'topology', 'verify', 'mfu', 'examples', 'json')
    return run_plan(
        build(arguments.config()),
        arguments.text('topology', 'v5e:16x16'),
        verify=arguments.switch('verify'),
        as_json=arguments.switch('json'),
        mfu=arguments.optional('mfu') or '0.4',
        examples=arguments.number('examples', 0),
    )


def _import(arguments: Arguments) -> int:
    from fusmae_jax.interop.published import run_import
    from fusmae_jax.interop.published_kinds import Weights

    return _in_workdir(arguments, Weights, run_import)


def _tables(arguments: Arguments) -> int:
    from data.generate.converted import make
    from fusmae_jax.tables.config import Tables
    from fusmae_jax.tables.run import run_tables

    return _in_workdir(arguments, Tables, functools.partial(run_tables, make=make), 'configs/tables.py')


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
    'finetune': _finetune,
    'reliance': _reliance,
    'import': _import,
    'plan': _plan,
    'tables': _tables,
}


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code."""
    usage = (
        f'usage: python main.py {{{",".join(COMMANDS)}}} --config=FILE.py[:VARIANT] [--workdir=DIR]\n'
        '       python main.py COMMAND --help'
    )
    if len(argv) < 2 or argv[1] in ('-h', '--help', 'help'):
        print(usage)
        return 0 if len(argv) > 1 else 2
    try:
        if argv[1] not in COMMANDS:
            raise InputError(f'no command {argv[1]!r}; {nearest(argv[1], COMMANDS)}\n{usage}')
        return COMMANDS[argv[1]](Arguments(argv[2:]))
    except HelpAsked as help_text:
        print(f'python main.py {argv[1]} takes\n{help_text}')
        return 0
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


if __name__ == '__main__':
    sys.exit(main(sys.argv))
