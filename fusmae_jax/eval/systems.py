"""What turns images into features: a checkpoint, the same architecture untrained, or band statistics.

A checkpoint is that of a run, of a DINO-MM run (the teacher's encoder), or the folder of an import.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fusmae_jax import inference, leak
from fusmae_jax.checkpoint import Checkpoints, open_step
from fusmae_jax.config import Config
from fusmae_jax.config_build import to_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval import dino_run, published
from fusmae_jax.eval.evaluation_config import BANDS, RANDOM, Encoder
from fusmae_jax.eval.presets import preset_of
from fusmae_jax.input import compatibility, normalise
from fusmae_jax.input.contract import Contract
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.rules import path_name


class System(NamedTuple):
    """An encoder with its history, or none at all."""

    name: str
    fingerprint: str  # of architecture and weights; '' for band statistics
    model: inference.Pretrained | None  # None: band statistics
    seen: leak.Seen | None  # what it has learned from; None where the checkpoint does not say


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
    model = inference.Pretrained(config, model.contract, params, model.dtype)
    return System(name, fingerprint(model), model, seen)


def _nothing() -> leak.Seen:
    nobody = np.array([], np.bytes_)
    return leak.Seen(leak.Records(nobody, nobody, nobody))


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
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode() + str(model.dtype).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        array = np.asarray(leaf)
        total.update(f'{path_name(path)} {array.dtype} {array.shape}'.encode())
        total.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return total.hexdigest()[:16]


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
