"""Linear probe of a pretrained encoder on BigEarthNet-MM: S1, S2 and both, with 1 %, 10 % and all labels.

Features are extracted once, then a head is trained for each learning rate and seed in one compiled program
and settled on the validation split. The paper says 1 % of the labels, 20 epochs and a batch of 128; the
learning rate is swept because it does not say it. Extraction takes most of the time: three passes over
519,284 pairs, and three more for each baseline that has weights.

    python main.py linear_probe --config=configs/linear_probe.py --workdir=runs/xae_probe \\
        --config.data.path=data_dir/bigearthnet_mm/1.0.0 --config.encoder.checkpoint=runs/xae

writes rows-linear.jsonl, differences-linear.jsonl, features/ and heads/ into the workdir; a rerun reads the
features.

Variants, joined with commas:
    paper         mean of the patch tokens, 1 % of the labels (five draws x three seeds)
    features      every pooled feature, each with and without batch norm
    sen12ms       ten classes, one a record, on the hold-out scenes; 256 px brought to the model's size. With
                  or without `paper`: all labels, 10 epochs, batches of 256, as the paper says of this set
    crops         with sen12ms: the mean over four quarters of 128 px, nearer the scale of pretraining
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.config import PAPER_HEAD, POOLED, LinearProbe

VARIANTS = ('paper', 'features', 'sen12ms', 'crops')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `LinearProbe`."""
    config = config_dict(LinearProbe())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'
    parts = variant.split(',') if variant else []
    for part in parts:
        if part == 'paper':
            config.labels.fractions = (0.01,)
        elif part == 'features':
            config.features, config.batch_norm = POOLED, (False, True)
        elif part == 'crops':
            config.image = 'crops'
        elif part not in VARIANTS:
            raise InputError(f'configs/linear_probe.py: no variant {part!r}; {nearest(part, VARIANTS)}')
    # After the others, in whatever order they are named: `paper` means another thing on this set.
    if 'sen12ms' in parts:
        sen12ms(config)
        config.epochs, config.batch_size = PAPER_HEAD['single_label']
    return config


def sen12ms(config: ml_collections.ConfigDict) -> None:
    """Another data set: all of its labels, its scenes, its own statistics (top-of-atmosphere reflectance)."""
    config.data.path = 'data_dir/sen12ms/1.0.0'
    config.data.labels, config.data.kind = 'igbp10_single', 'single_label'
    config.labels.fractions = (1.0,)
    config.intervals.cluster = 'scene'
    config.encoder.stats = 'dataset'
    config.encoder.accept = ('level', 'resolution')  # L1C; an image covers 2.56 km
