"""Seasons and scenes of the archive, and the split that each scene belongs to.

Neighbouring patches of a scene overlap by half, so only whole scenes may be parted into splits. A scene is
named by its season folder and its number; the same number in another season is another place.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

# Folder of a season -> its name. The seasons are those of the calendar of the northern hemisphere.
SEASONS = {
    'ROIs1158_spring': 'Spring',
    'ROIs1868_summer': 'Summer',
    'ROIs1970_fall': 'Fall',
    'ROIs2017_winter': 'Winter',
}

# The 26 hold-out scenes of the authors (SEN12MS_holdOutScenes.txt): 18,106 triplets.
HOLD_OUT = {
    'ROIs1158_spring': (15, 17, 63, 97, 124, 146),
    'ROIs1868_summer': (15, 19, 43, 72, 79, 104, 131),
    'ROIs1970_fall': (30, 35, 39, 47, 61, 120, 141, 144),
    'ROIs2017_winter': (32, 64, 107, 135, 146),
}

# The 25 scenes that the authors once listed for validation (ValidationScenes.txt, since withdrawn from their
# repository): 18,550 triplets, all of them also in their training list.
VALIDATION = {
    'ROIs1158_spring': (44, 45, 77, 112, 113, 117),
    'ROIs1868_summer': (26, 36, 55, 73, 89, 113),
    'ROIs1970_fall': (1, 3, 14, 20, 57, 62, 93, 130, 142),
    'ROIs2017_winter': (69, 77, 103, 144),
}


class Scene(NamedTuple):
    """One scene: some 200 to 850 patches of one region in one season."""

    folder: str  # a key of SEASONS
    number: int

    @property
    def name(self) -> str:
        """Such as ROIs1158_spring_63."""
        return f'{self.folder}_{self.number}'


def official_split(scene: Scene) -> str:
    """`test` or `val` for a scene of the authors' lists, `train` for every other one."""
    if scene.number in HOLD_OUT[scene.folder]:
        return 'test'
    return 'val' if scene.number in VALIDATION[scene.folder] else 'train'


def drawn(scenes: Iterable[Scene], count: int, seed: int) -> set[Scene]:
    """`count` of the scenes: those whose names hash lowest together with the seed.

    The draw is the same on every machine, and changes little when scenes are added.
    """

    def rank(scene: Scene) -> bytes:
        return hashlib.blake2b(f'{seed} {scene.name}'.encode(), digest_size=8).digest()

    return set(sorted(scenes, key=rank)[:count])
