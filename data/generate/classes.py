"""Land-cover classes of the generated scenes: how each looks to the two sensors, and what it is called.

A class is a pair of looks, one `Optical` and one `Radar`. Classes that share a look cannot be told apart
by that sensor, whatever the model:

    ONLY_S1     one optical look, two radar looks: grass between the rows of an orchard hides the trees
    ONLY_S2     one radar look, two optical looks: C band does not see further into a wood once it is closed
    NEED_BOTH   two optical looks times two radar looks: each sensor halves the four classes, both name them

There is one class for each of the 19 classes of BigEarthNet, in that order. Reflectances and backscatter are
rounded from what is commonly reported for European summers; they are plausible, not measured.
"""

import dataclasses

S2_BANDS = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11', 'B12')

Spectrum = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Optical:
    """A look to Sentinel-2."""

    spectrum: Spectrum  # surface reflectance x 10,000 in the order of S2_BANDS; B10 shows no ground
    vegetation: float = 0.0  # 0..1, how far the season changes it
    texture: float = 0.08  # standard deviation of the logarithm of reflectance within a patch
    parcels: float = 0.0  # the same for differences between fields with straight borders
    canopy: float = 0.0  # 0..1, the share that snow cannot cover


@dataclasses.dataclass(frozen=True)
class Radar:
    """A look to Sentinel-1: mean sigma0 in dB before speckle, and its standard deviation within a patch."""

    vv: float
    vh: float
    texture: float = 0.6


@dataclasses.dataclass(frozen=True)
class CoverClass:
    """A land-cover class."""

    name: str
    corine: str  # its name among the 43 classes of BigEarthNet
    igbp: int  # 1..17
    optical: Optical
    radar: Radar
    weight: float = 0.0  # how often it is drawn among the classes that belong to no special set

    @property
    def spectrum(self) -> Spectrum:
        """Mean reflectance x 10,000, in the order of S2_BANDS."""
        return self.optical.spectrum

    @property
    def backscatter(self) -> tuple[float, float]:
        """Mean sigma0 of VV and VH in dB."""
        return self.radar.vv, self.radar.vh


def _reflectance(*values: float) -> Spectrum:
    """Twelve values of the L2A bands; B10 is filled in with 0."""
    return (*values[:10], 0.0, *values[10:])


_MINERAL = Optical(
    _reflectance(680, 860, 1220, 1500, 1800, 2050, 2160, 2280, 2400, 2400, 2900, 2400),
    vegetation=0.3,
    texture=0.16,
    parcels=0.12,
    canopy=0.2,
)
_HEATH = Optical(
    _reflectance(230, 290, 460, 470, 800, 1400, 1600, 1700, 1820, 1820, 1450, 800),
    vegetation=0.6,
    texture=0.12,
    canopy=0.1,
)
_GRASS = Optical(
    _reflectance(250, 340, 680, 480, 1120, 2650, 3150, 3300, 3450, 3450, 1900, 1000),
    vegetation=0.8,
    texture=0.08,
    parcels=0.1,
)
_STRUCTURED, _SMOOTH = Radar(-6.0, -12.8, 1.0), Radar(-14.8, -21.6, 0.6)
_WOOD = Radar(-10.0, -15.8, 0.7)

CLASSES = (
    CoverClass('urban', 'Discontinuous urban fabric', 13, _MINERAL, _STRUCTURED),
    CoverClass(
        'industrial',
        'Industrial or commercial units',
        13,
        Optical(
            _reflectance(1150, 1350, 1550, 1680, 1820, 1950, 2050, 2130, 2180, 2180, 2300, 2000),
            texture=0.3,
            canopy=0.5,
        ),
        Radar(-3.5, -11.5, 3.0),
        0.6,
    ),
    CoverClass('arable', 'Non-irrigated arable land', 12, _MINERAL, _SMOOTH),
    CoverClass('orchard', 'Fruit trees and berry plantations', 14, _GRASS, Radar(-10.5, -14.2, 0.7)),
    CoverClass('pasture', 'Pastures', 10, _GRASS, Radar(-11.5, -20.8, 0.6)),
    CoverClass(
        'cultivation',
        'Complex cultivation patterns',
        14,
        Optical(
            _reflectance(380, 500, 820, 800, 1300, 2150, 2450, 2550, 2700, 2700, 2200, 1450),
            vegetation=0.8,
            parcels=0.3,
        ),
        Radar(-10.8, -17.2, 1.4),
        1.2,
    ),
    CoverClass(
        'mosaic',
        'Land principally occupied by agriculture, with significant areas of natural vegetation',
        14,
        Optical(
            _reflectance(300, 400, 680, 600, 1100, 2150, 2500, 2600, 2750, 2750, 1950, 1150),
            vegetation=0.8,
            texture=0.15,
            parcels=0.15,
        ),
        Radar(-10.9, -17.0, 1.2),
        1.2,
    ),
    CoverClass(
        'agroforestry',
        'Agro-forestry areas',
        9,
        Optical(
            _reflectance(400, 520, 870, 980, 1400, 1950, 2200, 2350, 2500, 2500, 2650, 1700),
            vegetation=0.4,
            texture=0.18,
            canopy=0.3,
        ),
        Radar(-10.3, -16.5, 1.0),
        0.8,
    ),
    CoverClass(
        'broadleaf',
        'Broad-leaved forest',
        4,
        Optical(
            _reflectance(180, 240, 480, 290, 780, 2500, 3100, 3250, 3400, 3350, 1500, 650),
            vegetation=1.0,
            texture=0.1,
            canopy=0.5,
        ),
        Radar(-9.5, -14.8, 0.7),
        1.3,
    ),
    CoverClass(
        'conifer',
        'Coniferous forest',
        1,
        Optical(
            _reflectance(140, 180, 310, 210, 480, 1300, 1520, 1620, 1700, 1700, 720, 330),
            vegetation=0.2,
            texture=0.12,
            canopy=0.7,
        ),
        _WOOD,
    ),
    CoverClass(
        'mixed_forest',
        'Mixed forest',
        5,
        Optical(
            _reflectance(160, 210, 400, 250, 640, 1950, 2400, 2520, 2620, 2600, 1050, 470),
            vegetation=0.6,
            texture=0.16,
            canopy=0.6,
        ),
        Radar(-9.8, -15.3, 0.7),
        1.2,
    ),
    CoverClass(
        'grassland',
        'Natural grassland',
        10,
        Optical(
            _reflectance(400, 540, 900, 1000, 1500, 2100, 2350, 2450, 2600, 2600, 3000, 1900),
            vegetation=0.8,
            texture=0.1,
        ),
        Radar(-13.0, -19.6, 0.6),
        0.8,
    ),
    CoverClass('heath', 'Moors and heathland', 7, _HEATH, _STRUCTURED),
    CoverClass(
        'young_wood',
        'Transitional woodland/shrub',
        8,
        Optical(
            _reflectance(260, 340, 760, 560, 1500, 2900, 3200, 3300, 3400, 3400, 2700, 1500),
            vegetation=0.6,
            texture=0.2,
            canopy=0.3,
        ),
        _WOOD,
    ),
    CoverClass(
        'beach',
        'Beaches, dunes, sands',
        16,
        Optical(
            _reflectance(1250, 1600, 2100, 2450, 2650, 2800, 2900, 3000, 3050, 3050, 3450, 3050),
            canopy=0.2,
        ),
        Radar(-17.0, -24.0, 0.5),
        0.5,
    ),
    CoverClass('peatbog', 'Peatbogs', 11, _HEATH, _SMOOTH),
    CoverClass(
        'salt_marsh',
        'Salt marshes',
        11,
        Optical(
            _reflectance(420, 540, 800, 760, 1050, 1350, 1450, 1500, 1550, 1550, 850, 480),
            vegetation=0.4,
            texture=0.15,
            canopy=0.5,
        ),
        Radar(-14.5, -20.5, 0.8),
        0.5,
    ),
    CoverClass(
        'lake',
        'Water bodies',
        17,
        Optical(
            _reflectance(250, 320, 420, 260, 220, 170, 160, 140, 120, 120, 70, 45), texture=0.06, canopy=1.0
        ),
        Radar(-19.5, -26.5, 0.4),
        1.0,
    ),
    CoverClass(
        'sea',
        'Sea and ocean',
        17,
        Optical(_reflectance(330, 380, 300, 150, 110, 85, 80, 65, 55, 60, 35, 25), texture=0.05, canopy=1.0),
        Radar(-15.5, -24.5, 0.5),
        1.0,
    ),
)


def _indices(*names: str) -> tuple[int, ...]:
    return tuple(next(i for i, c in enumerate(CLASSES) if c.name == name) for name in names)


ONLY_S1 = _indices('orchard', 'pasture')
ONLY_S2 = _indices('conifer', 'young_wood')
NEED_BOTH = _indices('urban', 'heath', 'arable', 'peatbog')  # radar looks AABB, optical looks ABAB
ORDINARY = tuple(i for i, c in enumerate(CLASSES) if c.weight)
