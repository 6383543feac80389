"""benv2 of GEO-Bench-2: one .tortilla file, whose quirks are told as findings.

The images are handed on with their true bands and grids, so that the other checks speak of the pixels.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..bigearthnet_mm.labels import CLASSES_19
from ..geobench2 import so2sat
from ..geobench2.images import ORDERS, WRONG_STEP, Images, Sample, lighter, read_images
from ..geobench2.samples import list_samples
from ..geobench2.schema import RESOLUTION, S1, S2, SCHEMA
from ..records import RecordError
from . import raw_so2sat
from .evidence import Split
from .findings import Finding, share
from .raw import SAMPLE, Item, Loaded, RawListing, spread
from .raw_so2sat import rows_finding

SUFFIX = '.tortilla'
_CONVERT = '`convert` (configs/convert_geobench2.py)'


def archive(file: Path) -> RawListing:
    """The samples of a container; raises RecordError for a file that is none of benv2 or so2sat."""
    if so2sat.is_one(file):
        return raw_so2sat.archive(file)
    samples, skips = list_samples(file, 'skip')
    chosen = spread(samples, SAMPLE)
    images = list(_readable(file, chosen))
    order = _order(images)
    splits: dict[str, list[str]] = {}
    for sample in samples:
        splits.setdefault(sample.split, []).append(sample.patch_id)
    return RawListing(
        'GEO-Bench-2 benv2, raw',
        [
            Item(sample.name, load=functools.partial(_load, file, sample, order), sensors=('s1', 's2'))
            for sample in chosen
        ],
        SCHEMA.groups,
        SCHEMA.products,
        total=len(samples) + len(skips),
        splits={name: Split(len(ids), np.array(ids)) for name, ids in sorted(splits.items())},
        labels={'labels_19': [tuple(CLASSES_19[i] for i in sample.labels) for sample in chosen]},
        classes={'labels_19': CLASSES_19},
        findings=(
            *rows_finding(skips, len(samples)),
            *_order_finding(images),
            *_ground_finding(images),
        ),
    )


_read = functools.lru_cache(maxsize=SAMPLE)(read_images)


def _readable(file: Path, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Images]]:
    for sample in samples:
        try:
            yield sample, _read(file, sample)
        except RecordError:
            continue  # `gather` reads it again, and tells


def _order(images: Sequence[tuple[Sample, Images]]) -> str:
    """The order of the channels by the pixels: VV is the brighter one over land and sea."""
    levels = [lighter(read.s1) for _, read in images]
    return 'VV,VH' if levels and np.median(levels) > 0 else 'VH,VV'


def _load(file: Path, sample: Sample, order: str) -> Loaded:
    read = _read(file, sample)
    s1 = {band: read.s1[..., channel] for band, channel in zip(S1.bands, ORDERS[order])}
    s2 = {band: read.s2[..., index] for index, band in enumerate(S2.bands)}
    # Where the step is the known wrong one, the ground is that of Sentinel-1 all the same.
    wrong = read.s2_grid.step_x == WRONG_STEP
    s2_grid = read.s2_grid._replace(step_x=RESOLUTION, step_y=RESOLUTION) if wrong else read.s2_grid
    return {'s1': s1, 's2': s2}, {'s1': dict.fromkeys(s1, read.s1_grid), 's2': dict.fromkeys(s2, s2_grid)}


def _order_finding(images: Sequence[tuple[Sample, Images]]) -> Iterator[Finding]:
    levels = np.array([lighter(read.s1) for _, read in images])
    swapped = levels < 0
    if swapped.any() and np.median(levels) < 0:
        yield Finding(
            's1.order',
            'warning',
            'Sentinel-1 lies in the file as VH, VV, without names; the loader of the benchmark says VV, VH',
            f'in {share(swapped.sum(), len(levels))} samples the first channel is the darker one, by '
            f'{np.median(-levels[swapped]):.1f} dB (median); VV is brighter than VH over land and sea',
            f'{_CONVERT} writes VV, VH; in other programs name the channels VH, VV, and exchange statistics '
            'that were stored under the wrong names',
        )


def _ground_finding(images: Sequence[tuple[Sample, Images]]) -> Iterator[Finding]:
    wrong = [(sample, read) for sample, read in images if read.s2_grid.step_x != RESOLUTION]
    if not wrong:
        return
    sample, read = wrong[0]
    grid, rows = read.s2_grid, read.s2.shape[0]
    yield Finding(
        'pair.geotransform',
        'warning',
        'The geotransform of Sentinel-2 is wrong: that of B01, though all bands have pixels of 10 m',
        f'{share(len(wrong), len(images))} samples; {sample.name}: {rows} x {rows} pixels of {grid.step_x:g} '
        f'm, {rows * grid.step_x / 1000:g} km a side from {grid.left:.10g}, {grid.top:.10g}; Sentinel-1 has '
        f'as many of {RESOLUTION:g} m from the same corner, and a patch of BigEarthNet is a cell of 1.2 km',
        f'{_CONVERT} takes {RESOLUTION:g} m; in other programs, also for stac:geotransform and '
        'stac:centroid, use those of Sentinel-1',
        needs='metadata',
    )
