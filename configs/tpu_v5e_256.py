"""Fus-MAE (XAE), ViT-H/14, on a TPU v5e-256: 64 hosts with 4 chips each.

A recipe for pretraining from a large archive; the paper stops at ViT-B. Batch 4,096 with the learning rate
that MultiMAE's rule gives for it (1e-4 x 4096 / 256), 800 epochs with 40 of warm-up, as MAE trains models of
this size. Parameters and optimizer are split over the 16 chips of a row; the rest of the mesh is data.

    python main.py plan --config=configs/tpu_v5e_256.py --topology=v5e:16x16

says what it needs: at an assumed utilisation of 40 % the 800 epochs over 340,737 pairs take 1.9 hours, and
each host reads 630 records (173 MB) a second. Of variant L: 0.7 hours, and 1,680 records a second, which a
host of 4 chips must be shown to deliver first (`python main.py bench input`). More in docs/scale.md.

On every host, with data and working directory where all of them see both:

    python main.py pretrain --config=configs/tpu_v5e_256.py --workdir=gs://BUCKET/runs/vit_h \
        --config.data.path=gs://BUCKET/bigearthnet_mm/1.0.0

Variants:
    H (default)    ViT-H/14, fsdp=16
    L              ViT-L/16, fsdp=1: every chip holds the whole state
"""

import ml_collections

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.configs import pretrain


def get_config(variant: str = 'H') -> ml_collections.ConfigDict:
    """The configuration of a variant, with every field of `fusmae_jax.config.run.Config`."""
    if variant not in ('H', 'L'):
        raise InputError(f"configs/tpu_v5e_256.py: no variant {variant!r}; valid: 'H', 'L'")
    config = pretrain.get_config(f'xae,{variant}')
    config.name = f'tpu_v5e_256_{variant}'
    config.train.batch_size = 4096
    config.train.epochs = 800.0
    config.train.compute_dtype = 'bfloat16'
    config.optimizer.learning_rate = 1e-4 * 4096 / 256
    config.optimizer.warmup_epochs = 40.0
    config.parallel.fsdp = 16 if variant == 'H' else 1
    config.checkpoint.every_steps = 500
    config.checkpoint.keep = 3
    config.log.images_every_steps = 10_000
    return config
