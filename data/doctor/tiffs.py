"""GeoTIFFs as they are: whatever can be read is evidence, whatever cannot is a finding.

The readers of the converters refuse what is not as published; the doctor has to look at just that.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import rasterio
import rasterio.errors
from rasterio.windows import Window

from data.doctor.evidence import Declared, Grid
from data.doctor.names import band_in, sensor_in
from data.paired_folder.bands import band_of
from fusmae_jax.sensors import SENSORS, Product

S2_12 = tuple(SENSORS['s2'].bands)
S2_13 = (*S2_12[:10], 'B10', *S2_12[10:])
_USUAL = {('s1', 1): ('VV',), ('s1', 2): ('VV', 'VH'), ('s2', 12): S2_12, ('s2', 13): S2_13}


class Header(NamedTuple):
    """What a file says without its pixels."""

    file: Path
    grid: Grid
    bands: tuple[str, ...]  # of each channel
    named: bool  # whether the file itself names them
    dtype: str
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: tuple[float, ...]
    tags: str


@contextmanager
def opened(file: Path) -> Iterator[rasterio.DatasetReader]:
    """An open GeoTIFF; whatever goes wrong while it is read becomes an OSError."""
    try:
        with (
            warnings.catch_warnings(action='ignore', category=rasterio.errors.NotGeoreferencedWarning),
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='TRUE', GTIFF_SRS_SOURCE='GEOKEYS'),
            rasterio.open(file) as dataset,
        ):
            yield dataset
    except rasterio.errors.RasterioError as error:
        raise OSError(f'{file}: {error}') from error


def header(file: Path, dataset: rasterio.DatasetReader, modality: str, bands: Sequence[str] = ()) -> Header:
    """The header of an open file; `bands` names its channels, else their descriptions or their number do."""
    found = tuple(band_of(text or '', modality) for text in dataset.descriptions)
    named = all(found)
    if not bands:
        numbered = tuple(f'channel {i + 1}' for i in range(dataset.count))
        bands = found if named else _USUAL.get((modality, dataset.count), numbered)
    return Header(
        file,
        grid(dataset),
        tuple(bands)[: dataset.count],
        named,
        dataset.dtypes[0],
        tuple(dataset.scales),
        tuple(dataset.offsets),
        tuple(sorted({float(v) for v in dataset.nodatavals if v is not None})),
        ' '.join(f'{key}={value}' for key, value in dataset.tags().items()),
    )


def load(file: Path, modality: str, bands: Sequence[str] = ()) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and pixels (band -> rows, columns; as stored) of a file; raises OSError."""
    with opened(file) as dataset:
        head = header(file, dataset, modality, bands)
        pixels = dataset.read(list(range(1, len(head.bands) + 1)))
    return head, dict(zip(head.bands, pixels))


def load_window(head: Header, window: Window) -> dict[str, np.ndarray]:
    """A part of the pixels of a file, as `load` gives them."""
    with opened(head.file) as dataset:
        return dict(zip(head.bands, dataset.read(list(range(1, len(head.bands) + 1)), window=window)))


def modality_of(file: Path) -> str:
    """'s1' or 's2' by the names of channels, the name of the file, or the number of channels; else ''."""
    with opened(file) as dataset:
        texts, count = [text or '' for text in dataset.descriptions], dataset.count
    for modality in ('s1', 's2'):
        if any(band_of(text, modality) for text in [*texts, band_in(file)]):
            return modality
    return sensor_in(file.stem) or ('s1' if count <= 2 else 's2' if count in (12, 13) else '')


def grid(dataset: rasterio.DatasetReader) -> Grid:
    """The grid of an open image."""
    step, crs = dataset.transform, dataset.crs
    return Grid(
        crs.to_epsg() if crs else None,
        step.c,
        step.f,
        step.a,
        -step.e,
        dataset.height,
        dataset.width,
        turned=bool(step.b or step.d),
    )


def declared(headers: Iterable[Header], modality: str) -> Declared:
    """What files say about a sensor; the unit is never among it."""
    headers = list(headers)
    text = ' '.join(f'{one.file} {one.tags}' for one in headers)
    factors = [item for one in headers for item in zip(one.bands, one.scales, one.offsets)]
    return Declared(
        bands=tuple(dict.fromkeys(band for one in headers for band in one.bands)),
        scale={band: scale for band, scale, _ in factors},
        offset={band: offset for band, _, offset in factors},
        nodata=tuple(sorted({value for one in headers for value in one.nodata})),
        product=Product(level=_level(text)) if modality == 's2' else Product(),
        baselines=baselines(text) if modality == 's2' else (),
    )


def baselines(text: str) -> tuple[int, ...]:
    """Processing baselines in product names and tags: 400 for _N0400_ and PROCESSING_BASELINE=04.00."""
    found = [int(number) for number in re.findall(r'_N(\d{4})_', text)]
    found += [100 * int(a) + int(b) for a, b in re.findall(r'PROCESSING_BASELINE=N?(\d\d)\.?(\d\d)', text)]
    return tuple(sorted(set(found)))


def _level(text: str) -> Literal['', 'L1C', 'L2A']:
    l1c, l2a = 'MSIL1C' in text, 'MSIL2A' in text
    return '' if l1c == l2a else 'L1C' if l1c else 'L2A'
