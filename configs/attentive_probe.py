"""Attentive probe of a pretrained encoder on BigEarthNet-MM: S1, S2 and both, with all labels.

A linear head reads means of the patch tokens, each by the weights of a learned query, in place of their
plain mean. Each epoch is a pass of the encoder over the labelled records: tokens of a whole archive have no
room on a disk.

    python main.py attentive_probe --config=configs/attentive_probe.py --workdir=runs/xae_attentive \\
        --config.data.path=data_dir/bigearthnet_mm/1.0.0 --config.encoder.checkpoint=runs/xae

writes rows-attentive.jsonl, differences-attentive.jsonl and heads/ into the workdir.

Variants, joined with commas:
    sen12ms       ten classes, one a record, on the hold-out scenes
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.attentive.config import AttentiveProbe
from fusmae_jax.shipped.configs.linear_probe import sen12ms

VARIANTS = ('sen12ms',)


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `AttentiveProbe`."""
    config = config_dict(AttentiveProbe())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'
    config.labels.fractions = (1.0,)
    for part in variant.split(',') if variant else []:
        if part not in VARIANTS:
            raise InputError(f'configs/attentive_probe.py: no variant {part!r}; {nearest(part, VARIANTS)}')
        sen12ms(config)
    return config
