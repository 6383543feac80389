"""Converts SEN12MS from its unpacked archives to records.

Reads 180,662 triplets (three GeoTIFFs each: Sentinel-1, Sentinel-2 L1C with 13 bands, land cover) and writes
the splits train, val and test as ArrayRecord shards, with scene labels derived from the land cover, the input
contract and a conversion report. Download and unpack first: data/sen12ms/README.md, which also has disk space
and measured time.

    python main.py convert --config=configs/convert_sen12ms.py --config.archive.root=SEN12MS \\
        --config.output=DATA --beam.direct_num_workers=0

`--config.archive.val=none` leaves train and test as in the lists of the authors; `drawn`, with `val_scenes`
and `val_seed`, takes other scenes for validation.
"""

import ml_collections

from fusmae_jax.shipped.data.convert import settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of the whole archive."""
    config = settings('sen12ms')
    config.records_per_shard = 128  # records are ten times as large as those of BigEarthNet
    return config
