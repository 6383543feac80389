"""Evidence from a converted data set: its contract, its index, and some of its records."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import shards
from fusmae_jax.input.builder import open_builder
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.source import Source, read_index

from .. import report
from .evidence import Evidence, Grid, Sensor, Split, declared, solar_hour
from .findings import Finding
from .raw import SAMPLE, spread

LEAST = 16  # records of a split that are looked at, however small the split is beside the others


def open_set(path: Path) -> Evidence:
    """Looks at a folder written by `convert`; raises InputError if its metadata cannot be read."""
    contract = contracts.read(path)
    splits = open_builder(path).info.splits
    sizes = {name: info.num_examples for name, info in splits.items()}
    total = sum(sizes.values())
    indices, findings = _indices(path, sizes)
    findings += _fingerprint(path, contract)
    names: list[str] = []
    records: list[Mapping[str, Any]] = []
    for split, size in sizes.items():
        if not size:
            continue
        instructions = splits[split].file_instructions
        problems = shards.problems(path, instructions)
        if not problems:
            source = Source(str(path), split, tuple(contract.groups))
            wanted = spread(range(size), min(size, max(LEAST, round(SAMPLE * size / total))))
            index = indices.get(split, {})
            problems += _unreadable(source, shards.starts(instructions))
            for position in map(int, wanted):
                try:
                    records.append(source[position] | _row(index, position))
                except InputError as error:
                    problems.append(str(error))
                    continue
                names.append(_text(index[contract.key][position]) if index else f'{split} {position}')
        findings += _shards(split, problems)
    return Evidence(
        str(path),
        f'converted data set {contract.dataset} {contract.version}',
        sensors=_sensors(contract, records),
        names=tuple(names),
        total=total,
        splits={name: _split(size, indices.get(name, {}), contract.key) for name, size in sizes.items()},
        labels=_labels(contract, indices),
        contract=contract,
        findings=tuple(findings),
    )


def _unreadable(source: Source, positions: list[int]) -> Iterator[str]:
    """What is wrong with the records at some positions, in words."""
    for position in positions:
        try:
            source.check(position)
        except InputError as error:
            yield str(error)


def _shards(split: str, problems: list[str]) -> Iterator[Finding]:
    """One finding for all that is wrong with the files of a split."""
    if problems := list(dict.fromkeys(problems)):
        more = f'; {len(problems) - 1:,} more like it' if problems[1:] else ''
        yield Finding(
            'split.shard',
            'error',
            f'Shards of the split {split} are missing, damaged or exchanged',
            problems[0].removesuffix(f'; {shards.REMEDY}') + more,
            f'{shards.REMEDY}: no command reads these records',
            needs='metadata',
        )


def _fingerprint(path: Path, contract: Contract) -> Iterator[Finding]:
    """Whether contract, report and features are of one conversion, where there is a report to tell."""
    try:
        fingerprint = report.fingerprint(
            json.loads((path / report.FILE).read_text()), (path / 'features.json').read_text()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return
    if fingerprint != contract.fingerprint:
        yield Finding(
            'split.fingerprint',
            'error',
            'The input contract is of other shards than the conversion report',
            f'fingerprint {contract.fingerprint} in {contracts.FILE}, {fingerprint} by {report.FILE} and '
            'features.json',
            'copy the whole data set again, or convert again: these files are of different conversions',
            needs='metadata',
        )


def _row(index: Mapping[str, np.ndarray], position: int) -> dict[str, Any]:
    """What the index says of the place of a record."""
    return {name: index[name][position] for name in ('epsg', 'upper_left') if name in index}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _indices(path: Path, sizes: Mapping[str, int]) -> tuple[dict[str, dict[str, np.ndarray]], list[Finding]]:
    indices: dict[str, dict[str, np.ndarray]] = {}
    for split, size in sizes.items():
        try:
            indices[split] = read_index(path, split) if size else {}
        except InputError as error:
            problem = Finding(
                'split.index',
                'warning',
                'The index of the records cannot be read, so splits, places and labels were not looked at',
                str(error),
                'convert the data set again',
                needs='metadata',
            )
            return {}, [problem]
    return indices, []


def _split(size: int, index: Mapping[str, np.ndarray], key: str) -> Split:
    places = hours = None
    if {'epsg', 'upper_left'} <= index.keys():
        places = np.concatenate([index['epsg'][:, None], index['upper_left']], axis=1).astype(np.float64)
    if {'epsg', 's1_time'} <= index.keys():
        known = index['s1_time'] > 0
        hours = np.where(known, solar_hour(index['s1_time'], index['epsg']), np.nan)
    return Split(size, index.get(key), places, hours)


def _sensors(contract: Contract, records: list[Mapping[str, Any]]) -> dict[str, Sensor]:
    sensors = {}
    for modality in ('s1', 's2'):
        groups = {name: group for name, group in contract.groups.items() if group.modality == modality}
        if groups:
            images = tuple(
                {
                    band: np.asarray(record[name])[..., i]
                    for name, group in groups.items()
                    for i, band in enumerate(group.bands)
                }
                for record in records
            )
            grids = tuple(_grids(contract, modality, record) for record in records)
            about = declared(modality, contract.groups, contract.products)
            sensors[modality] = Sensor(modality, about, images, grids)
    return sensors


def _grids(contract: Contract, modality: str, record: Mapping[str, Any]) -> dict[str, Grid]:
    """The grids that a record's place and the contract imply; none for places in degrees."""
    epsg = int(record.get('epsg', 0))
    if epsg <= 0 or epsg == 4326 or 'upper_left' not in record:
        return {}
    left, top = (float(value) for value in record['upper_left'])
    return {
        band: Grid(epsg, left, top, group.resolution, group.resolution, *group.size)
        for group in contract.groups.values()
        if group.modality == modality
        for band in group.bands
    }


def _labels(contract: Contract, indices: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    labels = {}
    for field in contract.classes:
        parts = [index[field] for index in indices.values() if field in index]
        if parts:
            labels[field] = np.concatenate(parts)
    return labels
