"""Which learning rate of a sweep is taken: by the validation split, one for all systems or one for each."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import DivergedError, InputError

FILE = 'sweep-finetune.json'


def settle(rates: Sequence[float], means: Mapping[str, Sequence[float]], together: bool) -> dict[str, float]:
    """The learning rate of each arm: the best of its own means, or of the means over all arms.

    A rate at which a run diverged (-inf) is out; of equal rates the first is taken.

    Args:
        rates: the sweep.
        means: arm -> validation metric at each rate, mean over its runs.
        together: one rate for all arms.

    Raises:
        DivergedError: every rate is out.
    """
    if together:
        shared = [float(x) for x in np.mean(list(means.values()), axis=0)]
        means = dict.fromkeys(means, shared)
    for arm, own in means.items():
        if max(own) == -np.inf:
            raise DivergedError(
                f'{arm}: updates were not finite at every learning rate of {tuple(rates)}; try lower ones'
            )
        if len(rates) > 1 and int(np.argmax(own)) in (0, len(rates) - 1):
            logging.info('%s: settled on the first or last learning rate of the sweep', arm)
    return {arm: rates[int(np.argmax(own))] for arm, own in means.items()}


def write(folder: epath.Path, rates: Sequence[float], means: Mapping[str, Sequence[float]]) -> None:
    """What `settled` reads: whole or not at all."""
    arms = {arm: [None if x == -np.inf else float(x) for x in own] for arm, own in means.items()}
    storage.write_json(folder / FILE, {'learning_rates': list(rates), 'means': arms})


def settled(folders: Sequence[epath.Path]) -> float:
    """One learning rate for the systems of several folders, every arm of each counting the same.

    Raises:
        InputError: a sweep that is missing, damaged or of other rates.
        DivergedError: at every rate some run diverged.
    """
    sweeps = {folder: _read(folder / FILE) for folder in folders}
    rates = [tuple(sweep['learning_rates']) for sweep in sweeps.values()]
    if len(set(rates)) > 1:
        raise InputError(f'{folders[0]}: sweeps of different learning rates {sorted(set(rates))}')
    means = {
        f'{folder}, {arm}': [-np.inf if x is None else x for x in own]
        for folder, sweep in sweeps.items()
        for arm, own in sweep['means'].items()
    }
    return next(iter(settle(rates[0], means, together=True).values()))


def _read(file: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
        return {name: found[name] for name in ('learning_rates', 'means')}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f'{file}: not a sweep that can be read ({error!r}); remove {file.parent}') from error
