"""The schema of BigEarthNet v2 records."""

import dataclasses

from fusmae_jax.input.contract import Group, LabelMap, Product

from ..bigearthnet_mm.labels import CLASSES_19, CLASSES_43
from ..bigearthnet_mm.schema import GROUPS
from ..bigearthnet_mm.schema import SCHEMA as V1
from ..records import Field, Schema
from .labels import CODES_43, GLACIERS, UNLABELLED

# A reference map is read like an image of one band, but is a label: it has no modality.
MAP = Group('', ('reference_map',), (120, 120), 'uint16', 'CORINE code', 10.0)

FIELDS = {
    'labels_19': Field('uint8', 'multi-hot, 19-class nomenclature, in the order of version 1', (19,)),
    's1_name': Field('text', 'name of the Sentinel-1 patch, the same as in version 1'),
    's2_name': Field('text', 'patch_id of the Sentinel-2 patch; unique, the key of the record'),
    's2v1_name': Field('text', 'name of the Sentinel-2 patch of version 1 that covers the same ground'),
    'scene': Field('text', 'Sentinel-2 product that the patch was cut from, with its tile'),
    's1_time': Field('int64', 'Sentinel-1 acquisition, Unix seconds, UTC, from the name'),
    's2_time': Field('int64', 'Sentinel-2 acquisition, Unix seconds, UTC, from the name'),
    'epsg': Field('int32', 'EPSG code of the UTM zone'),
    'upper_left': Field('float64', 'easting and northing of the upper left corner, metres', (2,)),
    'tile': Field('text', 'MGRS tile of the Sentinel-2 grid'),
    'grid_cell': Field('int32', 'column H and row V of the patch in its tile, 1.2 km cells', (2,)),
    'country': Field('text', 'country'),
    'snow': Field('uint8', '1 if listed as covered by seasonal snow'),
    'cloud': Field('uint8', '1 if listed as covered by cloud or cloud shadow'),
    'official_split': Field(
        'text', 'train, val or test of the metadata table, where val is called validation'
    ),
}
REFERENCE_MAP = Field(
    'uint16',
    'CORINE 2018 level-3 code of each 10 m pixel, such as 312; 999: not labelled, 0: no data',
    MAP.size,
    indexed=False,
)
# All classes of CORINE 2018; 0 stands where the map ends.
CORINE = LabelMap(
    classes=(*CLASSES_43, 'Glaciers and perpetual snow'),
    values=(*CODES_43, GLACIERS),
    ignore=(0, UNLABELLED),
    size=MAP.size,
    dtype='uint16',
)

SCHEMA = Schema(
    name='bigearthnet_v2',
    version='1.0.0',
    groups=GROUPS,
    fields=FIELDS,
    key='s2_name',
    products={
        's1': V1.products['s1'],
        's2': Product(
            description='Sentinel-2 L1C of the Copernicus Data Space Ecosystem, made L2A by the authors of '
            'the archive with sen2cor 2.11: surface reflectance x 10,000 without offset; N9999 in the names '
            'is what sen2cor writes for a baseline of its own; uint16 as delivered',
            platforms=('S2A', 'S2B'),
            processor='sen2cor 2.11',
            level='L2A',
            baseline='N9999',
        ),
    },
    classes={'labels_19': CLASSES_19},
    split_aliases={'validation': 'val'},
    description='BigEarthNet v2 (reBEN): 549,488 pairs of Sentinel-1 and Sentinel-2 patches of 1.2 km x '
    '1.2 km from ten European countries (June 2017 to May 2018), 480,038 of them free of snow and cloud, '
    'with multi-label land cover and pixel maps of CORINE 2018, and splits by blocks of ground.',
    homepage='https://bigearth.net',
    citation='Clasen, K. N., Hackel, L., Burgert, T., Sumbul, G., Demir, B., Markl, V.: reBEN: Refined '
    'BigEarthNet Dataset for Remote Sensing Image Analysis. IEEE International Geoscience and Remote '
    'Sensing Symposium (IGARSS), 2025. arXiv:2407.03653',
    license='CDLA-Permissive-1.0',
)


def schema(reference_maps: bool) -> Schema:
    """The schema of records with or without the map of land cover."""
    if not reference_maps:
        return SCHEMA
    fields = {**FIELDS, 'reference_map': REFERENCE_MAP}
    return dataclasses.replace(SCHEMA, fields=fields, maps={'reference_map': CORINE})
