"""Conversion of an archive to ArrayRecord shards as a Beam pipeline whose element is one shard.

A worker reads the records of its shard one by one, serialises them as TFDS does, and renames the file when
it is complete. Nothing is shuffled between workers, memory stays flat, and a rerun keeps finished shards.
(TFDS's own Beam writer sends every record through a GroupByKey, several times slower and held in memory.)
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import example_serializer

from fusmae_jax import installed, shipped
from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError
from fusmae_jax.input.builder import open_builder
from fusmae_jax.input.source import INDEX
from fusmae_jax.parallel import lock
from fusmae_jax.storage import explain_full_disk, is_remote, read_npz, write_npz

from . import fractions, plan, records, report, s1_storage
from .records import Item, Record, RecordSource, Schema
from .report import Progress
from .statistics import Tally


@dataclasses.dataclass(frozen=True)
class Beam:
    """How the pipeline runs. The default is Beam's local runner inside this machine."""

    runner: str = 'DirectRunner'  # on this machine; or DataflowRunner, FlinkRunner, SparkRunner, ...
    direct_num_workers: int = setting(1, least=0)  # processes of the DirectRunner; 0 takes one for each core
    flags: tuple[str, ...] = ()  # passed to Beam as they are, such as '--flink_master=host:8081'


# As ArrayRecord's writer takes them. The lowest level of zstd takes half the time of the default, and the
# files are as small.
COMPRESSIONS = {'zstd': 'zstd:1', 'none': 'uncompressed'}


@dataclasses.dataclass(frozen=True)
class Storing:
    """How records are stored; reading costs less of a processor the less there is to undo."""

    s1: s1_storage.Kind = 'float32'
    compression: Literal['zstd', 'none'] = 'zstd'


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """What a worker needs to know besides the name of its shard."""

    folder: tuple[str, str, str]  # the arguments of plan.Folder
    given: Schema  # of what `read` returns
    schema: Schema  # of what is written
    read: Callable[[Item], Record]
    on_error: Literal['fail', 'skip']
    max_skips: int
    compression: str


def convert(
    source: RecordSource,
    output: epath.PathLike,
    records_per_shard: int = 512,
    on_error: Literal['fail', 'skip'] = 'fail',
    max_skips: int = 100,
    beam: Beam | None = None,
    storing: Storing = Storing(),
) -> tuple[epath.Path, dict[str, Any]]:
    """Writes a data set to `<output>/<name>/<version>`; returns that folder and the conversion report.

    The folder appears only when everything in it is complete. A conversion that was cut off resumes; one
    that was finished with the same inputs and settings is left as it is.

    Args:
      source: the listed archive.
      output: a folder, or a bucket that epath can write.
      records_per_shard: records in one file; also what is redone at most, by each worker, after a cut.
      on_error: 'fail' stops at the first record that cannot be used, 'skip' leaves it out and reports it.
      max_skips: with 'skip', stop when more records than this were left out.
      beam: where to run; one process of this machine by default.
      storing: the type of backscatter, and whether shards are compressed.

    Raises:
      InputError: unusable input, an empty split, too many skips, other work in the folder, or a full disk.
    """
    given, schema = source.schema, s1_storage.stored_schema(source.schema, storing.s1)
    source = dataclasses.replace(source, schema=schema)
    folder = plan.Folder(output, schema.name, schema.version)
    shards = plan.make_shards(source, records_per_shard)
    settings = plan.settings(source, shards, records_per_shard)
    # Named where they are not what conversions of before had: those are still recognised.
    settings |= {
        f'storing.{field.name}': value
        for field in dataclasses.fields(storing)
        if (value := getattr(storing, field.name)) != field.default
    }
    # Without the lock, where nothing is left to do: a data set may lie where nothing can be written.
    if folder.final.exists() and not folder.incomplete.exists():
        return folder.final, _existing(folder, settings)
    if not folder.final.exists():
        check_skips(source.skips, max_skips)
    job = ShardJob(
        (os.fspath(output), schema.name, schema.version),
        given,
        schema,
        source.read,
        on_error,
        max_skips,
        storing.compression,
    )
    name = f'.{schema.version}.lock'  # beside the two folders, which are renamed and removed
    with lock.hold(folder.final.parent, 'a conversion', name), explain_full_disk(folder.incomplete):
        # Looked at again: another process may have finished it before this one got the lock.
        if folder.final.exists():
            return folder.final, _existing(folder, settings)
        return folder.final, _convert(source, folder, job, shards, settings, beam or Beam())


def _convert(
    source: RecordSource,
    folder: plan.Folder,
    job: ShardJob,
    shards: list[plan.Shard],
    settings: dict[str, Any],
    beam: Beam,
) -> dict[str, Any]:
    """The report of a conversion that is alone in its folder, and not finished."""
    missing = folder.open(settings, shards)
    start = time.perf_counter()
    with Progress(folder, shards, missing, job.max_skips - len(source.skips)):
        _run(missing, job, beam, folder)
    seconds = time.perf_counter() - start
    result = report.build(folder, source, shards, settings, missing, seconds)
    # Each worker knew its own skips alone; here they are counted together.
    check_skips(result['skips'], job.max_skips)
    _finish(folder, source.schema, shards, result)
    return result


def _existing(folder: plan.Folder, settings: dict[str, Any]) -> dict[str, Any]:
    """The report of a data set that is complete already; raises InputError if it was made otherwise."""
    file = folder.final / report.FILE
    earlier = plan.read(file) if file.exists() else {}
    if earlier.get('settings') != settings:
        raise InputError(
            f'{folder.final}: a data set with other inputs or settings is here already; give another '
            'output or delete that folder'
        )
    if folder.incomplete.exists():  # a conversion that was cut off between its last two steps
        folder.incomplete.rmtree()
    return earlier


def check_skips(skips: Sequence[Any], max_skips: int) -> None:
    """Raises InputError when more records were left out than allowed."""
    if len(skips) > max_skips:
        examples = '; '.join(f'{s["file"]}: {s["field"]}: {s["reason"]}' for s in skips[:3])
        raise InputError(
            f'{len(skips)} records cannot be used, more than max_skips={max_skips} '
            f'({examples}); repair the archive or raise max_skips'
        )


def _run(missing: list[str], job: ShardJob, beam_settings: Beam, folder: plan.Folder) -> None:
    if not missing:
        return
    try:
        _pipeline(missing, job, beam_settings, folder)
    except Exception:
        if folder.stop.exists():  # ours, known to be about the input: Beam's traceback explains nothing more
            raise InputError(plan.read(folder.stop)['message']) from None
        raise
    if folder.stop.exists():
        raise InputError(plan.read(folder.stop)['message'])


def _pipeline(missing: list[str], job: ShardJob, beam_settings: Beam, folder: plan.Folder) -> None:
    """Beam calls `convert_shard` for each missing shard."""
    installed.need('convert', 'a conversion', 'apache_beam')
    # Imported here: the half second that Beam takes is paid by conversions only.
    with _quiet_import():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    flags = [*beam_settings.flags]
    if beam_settings.runner == 'DirectRunner':
        runner = _local_runner(beam_settings.direct_num_workers, folder)
        flags += [f'--direct_num_workers={beam_settings.direct_num_workers}']
    else:
        runner = None
        flags += [f'--runner={beam_settings.runner}']
    options = PipelineOptions(flags=flags)
    with _importable(), beam.Pipeline(runner=runner, options=options) as pipeline:
        # Reshuffle lets the runner hand the shards to different workers.
        _ = pipeline | beam.Create(missing) | beam.Reshuffle() | beam.Map(convert_shard, job)


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """No warnings of an import: Beam names Google client libraries that it could use.

    The level of the caller comes back, also where the import fails.
    """
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)


def _local_runner(workers: int, folder: plan.Folder) -> Any:
    """Beam's runner for one machine: in this process for one worker, else in `workers` processes.

    Beam's own choice for `--runner=DirectRunner` would first try to download another runner, and with
    several workers keeps to one core unless told to use processes.
    """
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    # What stops a conversion is raised, so Beam need not log it as well.
    logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
    if workers == 1:
        return FnApiRunner()
    log = os.devnull if is_remote(folder.state) else os.fspath(folder.state / 'workers.log')
    command = f'{shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main'
    command = f'exec {command} 2>> {shlex.quote(log)}'
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Lets worker processes of this machine import this package from wherever they start."""
    if not shipped.CHECKOUT:  # what is installed, they find
        yield
        return
    before = os.environ.get('PYTHONPATH')
    root = str(shipped.ROOT)
    os.environ['PYTHONPATH'] = root if not before else f'{root}{os.pathsep}{before}'
    try:
        yield
    finally:
        if before is None:
            del os.environ['PYTHONPATH']
        else:
            os.environ['PYTHONPATH'] = before


def convert_shard(name: str, job: ShardJob) -> str:
    """Writes one shard and its sidecar; the work of one Beam element. Returns the shard's name."""
    folder = plan.Folder(*job.folder)
    if folder.stop.exists():
        # Beam goes on with the other shards when one has failed; this note is how they hear of it.
        raise RuntimeError(f'{name}: another worker stopped the conversion')
    items = [Item(key, tuple(values)) for key, values in plan.read(folder.items_file(name))]
    features = records.features(job.schema)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    tally, skips, content = Tally(job.schema), [], hashlib.blake2b(digest_size=8)
    rows, losses = records.IndexRows(job.schema), dict[str, float]()
    with _writer(folder.data / name, job.compression) as writer:
        for item in items:
            try:
                read = records.read_checked(job.read, item, job.given)
                record, loss = s1_storage.store(read, job.given, job.schema)
            except records.RecordError as error:
                if job.on_error == 'fail':
                    plan.write(folder.stop, {'message': str(error)})
                    raise
                skips.append(error.skip(item.key))
                continue
            example = serializer.get_tf_example(features.encode_example(record))
            # Deterministic: the fields of an Example are a map, whose order else changes with the process.
            data = example.SerializeToString(deterministic=True)
            writer.write(data)
            content.update(data)
            tally.add(record)
            # As read: one image has one digest, however it is stored.
            rows.add(read)
            losses = s1_storage.largest(losses, loss)
    write_npz(folder.index_file(name), rows.arrays())
    size = (folder.data / name).stat().length
    done = {'bytes': size, 'digest': content.hexdigest(), 'skips': skips, 'tally': tally.to_json()}
    done |= {'losses': losses}
    # Last of all: a shard that has this file is not done again.
    plan.write(folder.done_file(name), done)
    return name


@contextlib.contextmanager
def _writer(target: epath.Path, compression: str) -> Iterator[Any]:
    """An ArrayRecord writer whose file gets its name only when it is complete."""
    with tempfile.TemporaryDirectory() as local:
        remote = is_remote(target)
        # A name of its own: Beam may run a shard twice, and both would write into one file.
        name = f'{target.name}.{uuid.uuid4().hex}.tmp'
        temporary = epath.Path(local) / name if remote else target.parent / name
        # One record to a group, as TFDS writes: reading one does not decompress its neighbours.
        options = f'group_size:1,{COMPRESSIONS[compression]}'
        writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), options)
        try:
            yield writer
        except BaseException:
            writer.close()
            temporary.unlink(missing_ok=True)
            raise
        writer.close()
        # An object is there when all of it is; on a disk only a rename lets a file appear whole.
        if remote:
            temporary.copy(target)
        else:
            temporary.replace(target)


def _write_index(folder: plan.Folder, split: str, shards: list[plan.Shard]) -> None:
    parts = []
    for shard in shards:
        with read_npz(folder.index_file(shard.name), 'delete the folder and convert again') as archive:
            parts.append(dict(archive))
    write_npz(folder.data / INDEX.format(split=split), records.join_indexes(parts), compressed=True)


def _finish(folder: plan.Folder, schema: Schema, shards: list[plan.Shard], result: dict[str, Any]) -> None:
    """Writes what makes the shards a TFDS data set, reads it back, and gives it its final name."""
    features = records.features(schema)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder.data, dataset_name=schema.name, filetype_suffix='array_record'
    )
    splits = result['splits']
    tfds.folder_dataset.write_metadata(
        data_dir=folder.data,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=split['shard_records'],
                num_bytes=split['bytes'],
                filename_template=template.replace(split=name),
            )
            for name, split in splits.items()
        ],
        version=schema.version,
        check_data=False,  # that check needs TensorFlow; ours is below
        **records.dataset_info(schema),
    )
    for name in splits:
        _write_index(folder, name, [shard for shard in shards if shard.split == name])
        fractions.write_lists(folder.data, name, schema.key, fractions.label_field(schema.classes))
    contract = report.contract(folder, schema, result)
    (folder.data / 'contract.json').write_text(contract.to_json())
    result['fingerprint'] = contract.fingerprint
    plan.write(folder.data / report.FILE, result)
    builder = open_builder(folder.data)
    for name, split in splits.items():
        examples = builder.as_data_source(split=name)
        if len(examples) != split['records'] or examples[0].keys() != features.keys():
            raise RuntimeError(f'{folder.data}: split {name} does not read back as it was written')
    # Before the rest is removed: cut off in between, the data set is there, and `_existing` clears up.
    folder.data.rename(folder.final)
    if is_remote(folder.incomplete):
        folder.incomplete.rmtree()
    else:
        shutil.rmtree(folder.incomplete)
