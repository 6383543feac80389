"""The command `generate`: a raw archive of made-up pairs, in the layout of a real one."""

import dataclasses
import importlib
import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fusmae_jax.config.build import from_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.installed import program

from .scene import SceneConfig, digest

# A layout is a module of this folder with `write(folder, pairs, config)`, which returns the settings of its
# builder (`CONVERTER`, where that has another name); here, what its scenes have that is not the default of
# `SceneConfig`.
LAYOUTS: dict[str, dict[str, Any]] = {
    'bigearthnet_mm': {},
    'bigearthnet_v2': {},
    'sen12ms': {'size': 256, 'level': 'L1C'},
    'sen1floods11': {'size': 512, 'level': 'L1C'},
    'ssl4eo_s12': {'size': 264},
    'geobench2': {},
    'paired_folder': {},
    'three_sensors': {},
    'two_orbits': {},
}
REPORT = 'generated.json'


def run(layout: str, output: str | os.PathLike[str], pairs: int, seed: int = 0, **scene: Any) -> int:
    """Writes an archive; prints its folder, the time, the hash of its configuration and how to convert it.

    Args:
      layout: one of LAYOUTS.
      output: the folder to make; until everything is written it is called `<output>.incomplete`.
      pairs: how many.
      seed: of everything random.
      **scene: other settings of `SceneConfig`, where they shall not be those of the layout.

    Returns:
      The exit code 0.

    Raises:
      InputError: an unknown layout, settings that cannot be used, or an output that exists.
    """
    if layout not in LAYOUTS:
        raise InputError(f'--layout={layout}; {nearest(layout, LAYOUTS)}')
    if pairs < 1:
        raise InputError(f'--pairs={pairs}: must be at least 1')
    config = from_dict(SceneConfig, {**LAYOUTS[layout], 'seed': seed, **scene}, 'generate')
    folder = Path(output).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f'--out={folder}: exists already; name a new folder or remove it')
    begin = time.perf_counter()
    module = importlib.import_module(f'.{layout}', __package__)
    archive = _write(module, layout, folder, pairs, config)
    seconds = time.perf_counter() - begin
    print(f'archive        {folder}')
    print(f'time           {seconds:.1f} s, {pairs / seconds:.1f} pairs/s')
    print(f'configuration  {digest(config)}')
    settings = ' '.join(shlex.quote(f'--config.archive.{name}={value}') for name, value in archive.items())
    print(f'next           {program()} convert --config=configs/convert_{converter(module)}.py {settings}')
    return 0


def converter(module: ModuleType) -> str:
    """The name of the builder that reads what the module of a layout writes: its own, unless it says so."""
    return getattr(module, 'CONVERTER', module.__name__.rpartition('.')[2])


def _write(module: ModuleType, layout: str, folder: Path, pairs: int, config: SceneConfig) -> dict[str, Any]:
    """Writes under another name first, so that a folder of the right name is always complete."""
    incomplete = folder.with_name(f'{folder.name}.incomplete')
    if incomplete.exists():
        raise InputError(f'--out={folder}: {incomplete} is left over from an interrupted run; remove it')
    incomplete.mkdir(parents=True)
    try:
        archive = module.write(incomplete, pairs, config)
    except InputError:
        # Settings that the layout cannot hold are refused before anything is written.
        incomplete.rmdir()
        raise
    report = {
        'layout': layout,
        'pairs': pairs,
        'configuration': digest(config),
        'scene': dataclasses.asdict(config),
    }
    (incomplete / REPORT).write_text(json.dumps(report, indent=2))
    if folder.exists():
        folder.rmdir()
    incomplete.rename(folder)
    return _moved(archive, incomplete, folder)


def _moved(value: Any, old: Path, new: Path) -> Any:
    """The same settings with the final name of the folder in every path."""
    if isinstance(value, Mapping):
        return {name: _moved(item, old, new) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(item, old, new) for item in value)
    return value.replace(str(old), str(new)) if isinstance(value, str) else value
