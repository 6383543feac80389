"""The schema of BigEarthNet-MM records."""

from fusmae_jax.input.contract import Group, Product

from ..records import Field, Schema
from .labels import CLASSES_19, CLASSES_43

EXTENT = 1200  # metres on a side of a patch

GROUPS = {
    's1': Group('s1', ('VV', 'VH'), (120, 120), 'float32', 'dB', 10.0),
    's2_10m': Group('s2', ('B02', 'B03', 'B04', 'B08'), (120, 120), 'uint16', 'DN', 10.0, nodata=(0.0,)),
    's2_20m': Group(
        's2', ('B05', 'B06', 'B07', 'B8A', 'B11', 'B12'), (60, 60), 'uint16', 'DN', 20.0, nodata=(0.0,)
    ),
    's2_60m': Group('s2', ('B01', 'B09'), (20, 20), 'uint16', 'DN', 60.0, nodata=(0.0,)),
}

FIELDS = {
    'labels': Field('uint8', 'multi-hot, 43 CORINE level-3 classes in the order of the archive', (43,)),
    'labels_19': Field('uint8', 'multi-hot, 19-class nomenclature; all zero for 57 pairs', (19,)),
    's1_name': Field('text', 'name of the Sentinel-1 patch'),
    's2_name': Field('text', 'name of the Sentinel-2 patch; unique, the key of the record'),
    's1_scene': Field('text', 'Sentinel-1 product that the patch was cut from'),
    's2_scene': Field('text', 'Sentinel-2 product that the patch was cut from'),
    's1_time': Field('int64', 'Sentinel-1 acquisition, Unix seconds, UTC'),
    's2_time': Field('int64', 'Sentinel-2 acquisition, Unix seconds, UTC'),
    'epsg': Field('int32', 'EPSG code of the UTM zone'),
    'upper_left': Field('float64', 'easting and northing of the upper left corner, metres', (2,)),
    'tile': Field('text', 'MGRS tile of the Sentinel-2 grid'),
    'grid_cell': Field('int32', 'column H and row V of the patch in its tile, 1.2 km cells', (2,)),
    'country': Field('text', 'country; empty where the published table does not list the pair'),
    'season': Field('text', 'season of the Sentinel-2 image; empty as for country'),
    'snow': Field('uint8', '1 if listed as covered by seasonal snow'),
    'cloud': Field('uint8', '1 if listed as covered by cloud or cloud shadow'),
    'official_split': Field('text', 'train, val or test of the official lists, rest for every other pair'),
}

# Total 590,326. `rest` is what the official lists leave out: snow, cloud, no label among the 19 classes.
PUBLISHED = {'train': 269_695, 'val': 123_723, 'test': 125_866, 'rest': 71_042}

SCHEMA = Schema(
    name='bigearthnet_mm',
    version='1.0.0',
    groups=GROUPS,
    fields=FIELDS,
    key='s2_name',
    products={
        's1': Product(
            description='Sentinel-1 IW GRDH, VV and VH, terrain-corrected by the authors of the archive with '
            'the SNAP toolbox to 10 m on the UTM grid of the Sentinel-2 tile; float32 dB as delivered',
            platforms=('S1A', 'S1B'),
            processor='SNAP',
            calibration='sigma0',
            terrain_correction='geometric',
            orbit='mixed',
        ),
        's2': Product(
            description='Sentinel-2 L2A of sen2cor, surface reflectance x 10,000 without offset (baselines '
            'before 04.00); B10 does not exist in L2A; uint16 as delivered',
            platforms=('S2A', 'S2B'),
            processor='sen2cor',
            level='L2A',
            baseline='02.05..02.06',
        ),
    },
    classes={'labels': CLASSES_43, 'labels_19': CLASSES_19},
    split_aliases={'all_minus_val_test': 'train+rest'},
    description='BigEarthNet-MM v1: 590,326 pairs of Sentinel-1 and Sentinel-2 patches of 1.2 km x 1.2 km '
    'from ten European countries (June 2017 to May 2018), with multi-label land cover of CORINE 2018.',
    homepage='https://bigearth.net',
    citation='Sumbul, G., de Wall, A., Kreuziger, T., Marcelino, F., Costa, H., Benevides, P., Caetano, M., '
    'Demir, B., Markl, V.: BigEarthNet-MM: A Large-Scale, Multimodal, Multilabel Benchmark Archive for '
    'Remote Sensing Image Classification and Retrieval. IEEE Geoscience and Remote Sensing Magazine 9(3), '
    '174-180, 2021. doi:10.1109/MGRS.2021.3089174',
    license='CDLA-Permissive-1.0',
)
