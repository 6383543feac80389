"""DINO-MM pretraining on BigEarthNet-MM: ViT-S/8 over 12 + 2 stacked bands, student and teacher.

Follows the published code of Wang et al. (IGARSS 2022): 2 crops of 112 px and 8 of 48 px, a sensor dropped
from every other crop, 65,536 outputs, 100 epochs of AdamW at batch 256 in float32 (there on 4 GPUs, 64 pairs
each). A baseline of the Fus-MAE paper, which evaluates the published weights.

    python main.py pretrain --config=configs/pretrain_dino_mm.py --workdir=runs/dino_mm \
        --config.data.path=data_dir/bigearthnet_mm/1.0.0

Variants:
    (none)    the published settings
    small     a ViT of width 192 and depth 4 with 4,096 outputs and 4 local crops, for one small machine
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.config.run import dino_mm
from fusmae_jax.errors import InputError


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration of a variant, with every field of `config.run.Config` and its group `dino`."""
    if variant not in ('', 'small'):
        raise InputError(f"configs/pretrain_dino_mm.py: no variant {variant!r}; valid: 'small', or none")
    config = config_dict(dino_mm())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'  # what convert_bigearthnet_mm.py writes
    config.data.train_split = 'all_minus_val_test'
    if variant == 'small':
        config.name = 'pretrain_dino_mm_small'
        config.model.size = 'custom'
        config.model.width, config.model.depth, config.model.heads = 192, 4, 6
        config.dino.local_crops.count = 4
        config.dino.head.out_dim, config.dino.head.hidden = 4096, 512
        config.train.batch_size = 32
        config.optimizer.learning_rate = 5e-4 * 32 / 256
    return config
