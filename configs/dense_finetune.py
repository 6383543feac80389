"""Dense fine-tuning: a pretrained encoder and a head trained together, a class for each pixel.

    python main.py dense_finetune --config=configs/dense_finetune.py --workdir=runs/flood_finetune \\
        --config.data.path=mine/data/paired_folder/1.0.0 --config.encoder.checkpoint=runs/xae

writes rows-dense_finetune.jsonl, differences-dense_finetune.jsonl and points/ into the workdir; a run that is
killed goes on from its last epoch. The default is a convolutional decoder, flips and turns by 90 degrees,
layer-wise decay, and the best epoch on validation.

Variants, joined with commas: those of configs/dense_probe.py.
"""

import ml_collections

from fusmae_jax.eval.dense.config import DenseFinetune
from fusmae_jax.shipped.configs.dense_probe import dense

SETTINGS = DenseFinetune(
    head='pup',
    rot90=True,
    layer_decay=0.65,
    drop_path=0.1,
    epoch='best',
    settle='each',
    learning_rates=(2.5e-4, 5e-4, 1e-3),
    epochs=20.0,
)


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `DenseFinetune`."""
    return dense(SETTINGS, variant, 'configs/dense_finetune.py')
