"""GeoTIFFs as they are: whatever can be read is evidence, whatever cannot is a finding.

The readers of the converters refuse what is not as published; the doctor has to look at just that.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

from fusmae_jax.geo import UnusableError, raster, values
from fusmae_jax.geo.bands import SKIP, band_of, by_description
from fusmae_jax.sensors import SENSORS, Product

from ..paired_folder.headers import refusals
from .evidence import Declared, Grid
from .findings import Finding, Severity
from .names import band_in, sensor_in

S2_12 = tuple(SENSORS['s2'].bands)
S2_13 = (*S2_12[:10], 'B10', *S2_12[10:])
_USUAL = {('s1', 1): ('VV',), ('s1', 2): ('VV', 'VH'), ('s2', 12): S2_12, ('s2', 13): S2_13}


class Header(NamedTuple):
    """What a file says without its pixels, of the channels that are looked at."""

    file: Path
    grid: Grid
    bands: tuple[str, ...]
    named: bool  # whether the file itself names them
    dtype: str
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: tuple[float, ...]
    tags: str
    whole: raster.Header  # the same of all channels, as the converters read it


@contextmanager
def opened(file: Path) -> Iterator[rasterio.DatasetReader]:
    """An open GeoTIFF; whatever goes wrong while it is read becomes an OSError."""
    try:
        with raster.opened(file, **raster.BESIDE, **raster.KEYS) as dataset:
            yield dataset
    except UnusableError as error:
        raise OSError(f'{file}: {error.found}') from error


def header(file: Path, dataset: rasterio.DatasetReader, modality: str, bands: Sequence[str] = ()) -> Header:
    """The header of an open file; `bands` names its channels, else their descriptions or their number do.

    Channels of another sensor, and those called `SKIP`, are not looked at.
    """
    described = by_description(raster.descriptions(dataset), modality)
    named = all(band is not None for band in described) and any(described)
    if not bands:
        bands = _bands(dataset, modality, described)
    kept = [*('' if band == SKIP else band for band in bands), *[''] * dataset.count][: dataset.count]
    whole = raster.read_header(file, dataset, kept)
    hidden = (np.nan,) if whole.masked else ()  # what a mask hides, see `load`
    return Header(
        file,
        whole.grid,
        tuple(band for band in kept if band),
        named,
        whole.dtypes[0] if whole.dtypes else dataset.dtypes[0],
        whole.scales,
        _offsets(whole, modality),
        tuple(sorted({float(v) for v in dataset.nodatavals if v is not None}, key=repr)) + hidden,
        ' '.join(f'{key}={value}' for key, value in dataset.tags().items()),
        whole,
    )


def _bands(
    dataset: rasterio.DatasetReader, modality: str, described: Sequence[str | None]
) -> tuple[str, ...]:
    """The bands by their descriptions if one of them is known, else by their number, else numbered."""
    if not any(described):
        numbered = tuple(f'channel {i + 1}' for i in range(dataset.count))
        return _USUAL.get((modality, dataset.count), numbered)
    texts = raster.descriptions(dataset)
    return tuple(
        (text.strip() or f'channel {i}') if band is None else band
        for i, (text, band) in enumerate(zip(texts, described), 1)
    )


def _offsets(head: raster.Header, modality: str) -> tuple[float, ...]:
    """The offsets of the values; of whole numbers of Sentinel-2 as the converters read them.

    The unit of floats is not known, and so neither what an offset in digital numbers is.
    """
    try:
        stated = _stated(head) if modality == 's2' and head.channels else None
        whole = not head.channels or not head.dtype.startswith('float')
    except UnusableError:
        return head.offsets
    return head.offsets if stated is None or not whole else (stated,) * len(head.offsets)


def stated_offset(head: Header) -> float | None:
    """The offset of Sentinel-2 that a file states as `convert` reads it; None where it states none."""
    try:
        return _stated(head.whole) if head.bands else None
    except UnusableError:
        return None


def _stated(head: raster.Header) -> float | None:
    return values.stated_offset(head, values.DN['reflectance' if head.scale < values.FEW else 'DN'])


def findings(headers: Iterable[Header], modality: str) -> Iterator[Finding]:
    """What the headers of a user's files say that `convert` refuses, in its words."""
    headers, refused = list(headers), dict[str, list[tuple[Path, UnusableError]]]()
    for head in headers:
        for problem in _problems(head.whole, modality):
            refused.setdefault(problem.field, []).append((head.file, problem))
    if unstated := [head for head in headers if modality == 's2' and _is_unstated(head.whole)]:
        # The first stands for all: pixels are looked at.
        problem = values.unknown_offset(unstated[0].whole, values.Declared('s2_', 'DN'))
        yield _refused(modality, unstated[0].file, problem, len(unstated), len(headers), 'cannot tell')
    for cases in refused.values():
        yield _refused(modality, *cases[0], len(cases), len(headers), 'warning')


def _problems(head: raster.Header, modality: str) -> Iterator[UnusableError]:
    yield from refusals(head)
    if modality == 's2' and head.channels:
        try:
            _stated(head)
        except UnusableError as problem:
            yield problem


def _is_unstated(head: raster.Header) -> bool:
    try:
        return bool(head.channels) and _stated(head) is None
    except UnusableError:
        return False


def _refused(
    modality: str, file: Path, problem: UnusableError, count: int, total: int, severity: Severity
) -> Finding:
    return Finding(
        f'{modality}.{problem.field.replace(" ", "_").lower()}_refused',
        severity,
        f'Sentinel-{modality[1]}: `convert` refuses the files as they are ({problem.field})',
        f'{count:,} of {total:,} files, such as {file.name}: {problem.found}',
        problem.advice_for(file),
        needs='metadata',
    )


def load(file: Path, modality: str, bands: Sequence[str] = ()) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and pixels (band -> rows, columns; as stored) of a file; raises OSError.

    Pixels that a mask hides are NaN.
    """
    with opened(file) as dataset:
        head = header(file, dataset, modality, bands)
        return head, _pixels(dataset, head)


def load_window(head: Header, window: Window) -> dict[str, np.ndarray]:
    """A part of the pixels of a file, as `load` gives them."""
    with opened(head.file) as dataset:
        return _pixels(dataset, head, window)


def _pixels(
    dataset: rasterio.DatasetReader, head: Header, window: Window | None = None
) -> dict[str, np.ndarray]:
    if not head.bands:
        return {}
    return dict(zip(head.bands, raster.read_valid(dataset, head.whole, head.whole.channels, window)))


def modalities_of(file: Path, guess: bool = True) -> tuple[str, ...]:
    """The sensors of a file, by the names of its channels or its own; with `guess` by their number too."""
    with opened(file) as dataset:
        texts, count = raster.descriptions(dataset), dataset.count
    if both := tuple(m for m in ('s1', 's2') if any(band_of(text, m) for text in texts)):
        return both
    by_band = next((m for m in ('s1', 's2') if band_of(band_in(file), m)), '')
    modality = by_band or sensor_in(file.stem)
    if not modality and guess:
        modality = 's1' if count <= 2 else 's2' if count in (12, 13) else ''
    return (modality,) if modality else ()


def declared(headers: Iterable[Header], modality: str) -> Declared:
    """What files say about a sensor; the unit is never among it."""
    headers = list(headers)
    text = ' '.join(f'{head.file} {head.tags}' for head in headers)
    factors = [item for head in headers for item in zip(head.bands, head.scales, head.offsets)]
    return Declared(
        bands=tuple(dict.fromkeys(band for head in headers for band in head.bands)),
        scale={band: scale for band, scale, _ in factors},
        offset={band: offset for band, _, offset in factors},
        nodata=tuple(sorted({value for head in headers for value in head.nodata})),
        product=Product(level=_level(text)) if modality == 's2' else Product(),
        baselines=baselines(text) if modality == 's2' else (),
    )


def baselines(text: str) -> tuple[int, ...]:
    """Processing baselines in product names and tags: 400 for _N0400_ and PROCESSING_BASELINE=04.00."""
    numbers = [int(number) for number in re.findall(r'_N(\d{4})_', text)]
    numbers += [100 * int(a) + int(b) for a, b in re.findall(r'PROCESSING_BASELINE=N?(\d\d)\.?(\d\d)', text)]
    return tuple(sorted(set(numbers)))


def _level(text: str) -> Literal['', 'L1C', 'L2A']:
    l1c, l2a = 'MSIL1C' in text, 'MSIL2A' in text
    return '' if l1c == l2a else 'L1C' if l1c else 'L2A'
