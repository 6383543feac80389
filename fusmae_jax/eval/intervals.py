"""Intervals by cluster bootstrap, and the resamples on disk.

Patches of one scene are not independent, so whole scenes are drawn: a resample draws as many clusters
(scenes, tiles, regions) as there are, with replacement, and every record counts as often as its cluster was
drawn. The interval of a metric lies between percentiles of its values over the resamples (linear
interpolation). It covers the choice of the ground that is tested on, not that of the seed or of the label
subset: those show in `spread`. Percentile intervals of few clusters are too narrow: for the mean of
independent normal clusters, a nominal 95 % holds the truth in 94 % of cases with 125 clusters, in 92 % with
26 and in 89 % with 10.

A difference is taken resample by resample, so what two systems find hard alike cancels. Systems that were
evaluated in different runs on the same records, labels and resamples are paired in the same way from what
their runs stored; a digest says whether they may be.

With K clusters and draws c*_1 ... c*_K of a resample, a metric is m(w) of the multiplicities
w_c = #{k: c*_k = c}, so that a resample needs counts instead of copies of records. `scipy.stats.bootstrap`
has no clusters, and copies would sort the scores anew each time (see `metrics`).
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import InputError
from fusmae_jax.eval.metrics import Measure

REPLICATES = 1000
LEVEL = 0.95
STORED = 'replicates-{}.npz'  # of a command, as the rows
FORMAT = 1  # of these files
# What tells the cells of a run apart.
KEYS = ('system', 'method', 'modalities', 'pooled', 'batch_norm', 'label_fraction')


class Interval(NamedTuple):
    """An estimate and where it may lie; NaN where undefined."""

    estimate: float
    low: float
    high: float
    level: float
    replicates: int
    undefined: int  # replicates without a value, left out: no positive was drawn
    clusters: int


@dataclasses.dataclass(frozen=True, eq=False)
class Replicates:
    """The metrics of one system on the split and on every resample of it."""

    estimate: Mapping[str, float]  # metric -> value on the split
    values: Mapping[str, np.ndarray]  # metric -> (replicates,) float64
    clusters: int
    resamples: str  # equal for systems that may be paired: same records, labels, clusters and draws


def resample(
    measure: Measure, clusters: Any, replicates: int = REPLICATES, seed: int = 0, threads: int = 2
) -> Replicates:
    """The metrics on the split and on resamples of its clusters.

    Args:
        measure: scores and labels of the records.
        clusters: (records,) the name of the scene, tile or region that each belongs to.
        replicates: number of resamples.
        seed: of the draws; resample `i` is a function of the seed, `i` and the number of clusters.
        threads: that share the resamples; changes no value.

    Raises:
        InputError: a record without a cluster, or fewer than two clusters.
    """
    names, groups = grouped(clusters, measure.records)
    count = len(names)
    weighted = measure.grouped(groups, count)

    def replicate(i: int) -> dict[str, float]:
        # A generator of its own for each resample: neither threads nor their number change a draw.
        drawn = np.random.default_rng([seed, i]).integers(count, size=count)
        return weighted(np.bincount(drawn, minlength=count))

    estimate = weighted(np.ones(count, np.int64))
    # Threads, since NumPy's sums release the lock and the sorted scores are shared.
    with ThreadPoolExecutor(threads) as pool:
        metrics = list(pool.map(replicate, range(replicates)))
    each = {metric: np.array([values[metric] for values in metrics]) for metric in estimate}
    # What has to agree before two systems are paired; their scores are left out, as these may differ.
    drawn = np.ascontiguousarray(groups, np.int64).tobytes()
    return Replicates(estimate, each, count, storage.digest([measure.truth, drawn, f'{seed} {replicates}']))


def grouped(clusters: Any, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Names of the clusters, and the number of each record's; raises InputError as `resample` does."""
    names, groups = np.unique(named(clusters, records), return_inverse=True)
    if len(names) < 2:
        only = names[0].decode() if isinstance(names[0], bytes) else names[0]
        raise InputError(
            f'clusters: all {records:,} records are of {str(only)!r}; an interval needs two clusters or more'
        )
    return names, groups


def named(clusters: Any, records: int) -> np.ndarray:
    """The cluster of each record; raises InputError unless every one has a name."""
    clusters = np.asarray(clusters)
    if clusters.shape != (records,):
        raise InputError(f'clusters: shape {clusters.shape}, expected one name for each of {records} records')
    if clusters.dtype.kind not in 'SUiu':
        raise InputError(f'clusters: of type {clusters.dtype}; they must be names or whole numbers')
    if clusters.dtype.kind in 'SU' and not (some := clusters != clusters.dtype.type()).all():
        raise InputError(
            f'clusters: {np.sum(~some):,} of {records:,} records have no name, the first is record '
            f'{int(np.argmin(some))}; give every record its scene, tile or region'
        )
    return clusters


def intervals(replicates: Replicates, level: float = LEVEL) -> dict[str, Interval]:
    """metric -> its percentile interval."""
    return {
        metric: _interval(estimate, replicates.values[metric], replicates.clusters, level)
        for metric, estimate in replicates.estimate.items()
    }


def _interval(estimate: float, each: np.ndarray, clusters: int, level: float) -> Interval:
    # A class may have no positive in a resample of few scenes; counting it as 0 would widen the interval.
    defined = each[~np.isnan(each)]
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]).tolist() if len(defined) else (np.nan, np.nan)
    return Interval(estimate, low, high, level, len(each), len(each) - len(defined), clusters)


def difference(first: Replicates, second: Replicates) -> Replicates:
    """First minus second, resample by resample, of the metrics that both have.

    Raises:
        InputError: they were not resampled alike.
    """
    _same([first, second])
    common = [metric for metric in first.estimate if metric in second.estimate]
    return Replicates(
        {metric: first.estimate[metric] - second.estimate[metric] for metric in common},
        {metric: first.values[metric] - second.values[metric] for metric in common},
        first.clusters,
        first.resamples,
    )


def average(several: Sequence[Replicates]) -> Replicates:
    """The mean of several runs of one system (seeds, label subsets), resample by resample.

    Raises:
        InputError: none, or they were not resampled alike.
    """
    if not several:
        raise InputError('average: there are no runs')
    _same(several)
    first = several[0]
    return Replicates(
        {metric: float(np.mean([run.estimate[metric] for run in several])) for metric in first.estimate},
        {metric: np.mean([run.values[metric] for run in several], axis=0) for metric in first.values},
        first.clusters,
        first.resamples,
    )


def _same(several: Sequence[Replicates]) -> None:
    if len({replicates.resamples for replicates in several}) > 1:
        raise InputError(
            'these systems were not evaluated on the same resamples, so they cannot be paired: take the same '
            'records in the same order, the same labels, clusters, number of replicates and seed'
        )


class Spread(NamedTuple):
    """One number over repeated runs."""

    mean: float
    lowest: float
    highest: float
    runs: int


def spread(runs: Mapping[tuple[int, ...], float]) -> Spread:
    """Mean and range over a full grid of runs, such as 5 label subsets x 3 head seeds.

    Args:
        runs: (seed of the subset, seed of the head) -> value, or any other seeds; every one with every other.

    Raises:
        InputError: no runs, runs that are missing, values that are not finite.
    """
    if not runs:
        raise InputError('spread: there are no runs')
    missing = [key for key in itertools.product(*map(sorted, map(set, zip(*runs)))) if key not in runs]
    if missing:
        raise InputError(
            f'spread: {len(runs)} runs, without those of the seeds {missing}; a mean over seeds needs every '
            'combination of them'
        )
    for key, value in runs.items():
        if not np.isfinite(value):
            raise InputError(f'spread: the run of the seeds {key} has {value}')
    numbers = [float(value) for value in runs.values()]
    return Spread(float(np.mean(numbers)), min(numbers), max(numbers), len(numbers))


class StoredReplicates(NamedTuple):
    """The resamples of one cell."""

    about: Mapping[str, Any]  # its KEYS
    replicates: Replicates


def write_replicates(
    cells: Sequence[tuple[Mapping[str, Any], Replicates | None]], workdir: epath.Path, command: str
) -> None:
    """Stores the resamples of cells; whole or not at all.

    Args:
        cells: the fields of the rows of each, and the mean over its runs; None, which is no interval, is
            left out.
        workdir: the folder.
        command: that they are of: 'linear', 'knn', 'finetune'.
    """
    arrays: dict[str, np.ndarray] = {}
    heads: list[dict[str, Any]] = []
    for fields, mean in cells:
        if mean is None:
            continue
        names = list(mean.estimate)
        arrays[f'values-{len(heads)}'] = np.stack([mean.values[name] for name in names])
        arrays[f'estimate-{len(heads)}'] = np.array([mean.estimate[name] for name in names])
        about = {name: fields[name] for name in KEYS}
        heads.append(
            {'about': about, 'metrics': names, 'clusters': mean.clusters, 'resamples': mean.resamples}
        )
    arrays['heads'] = np.array(json.dumps({'format': FORMAT, 'cells': heads}))
    storage.write_npz(workdir / STORED.format(command), arrays)


def read_replicates(workdir: epath.PathLike, command: str) -> list[StoredReplicates]:
    """What `write_replicates` stored; nothing where it never wrote.

    Raises:
        InputError: a file that cannot be read.
    """
    file = epath.Path(workdir) / STORED.format(command)
    if not file.exists():
        return []
    with storage.read_npz(file, 'remove it and evaluate again') as archive:
        known = json.loads(str(archive['heads']))
        if known['format'] != FORMAT:
            raise ValueError(f'format {known["format"]}, expected {FORMAT}')
        return [
            _stored(head, archive[f'estimate-{i}'], archive[f'values-{i}'])
            for i, head in enumerate(known['cells'])
        ]


def _stored(head: Mapping[str, Any], estimate: np.ndarray, values: np.ndarray) -> StoredReplicates:
    about = {name: tuple(x) if isinstance(x, list) else x for name, x in head['about'].items()}
    names = head['metrics']
    return StoredReplicates(
        about,
        Replicates(
            dict(zip(names, estimate.tolist())), dict(zip(names, values)), head['clusters'], head['resamples']
        ),
    )
