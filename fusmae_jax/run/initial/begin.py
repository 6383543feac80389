"""The first step of a run from given weights: what is placed on the devices, and the record of it."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.input import compatibility
from fusmae_jax.input import seen as seen_records
from fusmae_jax.input.normalise import statistics
from fusmae_jax.input.seen import Seen
from fusmae_jax.parallel.processes import check_same, together
from fusmae_jax.parallel.rules import path_name
from fusmae_jax.run.initial.sources import Source, open_source
from fusmae_jax.run.initial.transfer import Transfer
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.state import Given

FILE = 'init.json'


def open_initial(setup: Setup) -> Source:
    """The weights that `init.from` names, the same in all processes."""
    source = together(lambda: open_source(setup.config.init))
    check_same({'initial weights': source.fingerprint}, 'init.from must be the same weights in all of them')
    return source


def seen_of(source: Source) -> Seen:
    """What the source has seen counts as seen; where nobody wrote it down, that is said."""
    if source.seen is not None:
        return source.seen
    return seen_records.nothing()._replace(sources=(f'{source.title}: its records are not known',))


def begin(setup: Setup, source: Source, workdir: epath.Path) -> tuple[Given, dict[str, Any]]:
    """The given parameters on the devices, and the record of them, which is logged and written.

    Raises:
        InputError: the weights do not fit the run.
    """
    leaves = jax.tree_util.tree_leaves_with_path(setup.abstract_state()['params'])
    abstract = {path_name(path): leaf for path, leaf in leaves}
    dino = setup.config.objective == 'dino'
    names = {re.sub('^backbone/', 'encoder/', name) if dino else name: name for name in abstract}
    shapes = {name: abstract[full].shape for name, full in names.items()}
    by_index = setup.config.init.depth == 'by_index'
    done = together(lambda: Transfer(source, setup.config.model, shapes, by_index))
    values, masks = ({names[k]: x for k, x in part.items()} for part in (done.values, done.masks))
    if dino:  # CLS has a position there, which is in CLS already
        table = 'backbone/position_table'
        values[table] = np.concatenate([np.zeros_like(values[table][:1]), values[table]])

    def place(name: str, x: Any, dtype: Any) -> jax.Array:
        leaf = abstract[name]
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: x[i].astype(dtype))

    given = Given(
        {name: place(name, x, abstract[name].dtype) for name, x in values.items()},
        {name: place(name, x, bool) for name, x in masks.items()},
    )
    record = _record(setup, source, done)
    if jax.process_index() == 0:
        _tell(record)
        storage.write_json(workdir / FILE, record)
    return given, {key: record[key] for key in ('from', 'title', 'fingerprint', 'summary', 'seen_known')}


def _record(setup: Setup, source: Source, done: Transfer) -> dict[str, Any]:
    counts = {s: sum(e.status == s for e in done.entries) for s in ('taken', 'in part', 'fresh')}
    summary = f'{counts["taken"]} parameters taken, {counts["in part"]} in part, {counts["fresh"]} fresh'
    return {
        'from': setup.config.init.from_,
        'title': source.title,
        'fingerprint': source.fingerprint,
        'summary': f'{summary}; {len(done.left)} of the source not taken',
        'seen_known': source.seen is not None,
        'input_differences': _differences(setup, source),
        'parameters': [entry._asdict() for entry in done.entries],
        'not_taken': done.left,
    }


def _differences(setup: Setup, source: Source) -> list[str]:
    """How the data of the run differ from what the source knows, bands apart, which are taken by name."""
    ours, theirs = setup.config, source.config
    shared = {name: m for name, m in theirs.model.modalities.items() if name in ours.model.modalities}
    model = dataclasses.replace(theirs.model, modalities=shared)
    data = dataclasses.replace(theirs.data, absent_bands='mean', stats='config')
    config = dataclasses.replace(theirs, model=model, data=data)
    found = [
        f'{d.modality}: {d.message}'
        for part in setup.contract.each.values()
        for d in compatibility.compare(config, part, source.contract)
        if d.name != 'bands' and d.kind != 'converted'
    ]
    if theirs.data.normalisation != ours.data.normalisation:
        found.append(f'data.normalisation: {theirs.data.normalisation} there, {ours.data.normalisation} here')
    if theirs.preset and theirs.preset.name == 'own':
        found.append('the source has an input of its own; the folder `common` has that of this project')
    for name, m in shared.items():
        here = ours.model.modalities[name]
        known, mine = (dict(zip(x.bands, zip(*statistics(x)))) for x in (m, here))
        if other := [b for b in known if b in mine and not np.allclose(known[b], mine[b], rtol=1e-3)]:
            found.append(
                f'{name}: {", ".join(other)} normalised with other statistics than those of the source'
            )
        if m.unit and here.unit and m.unit != here.unit:
            found.append(f'{name}: {here.unit} here, {m.unit} in the source')
    return list(dict.fromkeys(found))


def _tell(record: dict[str, Any]) -> None:
    print(f'starts from {record["title"]}: {record["summary"]} ({FILE})')
    for line in record['input_differences']:
        print(f'WARNING: init: the input differs: {line}')
    for entry in record['parameters']:
        logging.info('init: %s %s (%s)', entry['status'], entry['name'], entry['how'])
    for name in record['not_taken']:
        print(f'init: not taken: {name}')
