"""The first step of a run from given weights: what is placed on the devices, and the record of it."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.run import Config, Modality, Numerics
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
        'differences': _differences(setup, source),
        'parameters': [entry._asdict() for entry in done.entries],
        'not_taken': done.left,
    }


def _differences(setup: Setup, source: Source) -> list[str]:
    """How input and arithmetic of the run differ from those of the source; bands apart, taken by name."""
    ours, theirs = setup.config, source.config
    shared = {name: m for name, m in theirs.model.modalities.items() if name in ours.model.modalities}
    model = dataclasses.replace(theirs.model, modalities=shared)
    data = dataclasses.replace(theirs.data, absent_bands='mean', stats='config')
    config = dataclasses.replace(theirs, model=model, data=data)
    differences = [
        f'{d.modality}: {d.message}'
        for part in setup.contract.each.values()
        for d in compatibility.compare(config, part, source.contract)
        if d.name != 'bands' and d.kind != 'converted'
    ]
    if theirs.preset and theirs.preset.name == 'own':
        differences.append('the source has an input of its own; the folder `common` has that of this project')
    differences += _of_arithmetic(ours, theirs)
    for name, modality in shared.items():
        differences += _of_statistics(name, ours.model.modalities[name], modality)
    return list(dict.fromkeys(differences))


def _of_arithmetic(ours: Config, theirs: Config) -> list[str]:
    pairs = {
        f'model.numerics.{field.name}': [getattr(c.model.numerics, field.name) for c in (theirs, ours)]
        for field in dataclasses.fields(Numerics)
    }
    for name in ('positions', 'final_norm'):
        pairs[f'model.{name}'] = [getattr(c.model, name) for c in (theirs, ours)]
    pairs['data.normalisation'] = [c.data.normalisation for c in (theirs, ours)]
    return [f'{name}: {there} there, {here} here' for name, (there, here) in pairs.items() if there != here]


def _of_statistics(name: str, ours: Modality, theirs: Modality) -> list[str]:
    there, here = (dict(zip(m.bands, zip(*statistics(m)))) for m in (theirs, ours))
    other = [band for band in there if band in here and not np.allclose(there[band], here[band], rtol=1e-3)]
    differences = []
    if other:
        differences.append(
            f'{name}: {", ".join(other)} normalised with other statistics than those of the source'
        )
    if theirs.unit and ours.unit and theirs.unit != ours.unit:
        differences.append(f'{name}: {ours.unit} here, {theirs.unit} in the source')
    return differences


def _tell(record: dict[str, Any]) -> None:
    print(f'starts from {record["title"]}: {record["summary"]} ({FILE})')
    for line in record['differences']:
        print(f'WARNING: init: {line}')
    for entry in record['parameters']:
        logging.info('init: %s %s (%s)', entry['status'], entry['name'], entry['how'])
    for name in record['not_taken']:
        print(f'init: not taken: {name}')
