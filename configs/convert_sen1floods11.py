"""Converts the hand-labelled chips of Sen1Floods11 to records.

Reads 446 chips of eleven floods (Sentinel-1, Sentinel-2 L1C with 13 bands, a map of water by hand) and writes
the splits train, val, test and bolivia by the lists of the authors. Download first:
data/sen1floods11/README.md.

    python main.py convert --config=configs/convert_sen1floods11.py --config.archive.root=v1.1 \\
        --config.output=DATA --beam.direct_num_workers=0

`--config.archive.tile=128` cuts each chip into 16 records, as large on the ground as what models of
patches of some 1.2 km learned from.
"""

import ml_collections

from fusmae_jax.shipped.data.convert import settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of the whole archive."""
    config = settings('sen1floods11')
    config.records_per_shard = 64
    return config
