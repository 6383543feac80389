"""The command `stats`: statistics of every band over a split, in one pass over its records.

Work is cut into runs of records that are gathered apart and merged in order, so that the result is the same
to the last bit for any number of processes.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

import numpy as np
from etils import epath

from fusmae_jax import sensors, storage
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.source import Source

from .statistics import PERCENTILES, RELATIVE_ERROR, Distribution, is_exact

RUN = 4096  # records that are gathered before they are merged
TOGETHER = 32  # images whose values are counted in one call
TOLERANCE = 1e-9  # relative; of the contract's statistics, which were merged in another order
COLUMNS = ('mean', 'std', 'minimum', *(f'p{p}' for p in PERCENTILES), 'maximum')

Distributions = dict[str, Distribution]


class SplitRecords(Protocol):
    """What statistics are gathered from: records by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, np.ndarray]: ...


def gather(records: SplitRecords, groups: Mapping[str, Group], positions: range) -> Distributions:
    """Reads the records at some positions, each once, and counts their image fields."""
    distributions = {field: Distribution(group) for field, group in groups.items()}
    for start in range(positions.start, positions.stop, TOGETHER):
        some = [records[i] for i in range(start, min(start + TOGETHER, positions.stop))]
        for field, distribution in distributions.items():
            distribution.add([record[field] for record in some])
    return distributions


def measure(records: SplitRecords, groups: Mapping[str, Group], processes: int = 1) -> Distributions:
    """The distribution of each image field over all records.

    Args:
        records: must pickle if there are several processes.
        groups: record field -> what it holds.
        processes: 0 takes one for each core.
    """
    total = {field: Distribution(group) for field, group in groups.items()}
    runs = [range(start, min(start + RUN, len(records))) for start in range(0, len(records), RUN)]
    begin, done = time.monotonic(), 0
    for run, part in zip(runs, _parts(records, groups, runs, processes or os.cpu_count() or 1)):
        for field, distribution in total.items():
            distribution.merge(part[field])
        done += len(run)
        if len(runs) > 1:
            _progress(done, len(records), time.monotonic() - begin)
    return total


def _parts(
    records: SplitRecords, groups: Mapping[str, Group], runs: Sequence[range], processes: int
) -> Iterator[Distributions]:
    if min(processes, len(runs)) == 1:
        for run in runs:
            yield gather(records, groups, run)
        return
    # Not forked: the threads of the readers would not survive that.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(processes, len(runs)), mp_context=context) as pool:
        yield from pool.map(gather, *zip(*((records, groups, run) for run in runs)))


def _progress(done: int, total: int, seconds: float) -> None:
    rate = done / max(seconds, 1e-9)
    line = f'{done:,} of {total:,} records, {rate:,.0f} records/s, {(total - done) / rate:,.0f} s left'
    end = '\r' if sys.stderr.isatty() and done < total else '\n'
    print(f'{line:<80}', end=end, file=sys.stderr, flush=True)


def describe(source: Source, found: Distributions) -> dict[str, Any]:
    """What the command says, as plain JSON values."""
    contract = source.contract
    fields = {field: _field(distribution) for field, distribution in found.items()}
    return {
        'dataset': contract.dataset,
        'version': contract.version,
        'fingerprint': contract.fingerprint,
        'split': source.split,
        'records': len(source),
        'fields': fields,
        'contract_agrees': agrees(contract, source.split, found),
        'config': configuration(fields),
    }


def _field(distribution: Distribution) -> dict[str, Any]:
    group = distribution.group
    return {
        'modality': group.modality,
        'bands': list(group.bands),
        'dtype': group.dtype,
        # Relative, of the stored value.
        'percentile_error': 0.0 if is_exact(np.dtype(group.dtype)) else RELATIVE_ERROR,
        'stored': distribution.stored(),
        'physical': distribution.physical(),
        'model': distribution.model(),
    }


def agrees(contract: Contract, split: str, found: Distributions) -> bool | None:
    """Whether `contract.json` says the same; None where its statistics are of another split."""
    if contract.statistics_split != split:
        return None
    for field, distribution in found.items():
        here, there = (vars(s) for s in (distribution.moments.result(), contract.statistics[field]))
        for key in here:
            exact = key not in ('mean', 'std')
            if not np.allclose(here[key], there[key], rtol=0.0 if exact else TOLERANCE, atol=0.0):
                return False
    return True


def configuration(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """modality -> bands, mean, std and unit as `model.modalities` takes them.

    Bands are in the order of the sensor's table. A band without a spread cannot be normalised with, and a
    modality has one unit: such bands, and those in another unit than the first, are left out.
    """
    by_modality: dict[str, dict[str, Any]] = {}
    for field in fields.values():
        view = field['model']
        for i, band in enumerate(field['bands']):
            modality = by_modality.setdefault(field['modality'], {'unit': view['unit'], 'bands': {}})
            if view['std'][i] > 0 and view['unit'] == modality['unit']:
                modality['bands'][band] = view['mean'][i], view['std'][i]
    result = {}
    for name, modality in by_modality.items():
        table = list(sensors.SENSORS[name].bands) if name in sensors.SENSORS else []
        order = sorted(modality['bands'], key=lambda band: table.index(band) if band in table else len(table))
        mean, std = ([modality['bands'][band][k] for band in order] for k in (0, 1))
        result[name] = {'bands': order, 'mean': mean, 'std': std, 'unit': modality['unit']}
    return result


def text(result: Mapping[str, Any]) -> str:
    """The result as a person reads it, with the lines for a configuration file at the end."""
    lines = [
        f'{result["dataset"]} {result["version"]}, split {result["split"]}: {result["records"]:,} records; '
        'valid pixels, native resolution'
    ]
    for field, values in result['fields'].items():
        for view in _different_views(values):
            lines += ['', f'{field} ({values["dtype"]}), {view["unit"]}', *_table(values['bands'], view)]
        if error := values['percentile_error']:
            lines.append(f'  percentiles within {error:.2%} of the stored value')
    lines += ['', _agreement(result['contract_agrees'])]
    lines += ['', '# For a configuration file:']
    for name, values in result['config'].items():
        for key, value in values.items():
            value = tuple(value) if isinstance(value, list) else value
            lines.append(f'config.model.modalities.{name}.{key} = {value!r}')
    return '\n'.join(lines)


def _different_views(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Stored, physical, in the model's unit: of views with the same numbers the last, which names a unit."""
    views = [values['stored']]
    for view in (values['physical'], values['model']):
        if all(view[key] == views[-1][key] for key in COLUMNS):
            views.pop()
        views.append(view)
    return views


def _table(bands: Sequence[str], view: Mapping[str, Sequence[float]]) -> list[str]:
    lines = ['  ' + ''.join([f'{"band":<5}', *(f'{name:>12}' for name in COLUMNS), f'{"invalid":>10}'])]
    for i, band in enumerate(bands):
        pixels = view['valid'][i] + view['invalid'][i]
        cells = [f'{view[name][i]:>12.6g}' for name in COLUMNS]
        lines.append(f'  {band:<5}' + ''.join(cells) + f'{view["invalid"][i] / max(pixels, 1):>10.3%}')
    return lines


def _agreement(agrees: bool | None) -> str:
    if agrees is None:
        return 'contract.json has the statistics of another split'
    if agrees:
        return 'contract.json says the same'
    return (
        'contract.json says otherwise: records or contract were changed after the conversion; convert again'
    )


def run(path: str, split: str, as_json: bool = False, out: str = '', processes: int = 1) -> int:
    """Prints the statistics of a split of a converted data set; returns the exit code 0.

    Args:
        path: the folder of the data set.
        split: a split, an alias, or a part such as `train[:10%]`.
        as_json: print JSON instead of text.
        out: also write the JSON to this file, which must not lie in the data set.
        processes: 0 takes one for each core.

    Raises:
        InputError: no such data set or split, or a file that cannot be written.
    """
    source = Source(path, split, ())
    source.fields = tuple(source.contract.groups)
    _check_out(out, path)
    result = describe(source, measure(source, source.contract.groups, processes))
    content = json.dumps(result, indent=2)
    if out:
        storage.write_text(out, content + '\n')
    print(content if as_json else text(result))
    return 0


def _check_out(out: str, path: str) -> None:
    if not out:
        return
    folder = epath.Path(out).resolve().parent
    if folder.is_relative_to(epath.Path(path).resolve()):
        raise InputError(f'--out={out} lies in the data set, which does not change; give a file elsewhere')
    if not folder.is_dir():
        raise InputError(f'--out={out}: there is no folder {folder}; make it first')
