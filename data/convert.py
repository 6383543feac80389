"""The command `convert`: from a configuration to a data set on disk."""

import dataclasses
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_collections

from data import report, sharded
from data.records import Source
from fusmae_jax.config_build import from_dict
from fusmae_jax.errors import InputError, nearest

# Name of a data set -> the module whose `source` lists its archive and `examples` unpacks a sample.
BUILDERS = {'bigearthnet_mm': 'data.bigearthnet_mm.pairs'}


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """A conversion; see configs/convert_*.py."""

    builder: str = 'bigearthnet_mm'  # a key of BUILDERS
    s1_root: str = ''  # folder of the unpacked Sentinel-1 archive, one folder a patch
    s2_root: str = ''  # the same for Sentinel-2
    example: bool = False  # True: the sample that ships with the builder, instead of the two folders
    output: str = ''  # the data set goes to <output>/<builder>/<version>; '' takes the workdir
    splits: Literal['official', 'one'] = 'official'  # one: every record goes to train
    records_per_shard: int = 512
    on_error: Literal['fail', 'skip'] = 'fail'  # skip: leave unusable records out and list them
    max_skips: int = 100  # with skip: stop when more records than this were left out
    beam: sharded.Beam = dataclasses.field(default_factory=sharded.Beam)


def run(values: Mapping[str, Any] | ml_collections.ConfigDict, workdir: str | os.PathLike[str] = '') -> int:
    """Runs a conversion and prints its report; returns the exit code 0. Raises InputError."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    config = from_dict(ConvertConfig, values)
    if config.builder not in BUILDERS:
        raise InputError(f'config.builder={config.builder!r}; {nearest(config.builder, BUILDERS)}')
    output = config.output or os.fspath(workdir)
    if not output:
        raise InputError("config.output='': give the folder for the data set (or --workdir)")
    if config.max_skips < 0 or config.beam.workers < 0:
        raise InputError('config.max_skips and config.beam.workers must be at least 0')
    source = _source(dataclasses.replace(config, output=output))
    folder, result = sharded.convert(
        source,
        output,
        records_per_shard=config.records_per_shard,
        on_error=config.on_error,
        max_skips=config.max_skips,
        beam=config.beam,
    )
    print(report.summary(result))
    print(f'data set  {folder}')
    print(f'contract  {folder / "contract.json"}')
    print(f'report    {folder / report.FILE}')
    return 0


def _source(config: ConvertConfig) -> Source:
    module = importlib.import_module(BUILDERS[config.builder])
    s1_root, s2_root = config.s1_root, config.s2_root
    if config.example:
        s1_root, s2_root = map(str, module.examples(Path(config.output) / f'{config.builder}_example'))
    for name, root in (('s1_root', s1_root), ('s2_root', s2_root)):
        if not root:
            raise InputError(f"config.{name}='': give the folder of the unpacked archive, one folder a patch")
    return module.source(s1_root, s2_root, splits=config.splits, on_error=config.on_error)
