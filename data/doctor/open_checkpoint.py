"""Evidence from a checkpoint: its contract, its weights, and whether some data fit it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.config.run import Config
from fusmae_jax.input import compatibility
from fusmae_jax.input.contract import Contract

from .evidence import Declared, Evidence, Sensor, declared
from .findings import Finding, Severity, share

_SEVERITY: dict[str, Severity] = {'fatal': 'error', 'shift': 'warning', 'converted': 'note', 'note': 'note'}
_REMEDY = {
    'fatal': 'use other data, or convert them so that this fits',
    'shift': 'results will suffer; if that is meant, name it in `accept`',
    'converted': '',
    'note': '',
}


def open_checkpoint(path: Path, data: Contract | None = None) -> Evidence:
    """Looks at a checkpoint or working directory, and at whether `data` fit it; raises InputError."""
    from fusmae_jax.encoders.load import load_one

    loaded = load_one(path)
    contract = loaded.contract
    findings = list(_weights(loaded.params))
    if data is not None:
        findings += _fit(loaded.config, contract, data)
    trained_on = f'{contract.dataset} {contract.version}' if contract.dataset else ' + '.join(contract.parts)
    kind = f'checkpoint, trained on {trained_on}' if trained_on else f'imported weights, {loaded.config.name}'
    return Evidence(
        str(path),
        kind,
        sensors=_sensors(contract),
        contract=contract,
        findings=tuple(findings),
    )


def _weights(params: Any) -> Iterator[Finding]:
    import jax

    from fusmae_jax.parallel.rules import path_name

    arrays = {path_name(p): np.asarray(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    broken = {name: int((~np.isfinite(array)).sum()) for name, array in arrays.items()}
    broken = {name: count for name, count in broken.items() if count}
    if broken:
        total = sum(array.size for array in arrays.values())
        yield Finding(
            'checkpoint.weights',
            'error',
            'Weights are NaN or infinite',
            f'{share(sum(broken.values()), total)} numbers, in {len(broken):,} arrays, such as '
            f'{next(iter(broken))}',
            'take an earlier checkpoint of the run',
            needs='metadata',
        )


def _fit(config: Config, trained: Contract, data: Contract) -> Iterator[Finding]:
    same = trained.fingerprint and trained.fingerprint == data.fingerprint
    differences = compatibility.compare(config, data, trained)
    for difference in differences:
        yield Finding(
            f'fit.{difference.name}',
            _SEVERITY[difference.kind],
            f'{difference.modality}: {_WORDS[difference.kind]}',
            difference.message,
            _REMEDY[difference.kind],
            needs='metadata',
        )
    if not differences:
        yield Finding(
            'fit.same',
            'note',
            'The data fit the checkpoint',
            'the very data that it was trained on' if same else 'no difference between the two contracts',
            needs='metadata',
        )


_WORDS = {
    'fatal': 'these data cannot be used with this checkpoint',
    'shift': 'these data are of another kind than those of the training',
    'converted': 'these data will be converted for this checkpoint',
    'note': 'the two contracts cannot be compared in full',
}


def _sensors(contract: Contract) -> dict[str, Sensor]:
    first = contract.first
    about: dict[str, Declared] = {m: declared(m, first.groups, first.products) for m in ('s1', 's2')}
    return {modality: Sensor(modality, facts, ()) for modality, facts in about.items() if facts.bands}
