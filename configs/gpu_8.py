"""Fus-MAE (XAE), ViT-L/16, on one machine with 8 GPUs of 80 GB.

Batch 2,048 with the learning rate that MultiMAE's rule gives for it (1e-4 x 2048 / 256), 400 epochs with 20
of warm-up. Every GPU holds the whole state (3.5 GiB) and 256 images of a step.

At an assumed utilisation of 40 % the 400 epochs over the 340,737 pairs take 2.2 hours on 8 H100 and 7.1 on
8 A100 (arithmetic of `plan`, not a measurement; docs/scale.md). Whether it fits, on the machine itself:

    python main.py plan --config=configs/gpu_8.py --topology=local

    python main.py pretrain --config=configs/gpu_8.py --workdir=runs/vit_l \
        --config.data.path=data_dir/bigearthnet_mm/1.0.0

One process drives all 8 GPUs. Variants:
    (none)    8 GPUs of 80 GB
    small     8 GPUs of 24 to 40 GB: the same run in 8 micro-batches, parameters and optimizer split over all
"""

import ml_collections

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.configs import pretrain


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The configuration of a variant, with every field of `fusmae_jax.config.run.Config`."""
    if variant not in ('', 'small'):
        raise InputError(f"configs/gpu_8.py: no variant {variant!r}; valid: 'small', or none")
    config = pretrain.get_config('xae,L')
    config.name = 'gpu_8_small' if variant else 'gpu_8'
    config.train.batch_size = 2048
    config.train.epochs = 400.0
    config.train.compute_dtype = 'bfloat16'
    config.optimizer.learning_rate = 1e-4 * 2048 / 256
    config.optimizer.warmup_epochs = 20.0
    config.data.threads = 16
    if variant:
        config.train.accumulation = 8
        config.parallel.fsdp = 8
    return config
