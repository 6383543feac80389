"""What the header of a GeoTIFF says, and what of it cannot be used."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import rasterio
import rasterio.errors
from rasterio.enums import ColorInterp, MaskFlags

from data.geotiff import Place
from data.paired_folder.bands import SKIP, described
from data.records import RecordError
from fusmae_jax import rio

DTYPES = ('uint8', 'int16', 'uint16', 'int32', 'uint32', 'float32')
# Files beside a GeoTIFF (.aux.xml) are looked up by name, without listing the folder each time.
OPTIONS = {'GDAL_DISABLE_READDIR_ON_OPEN': 'TRUE'}
T = TypeVar('T')


class Header(NamedTuple):
    """What is known of a file without reading a pixel."""

    file: Path
    rows: int
    columns: int
    place: Place
    resolution: float  # metres a pixel
    dtype: str
    bands: tuple[str, ...]  # of each channel; '' for one that is left out
    descriptions: tuple[str, ...]  # of each channel, as the file has them
    scale: float  # of the kept channels, from their tags
    offset: float
    nodata: float | None  # None: none, or NaN
    tags: Mapping[str, str]  # metadata of the file and its channels, names in capitals

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top edge in metres."""
        place, step = self.place, self.resolution
        return (
            place.left,
            place.top - self.rows * step,
            place.left + self.columns * step,
            place.top,
        )


@contextmanager
def opened(file: Path, field: str) -> Iterator[rasterio.DatasetReader]:
    """An open GeoTIFF; whatever goes wrong while it is read becomes a RecordError."""
    if not file.is_file():
        raise RecordError(file, field, 'the file is missing', 'repair the table, or put the file there')
    try:
        with rasterio.open(file, driver='GTiff') as dataset:
            yield dataset
    except rasterio.errors.RasterioError as error:
        size = file.stat().st_size
        raise RecordError(
            file,
            field,
            f'cannot be read in full ({size:,} bytes): {error}',
            'the GeoTIFF is truncated or damaged; write it again',
        ) from error


def read_headers(files: Sequence[Path], modality: str, names: Sequence[str]) -> list[Header]:
    """The headers of the files of one image.

    `names`: the channels of all files in their order, or nothing to take the band descriptions. Raises
    RecordError for what cannot be used.
    """
    headers: list[Header] = []
    left = list(names)
    for file in files:
        with rasterio.Env(**OPTIONS), opened(file, modality) as dataset:
            bands = channels(file, dataset, modality, left[: dataset.count] if names else ())
            headers.append(_header(file, modality, dataset, bands))
        left = left[len(bands) :]
    if left:
        total = sum(len(header.bands) for header in headers)
        raise RecordError(
            files[-1],
            f'{modality} bands',
            f'{total} channels in all, but {modality}_bands names {len(names)}',
            'name every channel once',
        )
    every = [band for header in headers for band in header.bands if band]
    if len(set(every)) < len(every):
        twice = next(band for band in every if every.count(band) > 1)
        advice = f"set {modality}_bands, with '{SKIP}' for a channel to leave out"
        raise RecordError(files[-1], f'{modality} bands', f'{twice} is there more than once', advice)
    return headers


def channels(
    file: Path, dataset: rasterio.DatasetReader, modality: str, names: Sequence[str]
) -> tuple[str, ...]:
    """The band of each channel, '' for one to leave out: as `names` say, else by the band descriptions.

    Raises RecordError where a channel has no name, or the two disagree; the position alone says nothing.
    """
    texts = tuple(text or '' for text in dataset.descriptions)
    found = tuple(described(text, modality).band for text in texts)
    field = f'{modality} bands'
    if not names:
        if all(found):
            return found
        unknown = ', '.join(f'{i} ({text!r})' for i, (text, b) in enumerate(zip(texts, found), 1) if not b)
        raise RecordError(
            file,
            field,
            f'no band name in the description of channel {unknown} of {len(texts)}',
            f"name the channels in their order, {modality}_bands=('{'VV' if modality == 's1' else 'B02'}', "
            f"...), with '{SKIP}' for one to leave out; a position alone says nothing",
        )
    if len(names) != len(texts):
        advice = f'{modality}_bands must name every channel of every file'
        found_text = f'{len(texts)} channels, but {modality}_bands has only {len(names)} names left'
        raise RecordError(file, field, found_text, advice)
    result = tuple('' if name == SKIP else described(name, modality).band for name in names)
    for index, (said, there) in enumerate(zip(result, found), 1):
        if said and there and said != there:
            raise RecordError(
                file,
                field,
                f'channel {index} is described as {there}, but {modality}_bands says {said}',
                f'correct {modality}_bands or the description',
            )
    return result


def _header(file: Path, modality: str, dataset: rasterio.DatasetReader, bands: tuple[str, ...]) -> Header:
    kept = [index for index, band in enumerate(bands) if band]
    if not kept:
        raise RecordError(file, f'{modality} bands', 'no channel is kept', f'correct {modality}_bands')

    def same(what: str, values: Sequence[T], advice: str) -> T:
        found = {values[index] for index in kept}
        if len(found) > 1:
            raise RecordError(file, f'{modality} {what}', f'{sorted(found, key=str)} in one file', advice)
        return found.pop()

    dtype = same('dtype', dataset.dtypes, 'write channels of one type')
    if dtype not in DTYPES:
        raise RecordError(
            file,
            f'{modality} dtype',
            f'{dtype}, expected one of {", ".join(DTYPES)}',
            'complex values have to be detected and calibrated first'
            if dtype.startswith('complex')
            else rio.convert(file, 'float32'),
        )
    if _masked(dataset, kept):
        raise RecordError(
            file,
            f'{modality} mask',
            'validity lies in a mask, which records cannot hold',
            f'write it into the pixels: {rio.warp_mask(file, dtype)}',
        )
    tags = {key.upper(): value for i in kept for key, value in dataset.tags(i + 1).items()}
    place, resolution = _place(file, modality, dataset)
    return Header(
        file=file,
        rows=dataset.height,
        columns=dataset.width,
        place=place,
        resolution=resolution,
        dtype=dtype,
        bands=bands,
        descriptions=tuple(text or '' for text in dataset.descriptions),
        scale=same('scale', dataset.scales, 'convert channels of other scales apart'),
        offset=same('offset', dataset.offsets, 'convert channels of other offsets apart'),
        nodata=same('nodata', [_nodata(x) for x in dataset.nodatavals], rio.edit_nodata(file)),
        tags=tags | {key.upper(): value for key, value in dataset.tags().items()},
    )


def _masked(dataset: rasterio.DatasetReader, kept: Sequence[int]) -> bool:
    """Whether validity lies in a mask or in an alpha channel that is no band."""
    flags = dataset.mask_flag_enums[kept[0]]
    # Writers declare the fourth channel of uint8 to be alpha, whatever is in it.
    alpha_is_a_band = MaskFlags.alpha in flags and dataset.colorinterp.index(ColorInterp.alpha) in kept
    return MaskFlags.per_dataset in flags and not alpha_is_a_band


def _nodata(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _place(file: Path, modality: str, dataset: rasterio.DatasetReader) -> tuple[Place, float]:
    """Where the upper left corner lies and the pixel size, both in metres of a projected system."""
    crs, step = dataset.crs, dataset.transform
    if not crs or step.is_identity:
        absent = 'no geotransform' if crs else 'none'
        raise RecordError(file, f'{modality} CRS', absent, rio.georeference(file))
    epsg = crs.to_epsg()
    if epsg is None or not crs.is_projected or crs.linear_units_factor[1] != 1:
        what = f'EPSG:{epsg}' if epsg else 'a system without an EPSG code'
        raise RecordError(
            file,
            f'{modality} CRS',
            f'{what}, expected a projected one in metres',
            rio.warp_to_utm(file, dataset),
        )
    if step.b or step.d or step.a <= 0 or abs(step.a + step.e) > 1e-9 * step.a:
        raise RecordError(
            file,
            f'{modality} pixel size',
            f'geotransform steps {(step.a, step.b, step.d, step.e)}, expected square pixels, north up',
            rio.warp_to_utm(file, dataset),
        )
    return Place(epsg, step.c, step.f), step.a
