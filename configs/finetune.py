"""Fine-tuning of a pretrained encoder on BigEarthNet-MM: S1, S2 and both, with all labels.

The paper says 10 epochs of AdamW, a linear head and the multi-label soft margin loss. The rest is open: the
peak learning rate is swept over three values and settled on the validation split, once for all rows. A sweep
of one system is nine runs of 10 epochs over 269,695 pairs, and nine more for each baseline that has weights;
a run that is killed goes on from its last epoch.

    python main.py finetune --config=configs/finetune.py --workdir=runs/xae_finetune \\
        --config.data.path=data_dir/bigearthnet_mm/1.0.0 --config.encoder.checkpoint=runs/xae

writes rows-finetune.jsonl, differences-finetune.jsonl and points/ into the workdir. While a sweep runs, each
of its points keeps weights and moments (1 GB for ViT-B); once it is settled, only the best do.

Variants, joined with commas:
    paper         plain AdamW, 10 epochs, flips, the last epoch is tested (the default)
    recommended   layer-wise decay, drop path, random crops, the best epoch on validation, a rate for each row
    sen12ms       ten classes, one a record, on the hold-out scenes; whole images of 256 px. The paper has
                  only a linear head on this set; `paper` takes over its 10 epochs and batches of 256
    crops         four crops of 128 px instead, for sen12ms
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.config import PAPER_HEAD
from fusmae_jax.eval.finetune.config import PRESETS, RECOMMENDED, Finetune
from fusmae_jax.shipped.configs.linear_probe import sen12ms

VARIANTS = (*PRESETS, 'sen12ms', 'crops')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `Finetune`."""
    parts = variant.split(',') if variant else []
    config = config_dict(RECOMMENDED if 'recommended' in parts else Finetune())
    config.data.path = 'data_dir/bigearthnet_mm/1.0.0'
    for part in parts:
        if part == 'sen12ms':
            sen12ms(config)
            if 'recommended' not in parts:
                config.batch_size = PAPER_HEAD['single_label'][1]
        elif part == 'crops':
            config.image = 'crops'
        elif part not in PRESETS:
            raise InputError(f'configs/finetune.py: no variant {part!r}; {nearest(part, VARIANTS)}')
    return config
