"""What turns images into features: checkpoints, the same architectures untrained, or band statistics.

A checkpoint is that of a run, of a DINO-MM run (the teacher's encoder), or the folder of an import. Several,
as in 'runs/mae_s1 + runs/mae_s2', are late fusion: each reads its own sensor, their features side by side.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fusmae_jax import storage
from fusmae_jax.checkpoints import manifest
from fusmae_jax.checkpoints.checkpoints import Checkpoints, open_step
from fusmae_jax.config.build import to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.encoders import dino_run
from fusmae_jax.encoders import pretrained as inference
from fusmae_jax.encoders import store as published
from fusmae_jax.encoders.settings import BANDS, RANDOM, Encoder
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import compatibility, normalise
from fusmae_jax.input import seen as leak
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.presets import preset_of
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.rules import path_name

AND = ' + '  # between checkpoints whose features stand side by side


class System(NamedTuple):
    """An encoder with its history, or none at all."""

    name: str
    fingerprint: str  # of architecture and weights; '' for band statistics
    model: inference.Pretrained | None  # None: band statistics; the first one of several
    seen: leak.Seen | None  # what it has learned from; None where the checkpoint does not say
    parts: tuple['System', ...] = ()  # of late fusion


class Fitted(NamedTuple):
    """How a model reads a data set."""

    config: Config  # the model's, with the modalities given alone, in its own order, statistics settled
    notes: list[str]  # how the data differ from what the model knows, in words
    shifts: tuple[str, ...]  # the declared shifts among these, all of them accepted


def open_system(kind: str, settings: Encoder) -> System:
    """Opens `kind`: 'random', 'bands', or else a checkpoint.

    `settings.absent` replaces the rule of the model for modalities that are not given.
    """
    if kind == BANDS:
        return System('band statistics', '', None, _nothing())
    path = (settings.like or settings.checkpoint) if kind == RANDOM else kind
    if AND in path:
        return _side_by_side(path.split(AND), kind == RANDOM, settings)
    model, seen = _load(path)
    stacked = model.config.model.fusion.encoder == 'stack'
    if stacked and settings.absent not in ('', 'zero_image'):
        raise InputError(
            f'encoder.absent={settings.absent!r}: {path} stacks its sensors, where an absent one is an image '
            "of zeros; leave it '' for this system"
        )
    config = _with_absent(model.config, 'zero_image' if stacked else settings.absent)
    if kind == RANDOM:
        make = functools.partial(fusmae.init_params, config.model)
        params = jax.jit(make)(jax.random.key(settings.seed))
        name = f'random init of {model.config.name}, seed {settings.seed}'
        seen = _nothing()
    else:
        params, name = model.params, settings.name or model.config.name
    model = type(model)(config, model.contract, params, model.dtype)
    return System(name, fingerprint(model), model, seen)


def content(path: str) -> str:
    """What changes when the weights of a checkpoint do; the path itself where there is none."""
    try:
        if published.is_published(path):
            return published.digest(path)
        checkpoints, step = open_step(path)
        checkpoints.close()
        file = checkpoints.directory / str(step) / manifest.NAME
        return f'{step}-{storage.digest([file.read_bytes()])}'
    except (InputError, OSError):
        return path


def _side_by_side(paths: Sequence[str], random: bool, settings: Encoder) -> System:
    """Late fusion; raises InputError unless each encoder has modalities of its own."""
    own = dataclasses.replace(settings, name='')
    parts = tuple(
        open_system(RANDOM, dataclasses.replace(own, like=path)) if random else open_system(path, own)
        for path in map(str.strip, paths)
    )
    owner: dict[str, str] = {}
    for path, part in zip(paths, parts):
        for name in part.model.config.model.modalities if part.model else ():
            if name in owner:
                raise InputError(f'encoder.checkpoint: {owner[name]} and {path} both read {name}; take one')
            owner[name] = path
    seen = [part.seen for part in parts if part.seen is not None]
    names = ' + '.join(part.name for part in parts)
    return System(
        names if random else settings.name or f'late fusion of {names}',
        '+'.join(part.fingerprint for part in parts),
        parts[0].model,
        leak.union(*seen) if len(seen) == len(parts) else None,
        parts,
    )


def _nothing() -> leak.Seen:
    nobody = np.array([], np.bytes_)
    return leak.Seen(leak.Records(*[nobody] * len(leak.Records._fields)))


def _with_absent(config: Config, rule: Any) -> Config:
    if not rule:
        return config
    fusion = dataclasses.replace(config.model.fusion, absent=rule)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, fusion=fusion))


def _load(path: str) -> tuple[inference.Pretrained, leak.Seen | None]:
    """A model, and what it has learned from; None for the latter where nobody wrote it down."""
    if published.is_published(path):
        found = published.read(path)
        return found.model, _nothing() if found.untouched else None
    checkpoints, step = open_step(path)
    try:
        meta = checkpoints.meta(step)
        seen = _seen(checkpoints, step, path)
        if 'dino' in meta['config']:
            return dino_run.load(checkpoints, step, meta, seen, path), seen
    finally:
        checkpoints.close()
    return inference.load(path), seen


def _seen(checkpoints: Checkpoints, step: int, path: str) -> leak.Seen | None:
    packed = checkpoints.seen(step)
    return None if packed is None else leak.from_bytes(packed, f'{path}: checkpoint {step}')


def fingerprint(model: inference.Pretrained) -> str:
    """16 hexadecimal digits that change with any weight, the architecture or the number format.

    The rule for absent modalities is left out: it belongs to the use of a checkpoint, and a result says it.
    """
    about = to_dict(_with_absent(model.config, 'self').model)
    if not preset_of(model.config).cls:
        about['cls'] = False

    def parts() -> Iterator[Any]:
        yield json.dumps(about, sort_keys=True) + str(model.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
            array = np.asarray(leaf)
            yield f'{path_name(path)} {array.dtype} {array.shape}'
            yield np.ascontiguousarray(array).view(np.uint8).reshape(-1).data

    return storage.digest(parts())


def fit(
    model: inference.Pretrained, contract: Contract, modalities: Sequence[str], settings: Encoder, where: str
) -> Fitted:
    """The configuration under which a model reads some modalities of a data set.

    Raises:
        InputError: the model has no such modality, or the data do not fit it.
    """
    known = model.config.model.modalities
    for name in modalities:
        if name not in known:
            raise InputError(f'encoder.modalities: {name!r} is not in the model; {nearest(name, known)}')
    wanted = {name: m for name, m in known.items() if name in modalities}
    stats: Any = 'dataset' if settings.stats == 'dataset' else 'config'
    config = dataclasses.replace(
        model.config,
        model=dataclasses.replace(model.config.model, modalities=wanted),
        data=dataclasses.replace(model.config.data, stats=stats, absent_bands=settings.absent_bands),
    )
    accept = (*settings.accept, *(('statistics',) if stats == 'dataset' else ()))
    found = compatibility.compare(config, contract, model.contract)
    notes = compatibility.check(found, accept, where)
    shifts = tuple(dict.fromkeys(d.name for d in found if d.kind == 'shift'))
    return Fitted(normalise.resolve(config, contract), notes, shifts)
