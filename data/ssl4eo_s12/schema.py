"""The schema of SSL4EO-S12 records, by version of the archive and level of its Sentinel-2 images."""

import functools
from typing import Literal

from fusmae_jax.input.contract import Group, Product

from ..records import Field, Schema

Version = Literal['1.1', '1.0']
Optical = Literal['S2L2A', 'S2L1C']

SIZE, RESOLUTION, TIMES = 264, 10, 4  # pixels a side at 10 m; time stamps of a location
OFFSET = 1000  # what version 1.1 adds to every digital number of Sentinel-2
S1_BANDS = ('VV', 'VH')
S2_BANDS = {
    'S2L2A': ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12'),
    'S2L1C': ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11', 'B12'),
}
NATIVE = {10: ('B02', 'B03', 'B04', 'B08'), 20: ('B05', 'B06', 'B07', 'B8A', 'B11', 'B12')}  # 60 m: the rest
# Classes of `cloud_mask` in version 1.1, by number.
MASK = ('land', 'water', 'snow', 'thin cloud', 'thick cloud', 'cloud shadow', 'no data')
COVERED = 0.1  # share of a patch from which on it counts as cloudy or snowy

# Records of the whole archive: locations times four.
PUBLISHED = {
    '1.1': {'train': 243_968 * TIMES, 'val': 2_176 * TIMES},
    '1.0': {'train': 251_079 * TIMES},
}

_FIELDS = {
    'sample_id': Field('text', 'location and time stamp, such as 0080717_0; unique, the key of the record'),
    'scene': Field('text', 'the location: its four time stamps show the same ground'),
    'time_index': Field('uint8', 'place of the Sentinel-2 image among the four of its location, by date'),
    's1_name': Field('text', 'Sentinel-1 product that the patch was cut from'),
    's2_name': Field('text', 'Sentinel-2 granule that the patch was cut from, as Earth Engine names it'),
    's1_time': Field('int64', 'Sentinel-1 acquisition, Unix seconds, UTC'),
    's2_time': Field('int64', 'Sentinel-2 acquisition, Unix seconds, UTC'),
    'tile': Field('text', 'MGRS tile of the Sentinel-2 granule'),
}
_FIELDS_1_1 = {
    'epsg': Field('int32', 'EPSG code of the UTM zone'),
    'upper_left': Field('float64', 'easting and northing of the upper left corner, metres', (2,)),
    'center': Field('float64', 'latitude and longitude of the centre, degrees', (2,)),
    'mask_share': Field(
        'float32', f'share of the patch under {", ".join(MASK)}; NaN where the file has no mask', (len(MASK),)
    ),
    'cloud_share': Field('float32', 'share of the patch under thin or thick cloud; NaN without a mask'),
    'cloud': Field('uint8', f'1 if thin or thick cloud covers {COVERED:.0%} or more, else or unknown 0'),
    'snow': Field('uint8', f'1 if snow covers {COVERED:.0%} or more, else or unknown 0'),
}
_FIELDS_1_0 = {
    'epsg': Field('int32', 'always 4326: longitude and latitude'),
    'upper_left': Field('float64', 'longitude and latitude of the upper left corner, degrees', (2,)),
    'pixel_size': Field('float64', 'longitude and latitude across a pixel of 10 m, degrees', (2,)),
    's1_upper_left': Field('float64', 'as upper_left, of the Sentinel-1 patch: up to some pixels off', (2,)),
}


@functools.cache
def schema(version: Version, optical: Optical) -> Schema:
    """The schema of one version of the archive with one level of Sentinel-2."""
    level = optical.removeprefix('S2')
    return Schema(
        name=f'ssl4eo_s12_{level.lower()}',
        version=f'{version}.0',
        groups=_groups_1_1(optical) if version == '1.1' else _groups_1_0(optical),
        fields=_FIELDS | (_FIELDS_1_1 if version == '1.1' else _FIELDS_1_0),
        key='sample_id',
        products={'s1': _s1(version), 's2': _s2(version, level)},
        description=f'SSL4EO-S12 v{version}: Sentinel-1 GRD and Sentinel-2 {level} patches of 2.64 km x '
        '2.64 km around the 10,000 largest cities of the world, four seasons from December 2019 to October '
        '2021; no labels.',
        homepage='https://github.com/DLR-MF-DAS/SSL4EO-S12-v1.1'
        if version == '1.1'
        else 'https://github.com/zhu-xlab/SSL4EO-S12',
        citation=_CITATION_1_1 if version == '1.1' else _CITATION_1_0,
        license='CC-BY-4.0',
    )


def _groups_1_1(optical: Optical) -> dict[str, Group]:
    size = (SIZE, SIZE)
    return {
        's1': Group('s1', S1_BANDS, size, 'float16', 'dB', 10.0, nodata=(0.0,)),
        's2': Group('s2', S2_BANDS[optical], size, 'int16', 'DN', 10.0, offset=-OFFSET, nodata=(0.0,)),
    }


def _groups_1_0(optical: Optical) -> dict[str, Group]:
    coarse = tuple(band for band in S2_BANDS[optical] if band not in (*NATIVE[10], *NATIVE[20]))
    groups = {'s1': Group('s1', S1_BANDS, (SIZE, SIZE), 'float32', 'dB', 10.0, nodata=(0.0,))}
    for metres, bands in (*NATIVE.items(), (60, coarse)):
        side = SIZE * RESOLUTION // metres
        groups[f's2_{metres}m'] = Group(
            's2', bands, (side, side), 'uint16', 'DN', float(metres), nodata=(0.0,)
        )
    return groups


def _s1(version: Version) -> Product:
    kept = (
        'resampled by the authors to the Sentinel-2 grid; float16 dB as delivered'
        if version == '1.1'
        else 'up to some pixels off the Sentinel-2 patch; float32 dB as delivered'
    )
    return Product(
        description=f'Sentinel-1 IW GRDH, VV and VH, of Google Earth Engine (COPERNICUS/S1_GRD), {kept}',
        platforms=('S1A', 'S1B'),
        processor='Sentinel-1 Toolbox, run by Google Earth Engine',
        calibration='sigma0',
        terrain_correction='geometric',
        dem='SRTM 30 m, ASTER beyond 60 degrees',
        orbit='mixed',
        speckle_filter='none',
        border_noise='removed',
        thermal_noise='removed',
    )


def _s2(version: Version, level: str) -> Product:
    kept = (
        f'all bands resampled by the authors to 10 m, and {OFFSET} added to every value so that it reads as '
        'of baseline 04.00; int16 as delivered'
        if version == '1.1'
        else 'reflectance x 10,000 without offset, at native resolution; uint16 as delivered'
    )
    what = 'surface' if level == 'L2A' else 'top of the atmosphere'
    return Product(
        description=f'Sentinel-2 {level} ({what}) of Google Earth Engine, taken before January 2022; {kept}',
        platforms=('S2A', 'S2B'),
        processor='sen2cor' if level == 'L2A' else '',
        level='L2A' if level == 'L2A' else 'L1C',
        baseline='before 04.00',
    )


_CITATION_1_0 = (
    'Wang, Y., Ait Ali Braham, N., Xiong, Z., Liu, C., Albrecht, C. M., Zhu, X. X.: SSL4EO-S12: A '
    'Large-Scale Multimodal, Multitemporal Dataset for Self-Supervised Learning in Earth Observation. IEEE '
    'Geoscience and Remote Sensing Magazine 11(3), 98-106, 2023. doi:10.1109/MGRS.2023.3281651'
)
_CITATION_1_1 = (
    'Blumenstiel, B., Ait Ali Braham, N., Albrecht, C. M., Maurogiovanni, S., Fraccaro, P.: SSL4EO-S12 '
    'v1.1: A Multimodal, Multiseasonal Dataset for Pretraining, Updated. arXiv:2503.00168, 2025; and '
    f'{_CITATION_1_0}'
)
