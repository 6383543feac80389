"""Embeds SSL4EO-S12-downstream for NeuCo-Bench: a CSV with a row `id,0,1,...` for each location.

    python main.py neuco --data=SSL4EO-S12-downstream --checkpoint=DIR --out=embeddings.csv

`--data` is the folder with s1, s2l2a and s2l1c in it, or the one above with `data`. Each season is encoded,
and the mean is written: at most 1,024 numbers, the limit of the benchmark.

    --config.sensors="('s1',)"         Sentinel-1 alone; ('s2',), or ('s1', 's2') for both
    --config.level=l1c                 top of the atmosphere instead of L2A
    --config.s2_offset=-1000           for files with the 1000 of SSL4EO-S12 v1.1; as published they have none
    --config.accept="('resolution',)"  a difference from the training data that is meant
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.shipped.data.neuco.settings import NeucoConfig


def get_config() -> ml_collections.ConfigDict:
    """Every field of `NeucoConfig`."""
    return config_dict(NeucoConfig())
