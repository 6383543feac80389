"""Settings, data and skipped updates of a run, as its working directory and its checkpoints tell them."""

import json
import math
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from etils import epath

from fusmae_jax import __version__, storage
from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config.build import build, flatten, to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import seen as seen_records
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.seen import Seen
from fusmae_jax.run import jax_flags
from fusmae_jax.train.setup import Setup

CONFIG = 'config.json'
SKIPPED = 'skipped_steps.jsonl'
COMPLETE = 'COMPLETE'
# What may change between two sittings of one run without making it another run.
FREE = (
    'name',
    'log',
    'checkpoint',
    'parallel',
    'data.path',
    'data.threads',
    'data.prefetch',
    'data.cache',
    'train.max_skips',
    'train.accumulation',
    'train.compilation_cache',
)


def write_config(workdir: epath.Path, config: Config) -> None:
    """Writes config.json, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    storage.write_json(workdir / CONFIG, to_dict(config))


def check_same_run(config: Config, stored: Mapping[str, Any], where: str) -> None:
    """Raises InputError with every setting that matters and differs from the one stored in a checkpoint."""
    # Through JSON, as the stored ones came: tuples are lists there.
    here, there = flatten(json.loads(json.dumps(to_dict(config)))), flatten(stored)
    # What is left out of stored settings has its default (`config.setting.SPARSE`).
    defaults, problems = flatten(to_dict(Config(), to_change=True)), []
    for key in sorted(here.keys() | there.keys()):
        free = any(key == name or key.startswith(f'{name}.') for name in FREE)
        free |= key.startswith('data.mixture.') and key.endswith('.path')
        if not free and here.get(key) != there.get(key):
            was, is_now = (values.get(key, defaults.get(key)) for values in (there, here))
            problems.append(f'{key}: the run has {was!r}, this command {is_now!r}')
    orders = [[*values['model']['modalities']] for values in (stored, to_dict(config))]
    if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
        # Stacked, they are the channels of one projection, whose shape tells nothing of their order.
        problems.append(f'model.modalities: the run has {orders[0]} in this order, this command {orders[1]}')
    raise_all(
        f'{where} belongs to a run with another configuration; use another --workdir, or these settings',
        problems,
    )


def checkpoint_meta(
    setup: Setup, seen: Seen, best_val: float | None, loss: float | None, good: int | None
) -> dict[str, Any]:
    """What a checkpoint says of its run.

    Args:
        setup: the run.
        seen: the records that the model learns from.
        best_val: lowest held-out loss so far.
        loss: of the last step; None or NaN if it was not measured.
        good: the newest checkpoint that no skipped update precedes; None if there is none.
    """
    meta = {
        'config': to_dict(setup.config),
        'contract': to_dict(setup.contract),
        'dtype': str(setup.dtype),
        'total_steps': setup.total_steps,  # of epochs, which the names of the records seen do not tell
        'best_val': best_val,
        'loss': None if loss is None or math.isnan(loss) else loss,
        'good': good,
        'versions': versions(),
        'jax_flags': jax_flags.values(),
        'seen': {'digest': seen_records.digest(seen), 'from': seen.sources},
    }
    # Through JSON, so that tuples come back from every checkpoint as the same lists.
    return json.loads(json.dumps(meta))


def checked_meta(checkpoints: Checkpoints, step: int, setup: Setup) -> dict[str, Any]:
    """What a checkpoint says of its run; raises InputError if that is another one than `setup`."""
    meta, config = checkpoints.meta(step), setup.config
    where = f'{checkpoints.directory / str(step)}'
    check_same_run(config, meta['config'], where)
    contract = contracts.from_values(meta['contract'], f'{where}: contract')
    for name, stored, here in (
        ('data fingerprint', contract.digest, setup.contract.digest),
        ('splits', _splits(config, contract), _splits(config, setup.contract)),
        ('compute type', meta['dtype'], str(setup.dtype)),
    ):
        if stored != here:
            raise InputError(
                f'{where} belongs to a run with {name} {stored}, this one has {here} '
                f'(data.path={config.data.path}); use another --workdir, or what it was made with'
            )
    raise_all(
        f'{where} belongs to a run in which jax was set otherwise, which changes its numbers',
        jax_flags.differences(meta.get('jax_flags', {})),  # checkpoints of older versions do not say
    )
    return meta


def _splits(config: Config, contract: Contract) -> list[str]:
    """The splits of a run as the data set itself calls them: an alias can be changed without any record."""
    data = config.data
    splits = {f'{name}/': (part.train_split, part.val_split) for name, part in sorted(data.mixture.items())}
    return [
        f'{prefix}{contract.each[prefix].split_aliases.get(split, split)}'
        for prefix, both in (splits or {'': (data.train_split, data.val_split)}).items()
        for split in both
    ]


def read_config(workdir: epath.Path) -> Config:
    """The configuration of the run in a working directory."""
    file = workdir / CONFIG
    if not file.exists():
        raise InputError(f'{file}: not found; --workdir must be that of a pretraining run')
    return build(storage.read_json(file, 'remove it or restore it'))


def note_skip(workdir: epath.Path, step: int, records: Mapping[str, Any]) -> None:
    """Adds the record names of a step whose update was not finite."""
    file, line = workdir / SKIPPED, json.dumps({'step': step, **records}) + '\n'
    if '://' in str(workdir):  # an object has no end to add to, and is replaced at once
        line = (file.read_text() if file.exists() else '') + line
    with file.open('w' if '://' in str(workdir) else 'a') as stream:
        stream.write(line)


def versions() -> dict[str, str]:
    """Versions of this code and of what its numbers depend on."""
    known = {'fusmae_jax': __version__}
    return known | {name: metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint')}
