"""The schema of Sen1Floods11's hand-labelled chips, and what is published about its floods.

Bonafilia, Tellman, Anderson and Issenberg, Sen1Floods11 (CVPR Workshops 2020): 446 chips of 512 x 512 pixels
with hand labels, 252 for training, 89 for validation and 90 for testing, and the 15 of Bolivia, an event
that is in no other split. Bands, types and values are those of the files of version 1.1; dates and orbits
those of Sen1Floods11_Metadata.geojson.
"""

import functools
from typing import NamedTuple

from fusmae_jax.input.contract import Group, LabelMap, Product, Targets

from ..records import Field, Schema

SIZE = 512  # pixels a side of a chip
# Degrees a pixel: 10 m at the equator, along meridians everywhere; 7.9 m from west to east in Spain.
STEP = 8.983152841195215e-05
S1_BANDS = ('VV', 'VH')
S2_BANDS = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11', 'B12')
CLASSES = ('Not water', 'Water')
NO_LABEL = -1

# Split -> the list of its chips.
LISTS = {name: f'flood_{name}_data.csv' for name in ('train', 'valid', 'test', 'bolivia')}
SPLITS = {'train': 'train', 'valid': 'val', 'test': 'test', 'bolivia': 'bolivia'}
PUBLISHED = {'train': 252, 'val': 89, 'test': 90, 'bolivia': 15}


class Event(NamedTuple):
    """A flood, as the published table of events has it."""

    country: str
    s1_date: str
    s2_date: str
    orbit: str  # of Sentinel-1


# By the first part of the names of its chips.
EVENTS = {
    'Bolivia': Event('Bolivia', '2018-02-15', '2018-02-15', 'desc'),
    'Ghana': Event('Ghana', '2018-09-18', '2018-09-19', 'asc'),
    'India': Event('India', '2016-08-12', '2016-08-12', 'desc'),
    'Mekong': Event('Cambodia', '2018-08-05', '2018-08-04', 'asc'),
    'Nigeria': Event('Nigeria', '2018-09-21', '2018-09-20', 'asc'),
    'Pakistan': Event('Pakistan', '2017-06-28', '2017-06-28', 'desc'),
    'Paraguay': Event('Paraguay', '2018-10-31', '2018-10-31', 'desc'),
    'Somalia': Event('Somalia', '2018-05-07', '2018-05-05', 'asc'),
    'Spain': Event('Spain', '2019-09-17', '2019-09-18', 'desc'),
    'Sri-Lanka': Event('Sri-Lanka', '2017-05-30', '2017-05-28', 'desc'),
    'USA': Event('USA', '2019-05-22', '2019-05-22', 'asc'),
}

FIELDS = {
    'name': Field('text', 'event and number of the chip, and the corner of a tile in it; unique, the key'),
    'scene': Field('text', 'event and number of the chip'),
    'event': Field('text', 'the flood, as the names of the files have it'),
    'country': Field('text', 'country of the flood'),
    's1_name': Field('text', 'Sentinel-1 file without its ending, and the corner of the tile'),
    's2_name': Field('text', 'Sentinel-2 file without its ending, and the corner of the tile'),
    's1_date': Field('text', 'day of the Sentinel-1 acquisition of the event, UTC'),
    's2_date': Field('text', 'day of the Sentinel-2 acquisition of the event, UTC'),
    'orbit': Field('text', 'asc or desc: the pass of Sentinel-1'),
    'epsg': Field('int32', 'always 4326: longitude and latitude'),
    'upper_left': Field('float64', 'longitude and latitude of the upper left corner, degrees', (2,)),
    'labelled_share': Field('float32', 'share of all pixels that have a label'),
    'water_share': Field('float32', 'share of the labelled pixels that are water; NaN without any'),
    'official_split': Field(
        'text', 'train, val, test or bolivia, by the lists of the authors; empty: in none'
    ),
}


@functools.cache
def schema(tile: int = SIZE) -> Schema:
    """The schema of records of whole chips, or of tiles of so many pixels a side."""
    size = (tile, tile)
    water = LabelMap(CLASSES, (0, 1), (NO_LABEL,), size, 'int16')
    meaning = 'surface water by hand, on Sentinel-1 and Sentinel-2: 0 not water, 1 water, -1 not valid'
    return Schema(
        name='sen1floods11',
        version='1.1.0',
        groups={
            's1': Group('s1', S1_BANDS, size, 'float32', 'dB', 10.0),
            's2': Group('s2', S2_BANDS, size, 'int16', 'DN', 10.0, nodata=(0.0,)),
        },
        fields={**FIELDS, 'water': Field('int16', meaning, size, indexed=False)},
        key='name',
        products=PRODUCTS,
        maps={'water': water},
        targets={'water_share': Targets(('water share',), ('1',))},
        split_aliases={'valid': 'val'},
        description='Sen1Floods11, version 1.1, hand-labelled: 446 chips of Sentinel-1 and Sentinel-2 of '
        'eleven floods from 2016 to 2019, with a label of water for each pixel.',
        homepage='https://github.com/cloudtostreet/Sen1Floods11',
        citation='Bonafilia, D., Tellman, B., Anderson, T., Issenberg, E.: Sen1Floods11: a georeferenced '
        'dataset to train and test deep learning flood algorithms for Sentinel-1. IEEE/CVF Conference on '
        'Computer Vision and Pattern Recognition Workshops, 210-211, 2020',
        license='see the homepage',
    )


PRODUCTS = {
    's1': Product(
        description='Sentinel-1 IW GRD, VV and VH, of Google Earth Engine (COPERNICUS/S1_GRD), on the pixels '
        'of the Sentinel-2 image; float32 dB as delivered, NaN where nothing was measured',
        platforms=('S1A', 'S1B'),
        processor='Sentinel-1 Toolbox, run by Google Earth Engine',
        calibration='sigma0',
        terrain_correction='geometric',
        dem='SRTM 30 m, ASTER beyond 60 degrees',
        orbit='mixed',
        speckle_filter='none',
        border_noise='removed',
        thermal_noise='removed',
    ),
    's2': Product(
        description='Sentinel-2 L1C of Google Earth Engine, top-of-atmosphere reflectance x 10,000 without '
        'offset (2016 to 2019, before baseline 04.00), all 13 bands brought to one grid of degrees by the '
        'authors; int16 as delivered, 0 where nothing was measured',
        platforms=('S2A', 'S2B'),
        level='L1C',
    ),
}
SCHEMA = schema()
