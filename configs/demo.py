"""A small Fus-MAE (XAE) on the six real Sentinel-1 / Sentinel-2 pairs that bigearthnet-common ships.

Shows the whole path from GeoTIFFs to a reconstruction in a few minutes on two CPU cores. It memorises six
images, which is the point: nothing here says how well the method generalises.

    make demo

runs

    python main.py convert --config=configs/convert_bigearthnet_mm.py:example
    python main.py pretrain --config=configs/demo.py --workdir=runs/demo
    python main.py reconstruct --workdir=runs/demo
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The only variant; with every field of `fusmae_jax.config.run.Config`."""
    if variant:
        raise InputError(f'configs/demo.py has no variants, found {variant!r}')
    config = config_dict(Config())
    config.name = 'demo'
    config.data.path = 'runs/demo/data/bigearthnet_mm/1.0.0'
    config.data.train_split = 'train'
    config.data.val_split = ''  # six pairs are too few to hold any out
    config.model.size = 'custom'
    config.model.width, config.model.depth, config.model.heads = 192, 4, 6
    config.model.image_size = (120, 120)  # the native grid: no 10 m band is resampled
    config.model.patch_size = 12  # 100 patches a sensor
    config.model.decoder.width, config.model.decoder.depth, config.model.decoder.heads = 256, 2, 8
    config.augment.crop = False  # six images can be memorised in minutes only if they hold still
    config.augment.hflip = 0.0
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 50
    config.train.batch_size = 6
    config.train.steps = 600
    config.checkpoint.every_steps = 200
    config.log.every_steps = 10
    config.log.images_every_steps = 300
    return config
