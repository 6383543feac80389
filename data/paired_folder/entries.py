"""The files of one image in a user's folders; `names.py` and `table.py` find out which belong together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fusmae_jax.geo.products import rasters_of

from .. import records
from ..geotiff import refused
from ..records import RecordError
from .settings import Archive, Offset

EXTENSIONS = ('.tif', '.tiff')
Problem = tuple[str, RecordError]  # what cannot be used, and why


class Entry(NamedTuple):
    """The images of one piece of ground, and what is known about them."""

    id: str
    s1: tuple[str, ...]  # files, relative to s1_root; empty without this sensor
    s2: tuple[str, ...]
    split: str
    labels: tuple[str, ...]
    facts: Mapping[str, Any]  # record field -> value, of the fields that only a table can tell
    source: str  # where the entry stands, for errors
    s2_offset: Offset | Literal[''] = ''  # as the setting of that name, which '' leaves as it is
    map: tuple[str, ...] = ()  # the label raster, relative to map_root; empty without
    dem: tuple[str, ...] = ()  # relative to dem_root
    s1_desc: tuple[str, ...] = ()  # relative to s1_desc_root
    targets: tuple[float | None, ...] = ()  # as in the settings; None for a missing value

    def files(self, source: str) -> tuple[str, ...]:
        """The files of one sensor, or of 'map'."""
        files: tuple[str, ...] = getattr(self, source)
        return files


def roots(archive: Archive) -> dict[str, Path]:
    """The folder of each sensor and of 'map', resolved; raises InputError for one that does not exist."""
    return {m: records.folder(archive.of(m, 'root'), f'{m}_root') for m in archive.sources}


def products(archive: Archive, modality: str, root: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Files relative to a root, in which a product is replaced by its rasters, one for each pixel size.

    Raises RecordError for a product that cannot be used.
    """
    result: list[str] = []
    for name in names:
        with refused(root / name, modality, ''):
            rasters = rasters_of(root / name, modality)
        if rasters != [root / name] and archive.georeference == 'none':
            advice = 'leave georeference alone: products know their place'
            raise RecordError(root / name, modality, "a product, with georeference='none'", advice)
        result += [raster.relative_to(root).as_posix() for raster in rasters]
    return tuple(result)


def parts_of(archive: Archive, modality: str) -> tuple[str, ...]:
    """Endings of the files of one image; a label raster is one file."""
    return archive.of(modality, 'parts') if modality in archive.modalities else ()
