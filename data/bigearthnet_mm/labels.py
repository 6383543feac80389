"""The two class nomenclatures of BigEarthNet: 43 CORINE classes, and the 19 that images can tell apart.

Indices are positions in the archive's own order. Other libraries number the classes alphabetically: a
metric averaged over classes does not notice, a classification head does.
"""

from collections.abc import Sequence

import numpy as np

CLASSES_19 = (
    'Urban fabric',
    'Industrial or commercial units',
    'Arable land',
    'Permanent crops',
    'Pastures',
    'Complex cultivation patterns',
    'Land principally occupied by agriculture, with significant areas of natural vegetation',
    'Agro-forestry areas',
    'Broad-leaved forest',
    'Coniferous forest',
    'Mixed forest',
    'Natural grassland and sparsely vegetated areas',
    'Moors, heathland and sclerophyllous vegetation',
    'Transitional woodland, shrub',
    'Beaches, dunes, sands',
    'Inland wetlands',
    'Coastal wetlands',
    'Inland waters',
    'Marine waters',
)

# CORINE level-3 class -> its index among the 19, or None for the eleven classes that were dropped.
_TO_19: dict[str, int | None] = {
    'Continuous urban fabric': 0,
    'Discontinuous urban fabric': 0,
    'Industrial or commercial units': 1,
    'Road and rail networks and associated land': None,
    'Port areas': None,
    'Airports': None,
    'Mineral extraction sites': None,
    'Dump sites': None,
    'Construction sites': None,
    'Green urban areas': None,
    'Sport and leisure facilities': None,
    'Non-irrigated arable land': 2,
    'Permanently irrigated land': 2,
    'Rice fields': 2,
    'Vineyards': 3,
    'Fruit trees and berry plantations': 3,
    'Olive groves': 3,
    'Pastures': 4,
    'Annual crops associated with permanent crops': 3,
    'Complex cultivation patterns': 5,
    'Land principally occupied by agriculture, with significant areas of natural vegetation': 6,
    'Agro-forestry areas': 7,
    'Broad-leaved forest': 8,
    'Coniferous forest': 9,
    'Mixed forest': 10,
    'Natural grassland': 11,
    'Moors and heathland': 12,
    'Sclerophyllous vegetation': 12,
    'Transitional woodland/shrub': 13,
    'Beaches, dunes, sands': 14,
    'Bare rock': None,
    'Sparsely vegetated areas': 11,
    'Burnt areas': None,
    'Inland marshes': 15,
    'Peatbogs': 15,
    'Salt marshes': 16,
    'Salines': 16,
    'Intertidal flats': None,
    'Water courses': 17,
    'Water bodies': 17,
    'Coastal lagoons': 18,
    'Estuaries': 18,
    'Sea and ocean': 18,
}
CLASSES_43 = tuple(_TO_19)


def multi_hot(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 vectors (43,) and (19,) of class names; raises KeyError with the first unknown name."""
    labels, labels_19 = np.zeros(len(CLASSES_43), np.uint8), np.zeros(len(CLASSES_19), np.uint8)
    for name in names:
        index = _TO_19[name]
        labels[CLASSES_43.index(name)] = 1
        if index is not None:
            labels_19[index] = 1
    return labels, labels_19


def without_19_class(names: Sequence[str]) -> bool:
    """Whether none of the class names is among the 19; an unknown name is not for this to judge."""
    return all(_TO_19.get(name, -1) is None for name in names)
