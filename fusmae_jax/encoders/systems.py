"""Systems that turn images into features: checkpoints, untrained architectures, or band statistics.

A checkpoint is whatever `encoders.load` opens. Several, as in 'runs/mae_s1 + runs/mae_s2', are late fusion:
each reads its own sensor, their features side by side.
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
from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.config.build import to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.encoders import hub, single_file, store
from fusmae_jax.encoders.load import check_apart, load_one, local, records_seen, several
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import BANDS, RANDOM, EncoderSettings
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input.compatibility import Fitted, settle
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.seen import Seen, nothing, union
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.rules import path_name


class System(NamedTuple):
    """An encoder with its history, or none at all."""

    name: str
    fingerprint: str  # of architecture and weights; '' for band statistics
    model: Pretrained | None  # None: band statistics; the first one of several
    seen: Seen | None  # what it has learned from; None where the checkpoint does not say
    parts: tuple['System', ...] = ()  # of late fusion


def open_system(kind: str, settings: EncoderSettings) -> System:
    """Opens `kind`: 'random', 'bands', or else a checkpoint.

    `settings.absent` replaces the rule of the model for modalities that are not given.
    """
    if kind == BANDS:
        return System('band statistics', '', None, nothing())
    path = (settings.like or settings.checkpoint) if kind == RANDOM else kind
    if parts := several(path):
        return _side_by_side(parts, kind == RANDOM, settings)
    model, seen = load_one(path), records_seen(path)
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
        seen = nothing()
    else:
        params, name = model.params, settings.name or model.config.name
    model = Pretrained(config, model.contract, params, model.dtype)
    return System(name, fingerprint(model), model, seen)


def content(path: str) -> str:
    """What changes when the weights of a checkpoint do; the path itself where there is none."""
    try:
        if hub.is_hub(path) or single_file.is_single_file(path):
            return single_file.digest(local(path))
        if store.is_imported(path):
            return store.digest(path)
        checkpoints, step = open_step(path)
        checkpoints.close()
        file = checkpoints.directory / str(step) / manifest.NAME
        return f'{step}-{storage.digest([file.read_bytes()])}'
    except (InputError, OSError):
        return path


def _side_by_side(paths: Sequence[str], random: bool, settings: EncoderSettings) -> System:
    """Late fusion; raises InputError unless each encoder has modalities of its own."""
    unnamed = dataclasses.replace(settings, name='')
    parts = tuple(
        open_system(RANDOM, dataclasses.replace(unnamed, like=path)) if random else open_system(path, unnamed)
        for path in map(str.strip, paths)
    )
    check_apart(
        [(path, part.model.config.model.modalities) for path, part in zip(paths, parts) if part.model]
    )
    seen = [part.seen for part in parts if part.seen is not None]
    names = ' + '.join(part.name for part in parts)
    return System(
        names if random else settings.name or f'late fusion of {names}',
        '+'.join(part.fingerprint for part in parts),
        parts[0].model,
        union(*seen) if len(seen) == len(parts) else None,
        parts,
    )


def _with_absent(config: Config, rule: Any) -> Config:
    if not rule:
        return config
    fusion = dataclasses.replace(config.model.fusion, absent=rule)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, fusion=fusion))


def fingerprint(model: Pretrained) -> str:
    """16 hexadecimal digits that change with any weight, the architecture or the number format.

    The rule for absent modalities is left out: it belongs to the use of a checkpoint, and a result says it.
    """
    about = to_dict(_with_absent(model.config, 'self').model)

    def parts() -> Iterator[Any]:
        yield json.dumps(about, sort_keys=True) + str(model.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
            array = np.asarray(leaf)
            yield f'{path_name(path)} {array.dtype} {array.shape}'
            yield np.ascontiguousarray(array).view(np.uint8).reshape(-1).data

    return storage.digest(parts())


def fit(
    model: Pretrained, contract: Contract, modalities: Sequence[str], settings: EncoderSettings, where: str
) -> Fitted:
    """How a model reads some modalities of a data set: the configuration has these alone, in its own order.

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
    return settle(config, contract, accept, where, model.contract)
