"""How much pretrained encoders rely on each sensor, on the test split of BigEarthNet-MM.

For each checkpoint a linear head is trained on clean images of both sensors. It is then shown test images of
which one sensor is missing, belongs to another scene, or (the optical one) lies under a synthetic cloud:
average precision of each class (R2 and RMSE of each number to predict) with cluster-bootstrap intervals, and
its change. And for each block, how much attention the tokens of one sensor pay to the other, joint
self-attention beside XAE.

    python main.py reliance --config=configs/reliance.py --workdir=runs/reliance \\
        --config.data.path=data_dir/bigearthnet_mm/1.0.0 --config.checkpoints="('runs/joint', 'runs/xae')"

writes reliance.csv, attention.csv, reliance.png and settings-reliance.json into the workdir. Most of the time
goes into the features: one pass over train and validation, and one over test with six encodings of each pair.
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.errors import InputError
from fusmae_jax.eval.reliance.config import Reliance


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The only variant; every field of `Reliance`."""
    if variant:
        raise InputError(f'configs/reliance.py has no variants, found {variant!r}')
    config = config_dict(Reliance())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'
    return config
