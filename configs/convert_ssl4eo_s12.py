"""Converts SSL4EO-S12 from its downloaded files to records.

Version 1.1: reads 3,846 zarr files of Sentinel-1 and as many of Sentinel-2, 246,144 locations with four time
stamps, and writes the splits train and val: 984,576 pairs of 264 x 264 pixels. Download first:
data/ssl4eo_s12/README.md, which also has disk space and measured time.

    python main.py convert --config=configs/convert_ssl4eo_s12.py --config.archive.root=SSL4EO-S12-v1.1 \\
        --config.output=DATA --beam.direct_num_workers=0

Variants: `l1c` takes Sentinel-2 at the top of the atmosphere, with B10, instead of surface reflectance; `v1`
and `v1_l1c` read version 1.0, a GeoTIFF for each band (251,079 locations, all in train).

    python main.py convert --config=configs/convert_ssl4eo_s12.py:v1 --config.archive.root=SSL4EO-S12 \\
        --config.output=DATA --beam.direct_num_workers=0
"""

import ml_collections

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.shipped.data.convert import settings

# Variant -> version of the archive, level of Sentinel-2.
VARIANTS = {
    '': ('1.1', 'S2L2A'),
    'l1c': ('1.1', 'S2L1C'),
    'v1': ('1.0', 'S2L2A'),
    'v1_l1c': ('1.0', 'S2L1C'),
}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The settings of the whole archive in one of its variants."""
    if variant not in VARIANTS:
        raise InputError(
            f'configs/convert_ssl4eo_s12.py:{variant}: {nearest(variant, filter(None, VARIANTS))}'
        )
    config = settings('ssl4eo_s12')
    config.archive.version, config.archive.optical = VARIANTS[variant]
    return config
