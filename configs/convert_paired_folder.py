"""Converts a user's own Sentinel-1 and Sentinel-2 GeoTIFFs to records.

Any number of files of any size, any bands, one sensor or both; they are cut into tiles. What the numbers mean
has to be said: s1_unit, s2_unit, and s2_offset where the metadata of the files do not say it. All settings:
data/paired_folder/settings.py; how they work, and what takes how long: data/paired_folder/README.md.

    python main.py convert --config=configs/convert_paired_folder.py \\
        --config.archive.s1_root=MINE/s1 --config.archive.s2_root=MINE/s2 \\
        --config.archive.s1_unit=dB --config.archive.s2_unit=DN --config.archive.s2_offset=0 \\
        --config.output=DATA --beam.direct_num_workers=0

The variant `example` needs no data: it generates three pairs of files with a table of labels and splits.

    python main.py convert --config=configs/convert_paired_folder.py:example
"""

import ml_collections

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.shipped.data.convert import settings

VARIANTS = ('', 'example')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The settings of a user's own folders, or of the variant 'example'."""
    if variant not in VARIANTS:
        raise InputError(f'configs/convert_paired_folder.py:{variant}: {nearest(variant, ["example"])}')
    config = settings('paired_folder')
    if variant == 'example':
        config.example = True
        config.output = 'runs/paired_folder_example'
    return config
