"""Evidence from a converted data set: its contract, its index, and some of its records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.doctor.evidence import Evidence, Grid, Sensor, Split, declared, solar_hour
from data.doctor.findings import Finding
from data.doctor.raw import SAMPLE, spread
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.index import read_index

LEAST = 16  # records of a split that are looked at, however small the split is beside the others


def open_set(path: Path) -> Evidence:
    """Looks at a folder written by `convert`; raises InputError if TFDS cannot read it."""
    import tensorflow_datasets as tfds

    contract = contracts.read(path)
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # TFDS has a class of its own for each file that can be missing or broken
        raise InputError(f'{path}: TFDS cannot read this folder ({error}); convert it again') from error
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    total = sum(sizes.values())
    indices, findings = _indices(path, sizes)
    names: list[str] = []
    records: list[Mapping[str, Any]] = []
    for split, size in sizes.items():
        if not size:
            continue
        source = builder.as_data_source(split=split)
        wanted = min(size, max(LEAST, round(SAMPLE * size / total)))
        for index in spread(range(size), wanted):
            record = source[int(index)]
            records.append(record)
            names.append(_text(record.get(contract.key, f'{split} {index}')))
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
