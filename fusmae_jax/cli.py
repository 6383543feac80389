"""The command line: one function a command, with its options beside it.

Options are checked before anything heavy is imported, so that `--help` and a misspelt word are answered at
once. Settings of a configuration file, `--config.key=value`, go with every command that has `--config`. This
is the one module of the package that knows the converters in `data`.
"""

import argparse
import contextlib
import functools
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fusmae_jax import installed
from fusmae_jax.config import options, terminal
from fusmae_jax.config.options import (
    DATA,
    DEVICE_BATCH,
    JSON,
    WORKDIR,
    command,
    config_file,
    folder,
    option,
    path,
    split_of,
    whole,
)
from fusmae_jax.errors import DivergedError, InputError

if TYPE_CHECKING:
    from fusmae_jax.config.files import Prepare
    from fusmae_jax.config.run import Config
    from fusmae_jax.embed.settings import EncodeConfig

T = TypeVar('T')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. `argv` begins with the name of the program."""
    argv = sys.argv if argv is None else argv
    try:
        with terminal.printing():
            return _main([*argv[1:]])
    except terminal.ClosedOutputError:
        return terminal.CLOSED
    except KeyboardInterrupt:
        print('\nstopped by Ctrl-C', file=sys.stderr)
        return terminal.INTERRUPTED
    except (InputError, DivergedError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except Exception as error:
        from fusmae_jax.storage import is_disk_full

        if not is_disk_full(error):
            raise
        file = getattr(error, 'filename', None) or str(error).splitlines()[0]
        again = 'give the same command again once there is space'
        print(f'error: the disk is full ({file}); {again}', file=sys.stderr)
        return 2


def _main(words: list[str]) -> int:
    if not words or words[0] in ('-h', '--help', 'help'):
        print(options.usage())
        return 0 if words else 2
    if {'-h', '--help'} & {*words}:
        name, _ = options.split(words)
        options.Parser(name, options.COMMANDS[name]).print_help()
        return 0
    wanted, given = options.parse(words)
    if wanted.needs:
        installed.need(wanted.needs, f'{installed.program()} {options.split(words)[0]}')
    return wanted.run(given)


def _load(args: argparse.Namespace, prepare: 'Prepare | None' = None) -> dict[str, Any]:
    from fusmae_jax.config.files import load_config

    return load_config(args.config, args.config_settings, prepare)


@command(
    'convert',
    *config_file(),
    folder('--workdir', 'where the data set goes, if config.output is empty', default=''),
    option('--beam.KEY', 'VALUE', 'where the conversion runs, as --beam.direct_num_workers=0'),
    needs='convert',
)
def _convert(args: argparse.Namespace) -> int:
    """Converts an archive into a data set."""
    config = _load(args)
    from fusmae_jax.shipped.data.convert import run

    return run(config, args.workdir, args.beam_settings)


@command(
    'demo',
    folder('--workdir', 'where everything goes; runs/demo if it is not given', default='runs/demo'),
    needs='convert',
)
def _demo(args: argparse.Namespace) -> int:
    """Converts six real pairs, pretrains a small model on them, draws what it fills in."""
    from fusmae_jax.run.demo import demo
    from fusmae_jax.shipped.data.convert import run

    return demo(args.workdir, convert=run)


@command(
    'configs',
    option('--copy', 'NAME', 'the one to copy, for editing', default=''),
    folder('--to', 'the folder for the copy; configs if it is not given', default='configs'),
)
def _configs(args: argparse.Namespace) -> int:
    """Lists the configurations that ship with the package, or copies one."""
    from fusmae_jax.config.catalogue import run

    return run(args.copy, args.to)


@command(
    'pretrain',
    *config_file(),
    WORKDIR,
    option('--profile', 'FIRST:LAST', 'steps to trace, such as 100:110', default=''),
)
def _pretrain(args: argparse.Namespace) -> int:
    """Pretrains an encoder."""
    config = _load(args)
    from fusmae_jax.config.build import build

    settings = build(config)
    from fusmae_jax.run.loop import pretrain

    return pretrain(settings, args.workdir, args.profile)


@command(
    'reconstruct',
    WORKDIR,
    folder('--data_path', 'a converted data set that is no longer where the run read it', default=''),
    option('--attention', 'ROW,COLUMN', 'a patch: also draws where it looks', default=''),
    needs='plot',
)
def _reconstruct(args: argparse.Namespace) -> int:
    """Draws what a run reconstructs."""
    from fusmae_jax.run.reconstruct import reconstruct

    return reconstruct(args.workdir, args.data_path, args.attention)


@command('bench', *config_file(), DEVICE_BATCH)
@command('bench step', *config_file(), DEVICE_BATCH)
def _bench_step(args: argparse.Namespace) -> int:
    """Times the training step; `bench` alone is the same."""
    from fusmae_jax.bench.memory import keep_all_freed

    # Before anything that starts threads is imported. Only here: a run keeps the memory of its machine.
    keep_all_freed()
    config = _build(args)
    from fusmae_jax.bench.step import bench

    with _records(config) as config:
        return bench(config, args.device_batch)


@command('bench dispatch', *config_file())
def _bench_dispatch(args: argparse.Namespace) -> int:
    """Times what the host does for a step."""
    config = _build(args)
    from fusmae_jax.bench.dispatch import bench_dispatch

    with _records(config) as config:
        return bench_dispatch(config)


@command('bench race', *config_file(), DEVICE_BATCH, needs='parity')
def _bench_race(args: argparse.Namespace) -> int:
    """Times the step beside the PyTorch reference."""
    config = _build(args)
    from fusmae_jax.bench.race import race

    return race(config, args.device_batch)


@command(
    'bench input',
    DATA,
    split_of('train'),
    option('--batch', 'N', 'records in a batch', type=whole(1), default=64),
    option('--threads', 'N', 'threads that read', type=whole(1), default=2),
    JSON,
)
def _bench_input(args: argparse.Namespace) -> int:
    """Times the reading of records."""
    from fusmae_jax.bench.input import bench_input

    return bench_input(args.data, args.split, args.batch, args.threads, args.json)


def _build(args: argparse.Namespace) -> 'Config':
    """The settings of a masked autoencoder, which is what the reference and `bench` know."""
    settings = _build_any(args)
    if settings.objective != 'masked':
        raise InputError(f'{args.config}: this command is for masked autoencoders')
    return settings


def _build_any(args: argparse.Namespace) -> 'Config':
    """The settings of a pretraining run."""
    config = _load(args)
    from fusmae_jax.config.build import build

    return build(config)


@contextlib.contextmanager
def _records(config: 'Config') -> Iterator['Config']:
    """The settings with a data set that is there: random records where theirs is not."""
    import dataclasses

    from etils import epath

    if epath.Path(config.data.path).exists():
        yield config
        return
    installed.need('convert', f'timing without a data set ({config.data.path} does not exist)')
    from fusmae_jax.shipped.data.synthetic import write
    from fusmae_jax.train.setup import of_any_length

    with tempfile.TemporaryDirectory() as folder:
        print(f'{config.data.path} does not exist: timing on random records of the same layout')
        data = dataclasses.replace(config.data, path=write(folder, 128), train_split='train', val_split='')
        yield of_any_length(dataclasses.replace(config, data=data))


@command(
    'compare',
    *config_file(),
    option('--weights', 'FILE', '.safetensors or PyTorch, named as in the reference', type=path, default=''),
    option(
        '--dtype',
        'TYPE',
        'float32, float64 or bfloat16; float32 if it is not given',
        type=options.one_of('float32', 'float64', 'bfloat16'),
        default='float32',
    ),
    JSON,
    needs='parity',
)
def _compare(args: argparse.Namespace) -> int:
    """Compares model and training step with the PyTorch reference."""
    config = _build(args)
    from fusmae_jax.interop.compare import compare

    return compare(config, weights=args.weights, dtype=args.dtype, as_json=args.json)


@command(
    'generate',
    option('--layout', 'NAME', 'of the archive: bigearthnet_mm, sen12ms, ...', required=True),
    folder('--out', 'the folder to write', required=True),
    option('--pairs', 'N', 'how many; 64 if it is not given', type=whole(1), default=64),
    option('--seed', 'N', 'another one gives other random values', type=whole(0), default=0),
    needs='convert',
)
def _generate(args: argparse.Namespace) -> int:
    """Makes up an archive."""
    from fusmae_jax.shipped.data.generate.command import run

    return run(args.layout, args.out, args.pairs, args.seed)


@command(
    'stats',
    DATA,
    split_of('train'),
    JSON,
    option('--out', 'FILE', 'the statistics as a file of JSON', type=path, default=''),
    option('--processes', 'N', 'processes that compute', type=whole(1), default=1),
)
def _stats(args: argparse.Namespace) -> int:
    """Measures the statistics of a converted data set."""
    from fusmae_jax.shipped.data.stats_command import run

    return run(args.data, args.split, args.json, args.out, args.processes)


@command(
    'doctor',
    option(
        'paths',
        'PATH',
        'give a folder, a GeoTIFF, a pair of them, or a checkpoint',
        required=True,
        nargs='*',
        type=path,
    ),
    JSON,
    option('--html', 'FILE.html', 'a report with pictures', type=path, default=''),
    needs='convert',
)
def _doctor(args: argparse.Namespace) -> int:
    """Looks for what is wrong with data, before it is converted or trained on."""
    from fusmae_jax.shipped.data.doctor.command import run

    return run(args.paths, as_json=args.json, html=args.html)


@command(
    'leaks',
    folder('--checkpoint', 'a run, or one of its checkpoints', required=True),
    DATA,
    split_of('test'),
    JSON,
    needs='eval',
)
def _leaks(args: argparse.Namespace) -> int:
    """Says what an encoder has seen of a split."""
    from fusmae_jax.eval.leaks import run

    return run(args.checkpoint, args.data, args.split, args.json)


FILE_OF = option('--file.KEY', 'FILE', 'of any other sensor of the encoder, as --file.s1_desc=desc.tif')


def _sensor_files(args: argparse.Namespace, before: bool = False) -> dict[str, str]:
    """Sensor -> file, of the options of the usual sensors and of those by name."""
    from fusmae_jax.embed.settings import USUAL, option_name

    start, prefix = ('before_', '--before.') if before else ('', '--file.')
    files = {name: file for name in USUAL if (file := getattr(args, f'{start}{name}'))}
    by_name = options.named(args.before_settings if before else args.file_settings, prefix)
    for name in files.keys() & by_name.keys():
        raise InputError(
            f'{prefix}{name} and {option_name(name, before)} are the same sensor; give one of them'
        )
    return files | by_name


def _encode_settings(args: argparse.Namespace, sensors: Iterable[str]) -> 'EncodeConfig':
    """The settings of `encode` and `predict`, with a group for each sensor that has a file."""
    from fusmae_jax.config.build import from_dict
    from fusmae_jax.embed.settings import EncodeConfig, add_sensors

    return from_dict(EncodeConfig, _load(args, functools.partial(add_sensors, sensors=sensors)))


@command(
    'encode',
    *config_file('configs/encode.py'),
    option('--s1', 'FILE', 'GeoTIFF of Sentinel-1, or a STAC item', type=path, default=''),
    option('--s2', 'FILE', 'GeoTIFF of Sentinel-2, a product .SAFE, or a STAC item', type=path, default=''),
    option('--dem', 'FILE', 'GeoTIFF of elevation, in metres', type=path, default=''),
    FILE_OF,
    folder('--checkpoint', 'a run, or one of its checkpoints', required=True),
    option('--out', 'FILE', 'the raster or table of embeddings, such as emb.tif', type=path, required=True),
    needs='geo',
)
def _encode(args: argparse.Namespace) -> int:
    """Turns GeoTIFFs into embeddings."""
    files = _sensor_files(args)
    settings = _encode_settings(args, files)
    from fusmae_jax.embed.run import encode

    return encode(settings, files, args.checkpoint, args.out)


@command(
    'neuco',
    *config_file('configs/neuco.py'),
    folder('--data', 'SSL4EO-S12-downstream, or its folder data', required=True),
    folder('--checkpoint', 'a run, or one of its checkpoints', required=True),
    option('--out', 'FILE.csv', 'the table of embeddings', type=path, required=True),
    needs='convert',
)
def _neuco(args: argparse.Namespace) -> int:
    """Embeds SSL4EO-S12-downstream for NeuCo-Bench."""
    config = _load(args)
    from fusmae_jax.config.build import from_dict
    from fusmae_jax.shipped.data.neuco.settings import NeucoConfig

    settings = from_dict(NeucoConfig, config)
    from fusmae_jax.shipped.data.neuco.run import neuco

    return neuco(settings, args.data, args.checkpoint, args.out)


@command(
    'predict',
    *config_file('configs/encode.py'),
    option('--s1', 'FILE', 'GeoTIFF of Sentinel-1', type=path, default=''),
    option('--s2', 'FILE', 'GeoTIFF of Sentinel-2', type=path, default=''),
    option('--dem', 'FILE', 'GeoTIFF of elevation, in metres', type=path, default=''),
    FILE_OF,
    option('--before-s1', 'FILE', 'of an earlier date, for a head of two dates', type=path, default=''),
    option('--before-s2', 'FILE', 'the same of Sentinel-2', type=path, default=''),
    option('--before-dem', 'FILE', 'the same of elevation', type=path, default=''),
    option('--before.KEY', 'FILE', 'the same of any other sensor, as --before.s1_desc=old.tif'),
    folder('--checkpoint', 'the encoder that the head was trained on', required=True),
    option('--head', 'FILE', 'of heads/ of a dense_probe, or of a dense_finetune', type=path, required=True),
    option('--out', 'FILE', 'the map of classes or numbers, such as flood.tif', type=path, required=True),
    option('--probabilities', 'FILE', 'a .tif with a band for each class', type=path, default=''),
    needs='geo',
)
def _predict(args: argparse.Namespace) -> int:
    """Turns GeoTIFFs into a map of classes or numbers."""
    files, before = _sensor_files(args), _sensor_files(args, before=True)
    settings = _encode_settings(args, [*files, *before])
    from fusmae_jax.predict.run import predict

    return predict(settings, files, args.checkpoint, args.head, args.out, args.probabilities, before)


@command(
    'map',
    option('--embeddings', 'FILE', 'what `encode` wrote: a .tif or a .zarr', type=path, required=True),
    option(
        '--out', 'PATH_PREFIX', 'the beginning of the names of the files to write', type=path, required=True
    ),
    options.Option('--pca', {'action': 'store_true', 'help': 'false colours: the three main components'}),
    option('--query', 'LON,LAT', 'a place in degrees: how similar is every other?', default=''),
    option('--places', 'N', 'most similar places to list; 10 if it is not given', type=whole(1), default=10),
    option('--kmeans', 'K', 'groups of a sketch of land cover, 2 to 50', type=whole(2), default=0),
    options.Option('--overwrite', {'action': 'store_true', 'help': 'replace files that are there'}),
    needs='geo',
)
def _map(args: argparse.Namespace) -> int:
    """Draws embeddings: false colours, similar places, groups."""
    from fusmae_jax.maps.run import run_map

    return run_map(
        args.embeddings, args.out, args.pca, args.query, args.places, args.kmeans, overwrite=args.overwrite
    )


@command(
    'export',
    folder('--checkpoint', 'a run, one of its checkpoints, or whatever else is an encoder', required=True),
    option(
        '--to',
        'KIND',
        'safetensors, stablehlo, onnx or torch',
        type=options.one_of('safetensors', 'stablehlo', 'onnx', 'torch'),
        required=True,
    ),
    option('--out', 'PATH', 'a file NAME.safetensors, or a folder for the others', type=path, required=True),
)
def _export(args: argparse.Namespace) -> int:
    """Writes an encoder for other programs, compared with `encode`."""
    from fusmae_jax.export.command import run_export

    return run_export(args.checkpoint, args.to, args.out, _samples)


@command(
    'push',
    folder('--checkpoint', 'a run, one of its checkpoints, or whatever else is an encoder', required=True),
    option(
        '--to', 'ADDRESS', 'hf://ORG/NAME, or a folder for what would be uploaded', type=path, required=True
    ),
)
def _push(args: argparse.Namespace) -> int:
    """Uploads an encoder to the Hugging Face hub."""
    from fusmae_jax.export.command import run_push

    return run_push(args.checkpoint, args.to, _samples)


def _samples() -> Any:
    """Real images to compare an export with, or None."""
    from fusmae_jax.shipped.data.bigearthnet_mm.samples import six_pairs

    return six_pairs()


@contextlib.contextmanager
def _in_workdir(args: argparse.Namespace, kind: type[T]) -> Iterator[T]:
    """The settings of a command, alone in its folder: other commands there do not meet its files."""
    config = _load(args)
    from fusmae_jax.config.build import from_dict
    from fusmae_jax.parallel import lock

    settings, name = from_dict(kind, config), kind.__name__.lower()
    with lock.hold(args.workdir, f'the same command ({name})', f'.{name}.lock'):
        yield settings


@command('linear_probe', *config_file('configs/linear_probe.py'), WORKDIR, needs='eval')
def _linear_probe(args: argparse.Namespace) -> int:
    """Trains linear heads on frozen features."""
    from fusmae_jax.eval.config import LinearProbe

    with _in_workdir(args, LinearProbe) as settings:
        from fusmae_jax.eval.probe import run_linear_probe

        return run_linear_probe(settings, args.workdir)


@command('attentive_probe', *config_file('configs/attentive_probe.py'), WORKDIR, needs='eval')
def _attentive_probe(args: argparse.Namespace) -> int:
    """Trains heads that attend to frozen tokens."""
    from fusmae_jax.eval.attentive.config import AttentiveProbe

    with _in_workdir(args, AttentiveProbe) as settings:
        from fusmae_jax.eval.attentive.command import run_attentive_probe

        return run_attentive_probe(settings, args.workdir)


@command('knn', *config_file('configs/knn.py'), WORKDIR, needs='eval')
def _knn(args: argparse.Namespace) -> int:
    """Scores by nearest neighbours among frozen features."""
    from fusmae_jax.eval.config import Knn

    with _in_workdir(args, Knn) as settings:
        from fusmae_jax.eval.probe import run_knn

        return run_knn(settings, args.workdir)


@command('finetune', *config_file('configs/finetune.py'), WORKDIR, needs='eval')
def _finetune(args: argparse.Namespace) -> int:
    """Trains an encoder and a linear head together."""
    from fusmae_jax.eval.finetune.config import Finetune

    with _in_workdir(args, Finetune) as settings:
        from fusmae_jax.eval.finetune.command import run_finetune

        return run_finetune(settings, args.workdir)


@command('dense_probe', *config_file('configs/dense_probe.py'), WORKDIR, needs='eval')
def _dense_probe(args: argparse.Namespace) -> int:
    """Trains heads on frozen tokens, a class for each pixel."""
    from fusmae_jax.eval.dense.config import DenseProbe

    with _in_workdir(args, DenseProbe) as settings:
        from fusmae_jax.eval.dense.probe import run_dense_probe

        return run_dense_probe(settings, args.workdir)


@command('dense_knn', *config_file('configs/dense_knn.py'), WORKDIR, needs='eval')
def _dense_knn(args: argparse.Namespace) -> int:
    """Gives each pixel a class by the nearest labelled tokens; trains nothing."""
    from fusmae_jax.eval.dense.config import DenseKnn

    with _in_workdir(args, DenseKnn) as settings:
        from fusmae_jax.eval.dense.knn import run_dense_knn

        return run_dense_knn(settings, args.workdir)


@command('dense_finetune', *config_file('configs/dense_finetune.py'), WORKDIR, needs='eval')
def _dense_finetune(args: argparse.Namespace) -> int:
    """Trains an encoder and a head together, a class for each pixel."""
    from fusmae_jax.eval.dense.config import DenseFinetune

    with _in_workdir(args, DenseFinetune) as settings:
        from fusmae_jax.eval.dense.finetune import run_dense_finetune

        return run_dense_finetune(settings, args.workdir)


@command('reliance', *config_file('configs/reliance.py'), WORKDIR, needs='eval')
def _reliance(args: argparse.Namespace) -> int:
    """Measures what a head does without a sensor, with another image's, or under cloud."""
    from fusmae_jax.eval.reliance.config import Reliance

    with _in_workdir(args, Reliance) as settings:
        from fusmae_jax.eval.reliance.command import run_reliance

        return run_reliance(settings, args.workdir)


@command('import', *config_file(), WORKDIR)
def _import(args: argparse.Namespace) -> int:
    """Imports published weights of other encoders."""
    from fusmae_jax.interop.weights.published_kinds import WeightFile

    with _in_workdir(args, WeightFile) as settings:
        from fusmae_jax.interop.weights.published import run_import

        return run_import(settings, args.workdir)


@command(
    'plan',
    *config_file(),
    option('--topology', 'NAME', 'v5e:16x16, v5e:16x16x2slices, h100:8x4hosts, ..., or local', required=True),
    options.Option('--verify', {'action': 'store_true', 'help': 'also compiles the largest batch'}),
    options.Option('--speed', {'action': 'store_true', 'help': "also a TPU compiler's estimate of the time"}),
    option('--mfu', 'SHARE', 'utilisation, instead of what the program tells', type=options.share),
    folder('--against', 'a profile of a run, to lay beside the model instead of planning', default=''),
    option('--examples', 'N', 'records of the training split', type=whole(0), default=0),
    JSON,
)
def _plan(args: argparse.Namespace) -> int:
    """Says what a run needs on a machine, without the machine."""
    config = _build_any(args)
    from fusmae_jax.plan.command import run_plan

    chosen = {name: getattr(args, name) for name in ('verify', 'speed', 'against', 'mfu', 'examples')}
    return run_plan(config, args.topology, as_json=args.json, **chosen)


@command('tables', *config_file('configs/tables.py'), WORKDIR, needs='eval')
def _tables(args: argparse.Namespace) -> int:
    """Runs a study and sets its tables."""
    from fusmae_jax.tables.config import Tables

    with _in_workdir(args, Tables) as settings:
        from fusmae_jax.shipped.data.generate.converted import make
        from fusmae_jax.tables.run import run_tables

        return run_tables(settings, args.workdir, make=make)
