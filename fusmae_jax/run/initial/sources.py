"""Weights that a run can start from, in the names of our model: runs, imported folders, exported files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.config.run import Config
from fusmae_jax.config.start import Init
from fusmae_jax.encoders import hub, single_file, store
from fusmae_jax.encoders.load import local, read_stored, records_seen, several
from fusmae_jax.encoders.systems import content
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.seen import Seen
from fusmae_jax.interop.weights.rules import flatten


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights to start from, on the host."""

    title: str  # what it is, in words
    fingerprint: str  # changes with the weights
    config: Config  # its settings as an encoder: model, statistics, preset of its input
    contract: Contract  # of the data that it learned from; empty where nobody says
    params: Mapping[str, np.ndarray]  # by path, as `models.fusmae` names them; DINO-MM's head as head/...
    seen: Seen | None  # the records that it learned from; None where nobody wrote them down


def open_source(init: Init) -> Source:
    """What `init.from` names.

    Args:
        init: the settings.

    Raises:
        InputError: nothing there, damaged, or nobody can tell what it is.
    """
    if several(init.from_):
        raise InputError(f'init.from={init.from_}: several encoders side by side; give one')
    if hub.is_hub(init.from_) or single_file.is_single_file(init.from_):
        if init.average:
            raise InputError(f'init.average: {init.from_} is an exported file, which has no average')
        return _exported(init.from_)
    path = epath.Path(init.from_)
    if path.is_file():
        raise InputError(
            f'init.from={path}: a weight file; turn it into a folder with `import` and give that'
        )
    if store.is_imported(path):
        if init.average:
            raise InputError(f'init.average: {path} holds imported weights, which have no average')
        return _imported(path)
    return _checkpoint(path, init.average)


def _exported(path: str) -> Source:
    """A file that `export` wrote."""
    opened = single_file.read(local(path))
    model = opened.model
    title = f'{path}: {model.config.name}, exported'
    return Source(title, content(path), model.config, model.contract, flatten(model.params), opened.seen)


def _imported(path: epath.Path) -> Source:
    """A folder that `import` wrote; its decoders are a form without content."""
    model = store.read(path).model
    params = {name: x for name, x in flatten(model.params).items() if name.startswith('encoder/')}
    if not model.config.model.cls:
        del params['encoder/cls']
    title = f'{path}: {model.config.name}, imported'
    return Source(title, content(str(path)), model.config, model.contract, params, records_seen(path))


def _checkpoint(path: epath.Path, average: bool) -> Source:
    """A run of any recipe, or one of its checkpoints; of DINO-MM the teacher."""
    checkpoints, step = open_step(path)
    try:
        where = checkpoints.directory / str(step)  # from now on this one, though the run go on
        stored = read_stored(checkpoints, step, where, average, on_host=True)
    finally:
        checkpoints.close()
    params = flatten(stored.params)
    if stored.config.objective == 'dino':
        params = _without_backbone(params)
    title = f'{where}: {stored.config.name}{", averaged weights" * average}'
    seen = records_seen(where)
    return Source(title, content(str(where)), stored.config, stored.contract, params, seen)


def _without_backbone(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters of DINO-MM under the names of the encoder, in which CLS has no position."""
    renamed = {name.replace('backbone/', 'encoder/', 1): x for name, x in params.items()}
    table = renamed['encoder/position_table']
    return renamed | {
        'encoder/position_table': table[1:],
        'encoder/cls': renamed['encoder/cls'] + table[0],
    }
