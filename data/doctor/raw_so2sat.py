"""so2sat of GEO-Bench-2: one .tortilla file, whose quirks become findings.

Its radar is no measurement that the checks of pixels know, so they see Sentinel-2 alone.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..geobench2.so2sat import (
    CLASSES,
    LABELS,
    S2,
    S2_BANDS,
    SCHEMA,
    Images,
    Sample,
    list_samples,
    read_images,
    wider,
)
from ..records import RecordError
from .evidence import Split
from .findings import Finding, share
from .raw import SAMPLE, Item, Loaded, RawListing, spread

_CONVERT = '`convert` (configs/convert_geobench2.py with archive.name=so2sat)'


def archive(file: Path) -> RawListing:
    """The samples of a container; raises RecordError for a file that is none of so2sat."""
    samples, skips = list_samples(file, 'skip')
    chosen = spread(samples, SAMPLE)
    images = list(_readable(file, chosen))
    splits: dict[str, list[str]] = {}
    for sample in samples:
        splits.setdefault(sample.split, []).append(sample.patch_id)
    return RawListing(
        'GEO-Bench-2 so2sat, raw',
        [
            Item(sample.name, load=functools.partial(_load, file, sample), sensors=('s2',))
            for sample in chosen
        ],
        {'s2': S2},
        {'s2': SCHEMA.products['s2']},
        total=len(samples) + len(skips),
        splits={name: Split(len(ids), np.array(ids)) for name, ids in sorted(splits.items())},
        labels={LABELS: [(CLASSES[sample.zone],) for sample in chosen]},
        classes={LABELS: CLASSES},
        findings=(*rows_finding(skips, len(samples)), *_radar_findings(images)),
    )


_read = functools.lru_cache(maxsize=SAMPLE)(read_images)


def _readable(file: Path, samples: Sequence[Sample]) -> Iterator[Images]:
    for sample in samples:
        try:
            yield _read(file, sample)
        except RecordError:
            continue  # `gather` reads it again, and tells


def _load(file: Path, sample: Sample) -> Loaded:
    pixels = _read(file, sample).s2
    return {'s2': {band: pixels[..., index] for index, band in enumerate(S2_BANDS)}}, {'s2': {}}


def rows_finding(skips: Sequence[dict[str, str]], good: int) -> Iterator[Finding]:
    """What is said of rows that cannot be used."""
    if skips:
        yield Finding(
            'file.rows',
            'error',
            'Rows of the table cannot be used',
            f'{share(len(skips), good + len(skips))} rows; {skips[0]["field"]}: {skips[0]["reason"]}',
            'download the file again, or convert with on_error=skip',
            needs='metadata',
        )


def _radar_findings(images: Sequence[Images]) -> Iterator[Finding]:
    signed = [read for read in images if read.s1.min() < 0 < read.s1.max()]
    if not signed:
        return
    means = np.array([abs(read.s1.mean()) / read.s1.std() for read in signed])
    yield Finding(
        's1.unit',
        'warning',
        'Sentinel-1 is the real part of a complex amplitude, no backscatter',
        f'{share(len(signed), len(images))} samples have values of both signs, with a mean of '
        f'{np.median(means):.2f} standard deviations (median); the imaginary parts are not in the file',
        f'leave Sentinel-1 out of models that learned from dB; {_CONVERT} gives it a unit of its own',
    )
    spreads = np.array([wider(read.s1) for read in signed])
    if np.median(spreads) < 0:
        yield Finding(
            's1.order',
            'warning',
            'Sentinel-1 lies in the file as VH, VV, without names; the loader of the benchmark says VV, VH',
            f'in {share((spreads < 0).sum(), len(spreads))} samples the first channel has the smaller '
            f'spread, by {-np.median(spreads):.1f} dB (median); VV is brighter than VH over land and sea',
            f'{_CONVERT} writes VV, VH; in other programs name the channels VH, VV, and exchange statistics '
            'that were stored under the wrong names',
        )
