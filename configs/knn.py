"""k nearest neighbours on frozen features of BigEarthNet-MM: nothing is trained, nothing is settled.

Cosine similarity, k = 20, a neighbour of similarity s counts exp(s / 0.07). Takes the features that
`linear_probe` left in the same workdir, or extracts them.

    python main.py knn --config=configs/knn.py --workdir=runs/xae_probe \\
        --config.data.path=data_dir/bigearthnet_mm/1.0.0 --config.encoder.checkpoint=runs/xae

The comparison is exact: 256 records at a time with all labelled ones.
"""

import ml_collections

from fusmae_jax.config_build import config_dict
from fusmae_jax.errors import InputError
from fusmae_jax.eval.evaluation_config import Knn


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The only variant; every field of `Knn`."""
    if variant:
        raise InputError(f'configs/knn.py has no variants, found {variant!r}')
    config = config_dict(Knn())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'
    return config
