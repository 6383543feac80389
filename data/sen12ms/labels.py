"""Labels from the land-cover layer: shares of the 17 IGBP classes, the ten simplified ones, and their maps.

The rule is that of Schmitt and Wu, Remote sensing image classification with the SEN12MS dataset (2021): the
single label is the simplified class with the largest share, the multi-label is every class with a share of
0.1 or more. Everything is decided on pixel counts, so that no rounding can tip a tie or the threshold.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..records import RecordError

# The classes 1..17 of the International Geosphere-Biosphere Programme, as MODIS MCD12Q1 numbers them.
IGBP = (
    'Evergreen needleleaf forests',
    'Evergreen broadleaf forests',
    'Deciduous needleleaf forests',
    'Deciduous broadleaf forests',
    'Mixed forests',
    'Closed shrublands',
    'Open shrublands',
    'Woody savannas',
    'Savannas',
    'Grasslands',
    'Permanent wetlands',
    'Croplands',
    'Urban and built-up lands',
    'Cropland and natural vegetation mosaics',
    'Permanent snow and ice',
    'Barren',
    'Water bodies',
)
UNCLASSIFIED = (0, 255)  # values of pixels without a class

# Simplified class -> the IGBP classes in it. A position here, plus one, is the class of the maps of DFC2020.
SIMPLIFIED = {
    'Forest': (1, 2, 3, 4, 5),
    'Shrubland': (6, 7),
    'Savanna': (8, 9),
    'Grassland': (10,),
    'Wetlands': (11,),
    'Croplands': (12, 14),
    'Urban/Built-up': (13,),
    'Snow/Ice': (15,),
    'Barren': (16,),
    'Water': (17,),
}
CLASSES_10 = tuple(SIMPLIFIED)
_MEMBERS = np.array([[igbp in members for igbp in range(1, 18)] for members in SIMPLIFIED.values()], np.int64)
# The simplified class of each value of the IGBP layer, 0 for none.
_TO_SIMPLIFIED = np.zeros(256, np.uint8)
for _number, _group in enumerate(SIMPLIFIED.values(), 1):
    _TO_SIMPLIFIED[list(_group)] = _number


def simplified(layer: np.ndarray) -> np.ndarray:
    """The simplified class of each pixel, 1 to 10 as in the maps of DFC2020; 0 where there is none.

    Schmitt, Prexl, Ebel, Liebel and Zhu, Weakly Supervised Semantic Segmentation of Satellite Images for Land
    Cover Mapping (ISPRS Annals V-3, 2020), give the scheme.

    Args:
        layer: uint8, a layer that `derive` has accepted.
    """
    return _TO_SIMPLIFIED[layer]


class Cover(NamedTuple):
    """What the land-cover layer of a patch says."""

    fractions: np.ndarray  # (17,) float32, share of each IGBP class among the classified pixels; sums to 1
    unclassified: np.float32  # share of all pixels that have no class
    label: np.int32  # index into CLASSES_10 of the largest share; the lower one of two equal ones
    one_hot: np.ndarray  # (10,) uint8, the same
    multi_hot: np.ndarray  # (10,) uint8, shares of at least 0.1; never all zero


def derive(layer: np.ndarray, file: Path) -> Cover:
    """Labels of a patch from layer 1 of its land-cover image, an unsigned integer array of any shape.

    Raises RecordError, naming `file`, for a value that is no IGBP class and not one of UNCLASSIFIED, and for
    a patch without a single classified pixel.
    """
    by_value = np.bincount(layer.ravel(), minlength=len(IGBP) + 1)
    values = np.flatnonzero(by_value).tolist()
    foreign = [value for value in values if value > len(IGBP) and value not in UNCLASSIFIED]
    if foreign:
        raise RecordError(
            file,
            'IGBP layer',
            f'values {", ".join(map(str, foreign[:5]))}, expected the classes 1 to 17, or 0 or 255 for none',
            'layer 1 of a land-cover image must be IGBP; unpack the patch again',
        )
    counts = by_value[1 : len(IGBP) + 1]
    total = counts.sum()
    if not total:
        raise RecordError(
            file,
            'IGBP layer',
            f'no classified pixel (all values are {" or ".join(map(str, values))})',
            'no label can be derived; leave such patches out with on_error=skip',
        )
    simplified = _MEMBERS @ counts
    label = int(simplified.argmax())
    return Cover(
        fractions=(counts / total).astype(np.float32),
        unclassified=np.float32(1 - total / layer.size),
        label=np.int32(label),
        one_hot=(np.arange(len(CLASSES_10)) == label).astype(np.uint8),
        multi_hot=(10 * simplified >= total).astype(np.uint8),
    )
