"""Bands of the sensors: units, native resolution and statistics, one table for each sensor.

Statistics are those of BigEarthNet-MM v1 in sensor units (dB, digital numbers), as published in
bigearthnet-common and used throughout the SeCo and DINO-MM lineage.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Band:
    """One band: ground sampling distance in metres, mean and standard deviation in the sensor's unit."""

    resolution: int
    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Product:
    """How the values of one sensor came about, as far as it is known; '' means that it is not."""

    description: str = ''  # in words
    platforms: tuple[str, ...] = ()  # 'S1A', 'S2B', ...
    processor: str = ''  # and its version
    # Radar
    calibration: Literal['', 'sigma0', 'gamma0', 'beta0'] = ''
    terrain_correction: Literal['', 'none', 'geometric', 'flattened'] = ''
    dem: str = ''  # elevation model of the terrain correction
    orbit: Literal['', 'asc', 'desc', 'mixed'] = ''
    speckle_filter: str = ''  # its name, or 'none'
    border_noise: Literal['', 'kept', 'removed'] = ''
    thermal_noise: Literal['', 'kept', 'removed'] = ''
    # Optical
    level: Literal['', 'L1C', 'L2A'] = ''
    baseline: str = ''  # processing baselines, such as '02.05..02.06'


@dataclasses.dataclass(frozen=True)
class Sensor:
    """A sensor: its bands by name, the unit of their values, and the product that they were measured on."""

    title: str
    unit: str  # 'dB' | 'DN' (digital numbers, reflectance x 10,000)
    bands: Mapping[str, Band]
    product: Product


SENSORS: dict[str, Sensor] = {
    's1': Sensor(
        title='Sentinel-1 GRD IW, sigma0',
        unit='dB',
        product=Product(calibration='sigma0', terrain_correction='geometric', orbit='mixed'),
        bands={
            'VV': Band(10, -12.619993741972035, 5.115911777546365),
            'VH': Band(10, -19.29044597721542, 5.464428464912864),
        },
    ),
    's2': Sensor(
        title='Sentinel-2 L2A surface reflectance',
        unit='DN',
        product=Product(level='L2A'),
        bands={
            'B01': Band(60, 340.76769064, 554.81258967),
            'B02': Band(10, 429.9430203, 572.41639287),
            'B03': Band(10, 614.21682446, 582.87945694),
            'B04': Band(10, 590.23569706, 675.88746967),
            'B05': Band(20, 950.68368468, 729.89827633),
            'B06': Band(20, 1792.46290469, 1096.01480586),
            'B07': Band(20, 2075.46795189, 1273.45393088),
            'B08': Band(10, 2218.94553375, 1365.45589904),
            'B8A': Band(20, 2266.46036911, 1356.13789355),
            'B09': Band(60, 2246.0605464, 1302.3292881),
            'B11': Band(20, 1594.42694882, 1079.19066363),
            'B12': Band(20, 1009.32729131, 818.86747235),
        },
    ),
}
