"""k nearest neighbours on frozen features of BigEarthNet-MM: nothing is trained, nothing is settled.

Cosine similarity, k = 20, a neighbour of similarity s counts exp(s / 0.07). Takes the features that
`linear_probe` left in the same workdir, or extracts them.

    python main.py knn --config=configs/knn.py --workdir=runs/xae_probe \\
        --config.data.path=data_dir/bigearthnet_mm/1.0.0 --config.encoder.checkpoint=runs/xae

The comparison is exact: 256 records at a time with all labelled ones.

Variants, joined with commas:
    sen12ms       ten classes, one a record, on the hold-out scenes, with all labels
    crops         with sen12ms: the mean over four quarters of 128 px, nearer the scale of pretraining
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.config import Knn
from fusmae_jax.shipped.configs.linear_probe import sen12ms

VARIANTS = ('sen12ms', 'crops')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `Knn`."""
    config = config_dict(Knn())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'
    for part in variant.split(',') if variant else []:
        if part == 'sen12ms':
            sen12ms(config)
        elif part == 'crops':
            config.image = 'crops'
        else:
            raise InputError(f'configs/knn.py: no variant {part!r}; {nearest(part, VARIANTS)}')
    return config
