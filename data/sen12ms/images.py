"""One triplet, from its three files to a checked record."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..geotiff import Place, opened, place_of, read_stack
from ..records import Item, Record, RecordError, check_decibel
from . import labels
from .scenes import SEASONS, Scene, official_split
from .schema import GROUPS

KINDS = ('s1', 's2', 'lc')
COVER_LAYERS = 4  # IGBP, then LCCS land cover, land use and surface hydrology
SIZE, RESOLUTION = GROUPS['s2'].size, GROUPS['s2'].resolution
SAME_PLACE = 0.01 * RESOLUTION  # metres; corners are no whole numbers in this archive


class Triplet(NamedTuple):
    """A triplet as listed, before any of its images is opened."""

    folder: str  # a key of SEASONS
    scene: int
    patch: int

    def name(self, kind: str) -> str:
        """Name of a member without the ending, such as ROIs1158_spring_s2_63_p100."""
        return f'{self.folder}_{kind}_{self.scene}_p{self.patch}'

    def file(self, root: Path, kind: str) -> Path:
        """Path of a member."""
        return root / self.folder / f'{kind}_{self.scene}' / f'{self.name(kind)}.tif'


def read_item(item: Item, root: str, maps: bool = False) -> Record:
    """The record of a listed triplet; see `read_triplet`."""
    return read_triplet(Triplet(*item.values), Path(root), maps)


def read_triplet(triplet: Triplet, root: Path, maps: bool = False) -> Record:
    """Reads and checks one triplet; the record has the groups and fields of `schema.schema(maps)`.

    Raises RecordError, naming file and field, for anything that is missing, damaged or contradictory.
    NaN and inf in Sentinel-1 are kept: `prepare` treats them as invalid pixels.
    """
    s1_file, s2_file, cover_file = (triplet.file(root, kind) for kind in KINDS)
    s1, place = read_stack(s1_file, GROUPS['s1'])
    s2, s2_place = read_stack(s2_file, GROUPS['s2'])
    layer, cover_place = _read_cover(cover_file)
    check_decibel(s1_file, s1)
    _check_place(s2_file, 's2', s2_place, place)
    _check_place(cover_file, 'lc', cover_place, place)
    cover, scene = labels.derive(layer, cover_file), Scene(triplet.folder, triplet.scene)
    # Of 16 bits no value is above 255, which `derive` has seen to.
    igbp = layer.astype(np.uint8)
    return {
        's1': s1,
        's2': s2,
        'igbp': cover.fractions,
        'igbp_unclassified': cover.unclassified,
        'igbp10': cover.label,
        'igbp10_single': cover.one_hot,
        'igbp10_multi': cover.multi_hot,
        's1_name': triplet.name('s1'),
        's2_name': triplet.name('s2'),
        'scene': scene.name,
        'season': SEASONS[scene.folder],
        'epsg': np.int32(place.epsg),
        'upper_left': np.array([place.left, place.top], np.float64),
        'official_split': official_split(scene),
        **({'igbp_map': igbp, 'igbp10_map': labels.simplified(igbp)} if maps else {}),
    }


def _read_cover(file: Path) -> tuple[np.ndarray, Place]:
    """Layer 1 of a land-cover image, (rows, columns) of its own integer type, and where it lies."""
    with opened(file, 'lc') as dataset:
        for what, actual, valid in (
            ('number of layers', dataset.count, (COVER_LAYERS,)),
            ('size', dataset.shape, (SIZE,)),
            ('dtype', dataset.dtypes[0], ('uint8', 'uint16')),
        ):
            if actual not in valid:
                expected = ' or '.join(map(str, valid))
                raise RecordError(file, f'lc {what}', f'{actual}, expected {expected}', _AGAIN)
        return dataset.read(1), place_of(file, 'lc', dataset, RESOLUTION)


_AGAIN = 'unpack the patch again'


def _check_place(file: Path, kind: str, place: Place, reference: Place) -> None:
    apart = max(abs(place.left - reference.left), abs(place.top - reference.top))
    if place.epsg != reference.epsg or apart > SAME_PLACE:
        raise RecordError(
            file,
            f'{kind} position',
            f'EPSG, left, top = {tuple(place)}, but the Sentinel-1 image has {tuple(reference)}',
            'the images of a triplet must cover the same ground; unpack the triplet again',
        )
