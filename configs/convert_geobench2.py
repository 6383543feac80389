"""Converts benv2 or so2sat of GEO-Bench-2 from its container to records.

Reads 28,000 pairs (a GeoTIFF of Sentinel-1 and one of Sentinel-2 each, inside one .tortilla file) and writes
the splits train, val and test as ArrayRecord shards, with VV before VH, the input contract and a conversion
report. Download first: data/geobench2/README.md, which also says what is wrong in the file, and what is
different with --config.archive.name=so2sat.

    python main.py convert --config=configs/convert_geobench2.py \\
        --config.archive.path=geobench_benv2.tortilla --config.output=DATA --beam.direct_num_workers=0
"""

import ml_collections

from fusmae_jax.shipped.data.convert import settings


def get_config() -> ml_collections.ConfigDict:
    """The settings of the whole container."""
    return settings('geobench2')
