"""Fus-MAE pretraining on BigEarthNet-MM: the paper's recipe where it says one, and the family around it.

After Chan-To-Hing and Veeravalli (IGARSS 2024): 75 % masked, 100 epochs, AdamW, peak learning rate 1.5625e-4
with 10 epochs of warm-up. The paper trained on 2 RTX 3090 Ti for about 60 hours and gives no reconstruction
loss to compare with. Where it is silent, the defaults are choices (all of them, and why: docs/paper.md):
ViT-B/16 at 224 px; crops of 20 to 100 % of the area and horizontal flips; z-scores by the archive's published
statistics, clipped to 5 deviations; the pairs outside the official validation and test splits, 19 classes;
exactly 49 patches visible in each sensor; fixed sine-cosine positions; a norm after encoder and decoders;
decoders 256 wide and 2 deep; a batch of 400.

    python main.py pretrain --config=configs/pretrain.py:xae --workdir=runs/xae \
        --config.data.path=data_dir/bigearthnet_mm/1.0.0

Variants, joined with commas (`pretrain.py:xad_consistent,b200`):
    xae, xad, xaed    early fusion, feature-level fusion, both
    joint             no cross-attention: all tokens through plain blocks
    multimae          `joint` with MultiMAE's decoders, which attend to the tokens of both sensors, and
                      without the norms that it lacks; with `_dirichlet` masks this is MultiMAE but for its
                      loss, whose mean is over each sample first: here every hidden number weighs the same
    mae_s1, mae_s2    one sensor alone
    stack             all bands of both sensors in one token
    satvit            `stack` with the decoder (384 wide), numerics and loss of SatViT v1: patches normalised
                      over all their bands, every band of the same weight; on this grid, and with CLS
    each but the last two also with `_consistent` masks (the same patches hidden in both sensors), which those
    two have anyway; and xae, xad, xaed, joint and multimae also with
    `_joint_uniform`  masks: as many patches visible in all, drawn from those of both sensors together
    `_dirichlet`      masks: the same in random shares (MultiMAE)
    `_modality`       masks: the same in equal shares, but of one sensor only in half of the samples
    b400 (default)    batch 2 x 200: the learning rate is MultiMAE's 1e-4 x 400 / 256
    b200              the paper's "batch size 200" taken as the total; the same learning rate
    S, L, H           ViT-S/16, ViT-L/16 or ViT-H/14 for the paper's ViT-B/16
    native            120 px, patch 8, flips only: no 10 m band is resampled (225 patches a sensor)
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError, nearest

BOTH = ('s1', 's2')
FUSION = {
    'xae': ('xae', 'none', BOTH),
    'xad': ('none', 'xad', BOTH),
    'xaed': ('xae', 'xad', BOTH),
    'joint': ('none', 'none', BOTH),
    'multimae': ('none', 'multimae', BOTH),
    'mae_s1': ('none', 'none', ('s1',)),
    'mae_s2': ('none', 'none', ('s2',)),
    'stack': ('stack', 'none', BOTH),
    'satvit': ('stack', 'none', BOTH),
}
BATCHES = {'b200': 200, 'b400': 400}
NATIVE = 'native'
SIZES = {'S': 16, 'L': 16, 'H': 14}  # patch size


def _masks(encoder: str, sensors: tuple[str, ...]) -> tuple[str, ...]:
    """The strategies that a variant can have, the default first."""
    if encoder == 'stack':
        return ('consistent',)
    joint = ('joint_uniform', 'dirichlet', 'modality') if len(sensors) > 1 else ()
    return ('independent', 'consistent', *joint)


# Variant -> its entry of FUSION and its masks; the default masks of an entry have no suffix.
MODELS = {
    f'{name}{f"_{masks}" if i else ""}': (name, masks)
    for name, (encoder, _, sensors) in FUSION.items()
    for i, masks in enumerate(_masks(encoder, sensors))
}


def get_config(variant: str = 'xae') -> ml_collections.ConfigDict:
    """The configuration of a variant, with every field of `fusmae_jax.config.run.Config`."""
    config = config_dict(Config())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'  # what convert_bigearthnet_mm.py writes
    config.data.train_split = 'all_minus_val_test'  # 340,737 pairs; the paper's 354,196 cannot be had
    config.data.val_split = 'val[:10000]'
    parts = (variant or 'xae').split(',')
    models = [part for part in parts if part not in (*BATCHES, *SIZES, NATIVE)]
    for part in parts:
        if part in BATCHES:
            config.train.batch_size = BATCHES[part]
        elif part == NATIVE:
            config.model.image_size, config.model.patch_size = (120, 120), 8
            config.augment.crop = False
        elif part in SIZES:
            config.model.size, config.model.patch_size = part, SIZES[part]
        elif part not in MODELS:
            known = [*MODELS, *BATCHES, *SIZES, NATIVE]
            raise InputError(f'configs/pretrain.py: no variant {part!r}; {nearest(part, known)}')
    if len(models) > 1:
        raise InputError(f'configs/pretrain.py: {models} cannot be combined; name one of them')
    model = models[0] if models else 'xae'
    name, config.masking.strategy = MODELS[model]
    encoder, decoder, sensors = FUSION[name]
    config.name = ','.join(parts)
    config.model.fusion.encoder = encoder
    config.model.fusion.decoder = decoder
    with config.unlocked():
        config.model.modalities = {name: config.model.modalities[name] for name in sensors}
    if name == 'multimae':
        _multimae(config)
    elif name == 'satvit':
        _satvit(config)
    return config


def _multimae(config: ml_collections.ConfigDict) -> None:
    """No norm after the encoder and the decoders; CLS is among what the decoders attend to."""
    config.model.final_norm = config.model.decoder.final_norm = False
    config.model.decoder.cls = True


def _satvit(config: ml_collections.ConfigDict) -> None:
    """What SatViT v1 does apart from the stacking; its sensors count by their bands."""
    config.model.decoder.width, config.model.decoder.depth, config.model.decoder.heads = 384, 2, 6
    config.model.numerics.norm_eps, config.model.numerics.qkv_bias = 1e-5, False
    config.loss.norm_pix = True
    modalities = config.model.modalities.values()
    bands = sum(len(modality.bands) for modality in modalities)
    for modality in modalities:
        modality.loss_weight = len(modality.bands) / bands
