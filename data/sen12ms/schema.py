"""The schema of SEN12MS records."""

import dataclasses

from fusmae_jax.input.contract import Group, LabelMap, Product

from ..records import Field, Schema
from .labels import CLASSES_10, IGBP, UNCLASSIFIED

S2_BANDS = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11', 'B12')

GROUPS = {
    's1': Group('s1', ('VV', 'VH'), (256, 256), 'float32', 'dB', 10.0),
    's2': Group('s2', S2_BANDS, (256, 256), 'uint16', 'DN', 10.0, nodata=(0.0,)),
}

FIELDS = {
    'igbp': Field('float32', 'share of the IGBP classes 1 to 17 among the classified pixels', (17,)),
    'igbp_unclassified': Field('float32', 'share of all pixels that have no IGBP class'),
    'igbp10': Field('int32', 'index of the simplified IGBP class with the largest share'),
    'igbp10_single': Field('uint8', 'one-hot, the same class among the ten simplified ones', (10,)),
    'igbp10_multi': Field('uint8', 'multi-hot, simplified IGBP classes with a share of at least 0.1', (10,)),
    's1_name': Field('text', 'name of the Sentinel-1 image'),
    's2_name': Field('text', 'name of the Sentinel-2 image; unique, the key of the record'),
    'scene': Field('text', 'season folder and scene number; patches of a scene overlap'),
    'season': Field('text', 'season of both images, by the calendar of the northern hemisphere'),
    'epsg': Field('int32', 'EPSG code of the UTM zone'),
    'upper_left': Field('float64', 'easting and northing of the upper left corner, metres', (2,)),
    'official_split': Field(
        'text', 'test for the hold-out scenes of the authors, val for their validation scenes, else train'
    ),
}

# Of 10 m, on which the authors repeat the MODIS pixels of 500 m.
MAPS = {
    'igbp_map': LabelMap(IGBP, tuple(range(1, 18)), UNCLASSIFIED, GROUPS['s2'].size),
    'igbp10_map': LabelMap(CLASSES_10, tuple(range(1, 11)), (0,), GROUPS['s2'].size),
}
MAP_FIELDS = {
    'igbp_map': Field(
        'uint8',
        'IGBP class of each 10 m pixel, 1 to 17; 0 and 255: none',
        MAPS['igbp_map'].size,
        indexed=False,
    ),
    'igbp10_map': Field(
        'uint8',
        'simplified IGBP class of each 10 m pixel, 1 to 10 as in DFC2020; 0: none',
        MAPS['igbp10_map'].size,
        indexed=False,
    ),
}

# Triplets in the authors' lists of scenes. Their training list has 162,555 = 144,006 + 18,550 - 1 names: it
# leaves out ROIs1868_summer_s1_146_p202, which has NaN, and which is kept here.
PUBLISHED = {'train': 144_006, 'val': 18_550, 'test': 18_106}

SCHEMA = Schema(
    name='sen12ms',
    version='1.0.0',
    groups=GROUPS,
    fields=FIELDS,
    key='s2_name',
    products={
        's1': Product(
            description='Sentinel-1 GRD, sigma0 of VV and VH in dB on the 10 m UTM grid of the Sentinel-2 '
            'image, without speckle filter; float32 as delivered',
            platforms=('S1A', 'S1B'),
            calibration='sigma0',
            terrain_correction='geometric',
            speckle_filter='none',
        ),
        's2': Product(
            description='Sentinel-2 L1C, top-of-atmosphere reflectance x 10,000 without offset (published in '
            '2019, before baseline 04.00); cloud-free mosaics of a season, all 13 bands brought to 10 m by '
            'the authors of the archive; uint16 as delivered',
            platforms=('S2A', 'S2B'),
            level='L1C',
        ),
    },
    classes={'igbp10_single': CLASSES_10, 'igbp10_multi': CLASSES_10},
    split_aliases={'all_minus_test': 'train+val'},
    description='SEN12MS: 180,662 triplets of Sentinel-1 and Sentinel-2 patches of 2.56 km x 2.56 km and '
    'MODIS land cover, from all inhabited continents and four seasons; scene labels follow from the IGBP '
    'layer of the land cover.',
    homepage='https://mediatum.ub.tum.de/1474000',
    citation='Schmitt, M., Hughes, L. H., Qiu, C., Zhu, X. X.: SEN12MS - A Curated Dataset of Georeferenced '
    'Multi-Spectral Sentinel-1/2 Imagery for Deep Learning and Data Fusion. ISPRS Annals of the '
    'Photogrammetry, Remote Sensing and Spatial Information Sciences IV-2/W7, 153-160, 2019. '
    'doi:10.5194/isprs-annals-IV-2-W7-153-2019',
    license='CC-BY-4.0',
)


def schema(maps: bool) -> Schema:
    """The schema of records with or without the maps of land cover."""
    return dataclasses.replace(SCHEMA, fields={**FIELDS, **MAP_FIELDS}, maps=MAPS) if maps else SCHEMA
