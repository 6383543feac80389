"""A made-up archive and the data set converted from it in one go, for runs that need no download."""

import importlib
import os
import shutil
from pathlib import Path

from fusmae_jax.config.build import from_dict
from fusmae_jax.errors import InputError, nearest

from .. import sharded
from ..convert import builder
from .command import LAYOUTS, converter
from .scene import SceneConfig


def make(layout: str, pairs: int, seed: int, folder: str | os.PathLike[str], workers: int = 1) -> str:
    """Writes an archive, converts it and removes it; returns the folder of the data set.

    What an interrupted call left behind is written anew.

    Args:
        layout: one of `command.LAYOUTS`.
        pairs: how many.
        seed: of everything random.
        folder: for both; the data set goes to `<folder>/<name>/<version>`.
        workers: processes that draw the scenes.

    Raises:
        InputError: an unknown layout, or settings that cannot be used.
    """
    if layout not in LAYOUTS:
        raise InputError(f'layout={layout!r}; {nearest(layout, LAYOUTS)}')
    raw = Path(folder).absolute() / 'archive'
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    scene = from_dict(SceneConfig, {**LAYOUTS[layout], 'seed': seed}, 'generate')
    writer = importlib.import_module(f'.{layout}', __package__)
    archive = writer.write(raw, pairs, scene, workers)
    module = builder(converter(writer))
    source = module.source(from_dict(module.Archive, archive, 'config.archive'))
    data = str(sharded.convert(source, folder)[0])
    shutil.rmtree(raw)
    return data
