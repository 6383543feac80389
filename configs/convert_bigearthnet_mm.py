"""Converts BigEarthNet-MM v1 from its unpacked archives to records.

Reads 590,326 pairs of patches (14 GeoTIFFs and two JSON files each) and writes the splits train, val, test
and rest as ArrayRecord shards, at native resolution, with the input contract and a conversion report.
Download and unpack first: data/bigearthnet_mm/README.md. That file also has disk space and measured time.

    python main.py convert --config=configs/convert_bigearthnet_mm.py \\
        --config.archive.s1_root=BigEarthNet-S1-v1.0 --config.archive.s2_root=BigEarthNet-v1.0 \\
        --config.output=DATA --beam.direct_num_workers=0

Splits of your own: `--config.archive.splits=lists --config.archive.split_lists="('train=FILE', 'val=FILE')"`;
without the pairs under snow or cloud: `--config.archive.leave_out="('snow', 'cloud')"`.

The variant `example` needs no download: it converts the six real pairs that ship with bigearthnet-common, all
into the split train, in seconds and 2 MiB.

    python main.py convert --config=configs/convert_bigearthnet_mm.py:example
"""

import ml_collections

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.shipped.data.convert import settings

VARIANTS = ('', 'example')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The settings of the whole archive, or of the variant 'example'."""
    if variant not in VARIANTS:
        raise InputError(f'configs/convert_bigearthnet_mm.py:{variant}: {nearest(variant, ["example"])}')
    config = settings('bigearthnet_mm')
    if variant == 'example':
        config.example = True
        config.output = 'runs/demo/data'
    return config
