"""Converts BigEarthNet v2 (reBEN) from its unpacked archives to records.

Reads 480,038 pairs of patches without snow and cloud (14 GeoTIFFs each) and writes the splits train, val and
test as ArrayRecord shards, at native resolution, with the input contract and a conversion report. Download
and unpack first: data/bigearthnet_v2/README.md. That file also has disk space and measured time.

    python main.py convert --config=configs/convert_bigearthnet_v2.py \\
        --config.archive.s1_root=BigEarthNet-S1 --config.archive.s2_root=BigEarthNet-S2 \\
        --config.archive.metadata=metadata.parquet --config.output=DATA --beam.direct_num_workers=0

`--config.archive.with_snow_cloud=True` adds the 69,450 pairs with snow, cloud or shadow, flagged;
`--config.archive.reference_maps=True` adds the map of land cover of each patch.
"""

import ml_collections

from fusmae_jax.shipped.data.convert import settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of the whole archive."""
    return settings('bigearthnet_v2')
