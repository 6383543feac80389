"""The command `convert`: from a configuration to a data set on disk."""

import dataclasses
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections

from fusmae_jax.config.build import config_dict, from_dict
from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError, nearest

from . import report, sharded
from .records import RecordSource
from .s1_storage import Kind

# Name of a data set -> the module of this package with its settings (`Archive`) and its listing (`source`).
BUILDERS = {
    'bigearthnet_mm': '.bigearthnet_mm.pairs',
    'bigearthnet_v2': '.bigearthnet_v2.pairs',
    'sen12ms': '.sen12ms.triplets',
    'sen1floods11': '.sen1floods11.chips',
    'ssl4eo_s12': '.ssl4eo_s12.locations',
    'geobench2': '.geobench2.samples',
    'paired_folder': '.paired_folder.pairs',
}
# The module with a sample that needs no download (`examples`), for those that have one. A generator knows the
# builder whose settings it gives, never the other way round.
EXAMPLES = {
    'bigearthnet_mm': '.bigearthnet_mm.pairs',
    'paired_folder': '.generate.paired_folder',
}


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """A conversion; see configs/convert_*.py. The settings of the archive itself stand beside it."""

    builder: str = 'bigearthnet_mm'  # a key of BUILDERS
    example: bool = False  # True: the sample that ships with the builder, instead of an archive
    # The data set goes to <output>/<name>/<version>; '' takes the workdir
    output: str = setting('', path=True)
    records_per_shard: int = setting(512, least=1)
    on_error: Literal['fail', 'skip'] = 'fail'  # skip: leave unusable records out and list them
    max_skips: int = setting(100, least=0)  # with skip: stop when more records than this were left out
    # int16: 1/100 dB, float16: 11 bits; a fifth less to store and to read, the loss declared and checked
    s1_storage: Kind = 'float32'
    # none: a seventh more to store, and a quarter of the processor's time to read
    compression: Literal['zstd', 'none'] = 'zstd'
    beam: sharded.Beam = dataclasses.field(default_factory=sharded.Beam)


def builder(name: str) -> Any:
    """The module of a builder; raises InputError for a name that is none."""
    if name not in BUILDERS:
        raise InputError(f'config.builder={name!r}; {nearest(name, BUILDERS)}')
    return importlib.import_module(BUILDERS[name], __package__)


def settings(name: str) -> ml_collections.ConfigDict:
    """Every setting of a conversion with a builder, for the files in configs/ to change.

    The settings of the archive are under `archive`.
    """
    config = config_dict(ConvertConfig(builder=name))
    config.archive = config_dict(builder(name).Archive())
    return config


def run(
    values: Mapping[str, Any] | ml_collections.ConfigDict,
    workdir: str | os.PathLike[str] = '',
    beam_options: Sequence[str] = (),
) -> int:
    """Runs a conversion and prints its report; returns the exit code 0.

    Args:
        values: of `ConvertConfig`, and those of the archive under `archive`.
        workdir: where the data set goes, if `output` is empty.
        beam_options: `key=value`, each beside or instead of what stands under `beam`.

    Raises:
        InputError: impossible settings, or an archive that cannot be converted.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    values = {**values, 'beam': _beam(values.get('beam', {}), beam_options)}
    archive = values.get('archive', {})
    config = from_dict(ConvertConfig, {key: value for key, value in values.items() if key != 'archive'})
    output = config.output or os.fspath(workdir)
    if not output:
        raise InputError("config.output='': give the folder for the data set (or --workdir)")
    source = _source(config, archive, output)
    for note in source.notes:
        print(f'note: {note}', flush=True)
    folder, result = sharded.convert(
        source,
        output,
        records_per_shard=config.records_per_shard,
        on_error=config.on_error,
        max_skips=config.max_skips,
        beam=config.beam,
        storing=sharded.Storing(config.s1_storage, config.compression),
    )
    print(report.summary(result))
    print(f'data set  {folder}')
    print(f'contract  {folder / "contract.json"}')
    print(f'report    {folder / report.FILE}')
    return 0


def _beam(settings: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """What runs a pipeline; an option that is not ours goes to Beam as it is."""
    values = {**settings, 'flags': [*settings.get('flags', ())]}
    for option in options:
        key, _, value = option.partition('=')
        if key == 'direct_num_workers':
            if not value.isdigit():
                raise InputError(f'--beam.{option} must be a whole number; 0 takes one for each core')
            values[key] = int(value)
        elif key == 'runner':
            values[key] = value
        else:
            values['flags'].append(f'--{key}={value}' if value else f'--{key}')
    return values


def _source(config: ConvertConfig, values: Mapping[str, Any], output: str) -> RecordSource:
    module = builder(config.builder)
    archive = from_dict(module.Archive, values, 'config.archive')
    if config.example:
        if config.builder not in EXAMPLES:
            raise InputError(f'config.example=True: {config.builder} ships no example; give the archive')
        archive = importlib.import_module(EXAMPLES[config.builder], __package__).examples(
            Path(output) / f'{config.builder}_example'
        )
    return module.source(archive, on_error=config.on_error)
