"""Sizes of the splits and label counts of the whole archive, counted in its two metadata tables.

The first table has the patches that are free of snow and cloud, the second all others.
"""

from ..bigearthnet_mm.labels import CLASSES_19

SPLITS = ('train', 'val', 'test')

# 480,038 and 69,450 patches; 60,773 of the latter under snow, 8,677 under cloud or shadow.
_CLEAR = (237_871, 122_342, 119_825)
_SNOW_CLOUD = (34_673, 17_235, 17_542)

# A row for each of CLASSES_19: train, val, test of the first table, then of the second.
_LABELS = (
    (33_626, 17_308, 12_824, 1_997, 1_026, 880),
    (6_398, 2_726, 2_018, 474, 291, 213),
    (88_236, 49_737, 50_052, 6_216, 3_140, 3_261),
    (15_190, 8_688, 5_710, 85, 31, 29),
    (42_968, 25_915, 26_722, 1_911, 1_007, 1_607),
    (51_034, 26_486, 22_078, 1_456, 1_068, 1_047),
    (60_127, 32_736, 29_846, 7_409, 4_279, 4_639),
    (15_082, 8_157, 9_942, 25, 0, 0),
    (64_164, 35_387, 36_377, 4_604, 2_413, 2_534),
    (76_344, 39_554, 39_043, 23_516, 11_305, 11_775),
    (78_791, 42_705, 44_284, 19_687, 10_218, 10_267),
    (6_984, 2_687, 2_211, 1_072, 337, 400),
    (6_329, 3_806, 3_759, 462, 157, 124),
    (64_198, 36_429, 40_523, 12_159, 5_966, 6_236),
    (738, 426, 152, 25, 10, 0),
    (11_344, 5_056, 4_519, 4_092, 1_747, 1_390),
    (670, 610, 117, 137, 58, 28),
    (30_466, 15_900, 16_846, 13_174, 6_598, 6_265),
    (35_914, 14_064, 11_854, 4_070, 2_114, 2_285),
)


def sizes(with_snow_cloud: bool) -> dict[str, int]:
    """split -> patches."""
    return {
        split: clear + with_snow_cloud * other for split, clear, other in zip(SPLITS, _CLEAR, _SNOW_CLOUD)
    }


def labels(with_snow_cloud: bool) -> dict[str, dict[str, dict[str, int]]]:
    """split -> record field -> class -> patches with it."""
    return {
        split: {
            'labels_19': {
                name: row[index] + with_snow_cloud * row[index + len(SPLITS)]
                for name, row in zip(CLASSES_19, _LABELS)
            }
        }
        for index, split in enumerate(SPLITS)
    }
