"""Fus-MAE pretraining on BigEarthNet-MM: the paper's recipe, and the family around it.

Reproduces the pretraining of Chan-To-Hing and Veeravalli (IGARSS 2024): ViT-B/16 at 224 px, 75 % masked,
100 epochs, AdamW, peak learning rate 1.5625e-4 with 10 epochs of warm-up. The paper trained on 2 RTX 3090
Ti for about 60 hours and gives no reconstruction loss to compare with.

    python main.py pretrain --config=configs/pretrain.py:xae --workdir=runs/xae \
        --config.data.path=data_dir/bigearthnet_mm/1.0.0

Variants, joined with commas (`pretrain.py:xad_consistent,b200`):
    xae, xad, xaed    early fusion, feature-level fusion, both
    joint             no cross-attention: all tokens through plain blocks
    mae_s1, mae_s2    one sensor alone
    each also with `_consistent` masks (the same patches hidden in both sensors)
    b400 (default)    batch 2 x 200: the learning rate is MultiMAE's 1e-4 x 400 / 256
    b200              the paper's "batch size 200" taken as the total; the same learning rate
    native            120 px, patch 8, flips only: no 10 m band is resampled (225 patches a sensor)
"""

import ml_collections

from fusmae_jax.config import Config
from fusmae_jax.config_build import config_dict
from fusmae_jax.errors import InputError, nearest

FUSION = {
    'xae': ('xae', 'none', ('s1', 's2')),
    'xad': ('none', 'xad', ('s1', 's2')),
    'xaed': ('xae', 'xad', ('s1', 's2')),
    'joint': ('none', 'none', ('s1', 's2')),
    'mae_s1': ('none', 'none', ('s1',)),
    'mae_s2': ('none', 'none', ('s2',)),
}
BATCHES = {'b200': 200, 'b400': 400}
NATIVE = 'native'
MODELS = [f'{name}{masks}' for name in FUSION for masks in ('', '_consistent')]


def get_config(variant: str = 'xae') -> ml_collections.ConfigDict:
    """The configuration of a variant, with every field of `fusmae_jax.config.Config`."""
    config = config_dict(Config())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'  # what convert_bigearthnet_mm.py writes
    config.data.train_split = 'all_minus_val_test'  # 340,737 pairs; the paper's 354,196 cannot be had
    config.data.val_split = 'val[:10000]'
    parts = (variant or 'xae').split(',')
    models = [part for part in parts if part not in (*BATCHES, NATIVE)]
    for part in parts:
        if part in BATCHES:
            config.train.batch_size = BATCHES[part]
        elif part == NATIVE:
            config.model.image_size, config.model.patch_size = (120, 120), 8
            config.augment.crop = False
        elif part not in MODELS:
            raise InputError(
                f'configs/pretrain.py: no variant {part!r}; {nearest(part, [*MODELS, *BATCHES, NATIVE])}'
            )
    if len(models) > 1:
        raise InputError(f'configs/pretrain.py: {models} cannot be combined; name one of them')
    model = models[0] if models else 'xae'
    encoder, decoder, sensors = FUSION[model.removesuffix('_consistent')]
    config.name = ','.join(parts)
    config.model.fusion.encoder = encoder
    config.model.fusion.decoder = decoder
    with config.unlocked():
        config.model.modalities = {name: config.model.modalities[name] for name in sensors}
    if model.endswith('_consistent'):
        config.masking.strategy = 'consistent'
    return config
