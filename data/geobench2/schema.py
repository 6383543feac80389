"""The schema of benv2 records, the selection of BigEarthNet v2 in GEO-Bench-2."""

import dataclasses

from fusmae_jax.input.contract import Group

from ..bigearthnet_mm.labels import CLASSES_19
from ..bigearthnet_v2.schema import FIELDS as V2
from ..bigearthnet_v2.schema import SCHEMA as SCHEMA_V2
from ..records import Field, Schema

SIZE, RESOLUTION = (120, 120), 10.0
# Of the whole benchmark; the file that it tests itself with has nine samples.
PUBLISHED = {'train': 20_000, 'val': 4_000, 'test': 4_000}

S1 = Group('s1', ('VV', 'VH'), SIZE, 'float32', 'dB', RESOLUTION)
S2_BANDS = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')
S2 = Group('s2', S2_BANDS, SIZE, 'uint16', 'DN', RESOLUTION, nodata=(0.0,))

_SAME = (
    *('labels_19', 's2_name', 'scene', 's2_time', 'epsg', 'upper_left', 'tile', 'grid_cell', 'country'),
    *('snow', 'cloud'),
)
FIELDS = {
    **{name: V2[name] for name in _SAME},
    'sample': Field('text', 'name of the sample in the container'),
    'additional_test': Field('uint8', '1 if taken from train as an additional test'),
    'official_split': Field('text', 'train, val or test of the benchmark, where val is called validation'),
}

_V2 = SCHEMA_V2.products
SCHEMA = Schema(
    name='geobench2_benv2',
    version='1.0.0',
    groups={'s1': S1, 's2': S2},
    fields=FIELDS,
    key='s2_name',
    products={
        's1': dataclasses.replace(
            _V2['s1'],
            description=f'{_V2["s1"].description}; the container has VH first, the records have VV first',
        ),
        's2': dataclasses.replace(
            _V2['s2'],
            description='Sentinel-2 of BigEarthNet v2 (L2A by sen2cor 2.11, surface reflectance x 10,000 '
            'without offset), whose bands of 20 and 60 m the authors of the benchmark brought to 10 m with '
            'bilinear interpolation; uint16 as delivered',
        ),
    },
    classes={'labels_19': CLASSES_19},
    split_aliases={'validation': 'val'},
    description='benv2 of GEO-Bench-2: 28,000 pairs of BigEarthNet v2 (reBEN), Sentinel-1 and Sentinel-2 '
    'patches of 1.2 km x 1.2 km at 10 m with multi-label land cover of 19 classes.',
    homepage='https://github.com/The-AI-Alliance/GEO-Bench-2',
    citation=SCHEMA_V2.citation,
    license=SCHEMA_V2.license,
)
