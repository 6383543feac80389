"""CORINE codes of the reference maps, and the 19 classes that they belong to.

The classes have the order of `data/bigearthnet_mm/labels.py`, that of the archive's authors; other libraries
number them alphabetically.
"""

import numpy as np

from ..bigearthnet_mm.labels import CLASSES_43, multi_hot

UNLABELLED = 999  # no CORINE polygon covers the pixel
NONE = 255  # in a map of the 19 classes: none of them

# Level-3 codes of the 43 classes, in the same order.
CODES_43 = (
    *(111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142),
    *(211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244),
    *(311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334),
    *(411, 412, 421, 422, 423, 511, 512, 521, 522, 523),
)
GLACIERS = 335  # the one CORINE class that is not among the 43
CODES = (0, *CODES_43, GLACIERS, UNLABELLED)  # 0: nodata

_KNOWN = np.zeros(2**16, bool)
_KNOWN[list(CODES)] = True
_CLASS = np.full(2**16, NONE, np.uint8)
for _code, _name in zip(CODES_43, CLASSES_43):
    _CLASS[_code] = next(iter(np.flatnonzero(multi_hot([_name])[1])), NONE)


def unknown_codes(codes: np.ndarray) -> list[int]:
    """The values of a uint16 map that are no CORINE level-3 code, 999 or 0."""
    known = _KNOWN[codes]
    return [] if known.all() else np.unique(codes[~known]).tolist()


def classes_of_map(codes: np.ndarray) -> np.ndarray:
    """A uint16 map of CORINE level-3 codes as a uint8 map of the 19 classes; NONE where there is none."""
    return _CLASS[codes]
