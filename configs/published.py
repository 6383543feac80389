"""Weights that others have published, as systems of an evaluation; takes seconds.

    python main.py import --config=configs/published.py:dino_mm --workdir=runs/dino_mm \\
        --config.file=weights/B14_vits8_dinomm_ep99.pth

reads the file (.safetensors, or a PyTorch pickle that holds no code) and writes runs/dino_mm/own, the encoder
with the input that it was published with, and runs/dino_mm/common, with that of this project: z-scores on
224 px. Then, for each of the two,

    python main.py linear_probe --config=configs/linear_probe.py --workdir=runs/dino_mm_own_probe \\
        --config.data.path=data_dir/bigearthnet_mm/1.0.0 --config.encoder.checkpoint=runs/dino_mm/own

Variants, and where the files are published:
    imagenet_vit  ViT-B/16 of timm (vit_base_patch16_224: pixels at mean 0.5, std 0.5), projection inflated;
                  huggingface.co/timm. The paper does not say which of the two its row `imagenet` is
    imagenet_mae  MAE ViT-B/16, likewise, with ImageNet's pixel statistics; github.com/facebookresearch/mae
    satvit        SatViT v1, 256 px, no CLS; github.com/antofuller/SatViT. `channels` must list what its 15
                  input channels are: its tutorial has 16, twelve bands, VV and VH of ascending, VV and VH of
                  descending orbits, and does not say which is missing. A VV or VH that stands twice is
                  fed the same image; any name that is no band ('unused') gets no input
    dino_mm       DINO-MM ViT-S/8, 128 to 112 px in 8 bits; github.com/wangyi111/DINO-MM. Its own protocol
                  reads features=('last4_cls',)
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.interop.weights.published_kinds import KINDS, WeightFile


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `WeightFile`, for one kind of file."""
    if variant not in KINDS:
        raise InputError(f'configs/published.py:{variant}: give a variant; {nearest(variant, KINDS)}')
    config = config_dict(WeightFile())
    config.kind = variant
    return config
