"""k nearest tokens: a class for each pixel from frozen tokens, without training, S1, S2 and both.

Tokens of labelled records vote with the labels of their ground (docs/dense.md). Untrained weights and the
most frequent class stand beside it.

    python main.py dense_knn --config=configs/dense_knn.py --workdir=runs/flood_knn \\
        --config.data.path=mine/data/paired_folder/1.0.0 --config.encoder.checkpoint=runs/xae

writes rows-dense_knn.jsonl and differences-dense_knn.jsonl into the workdir. `--config.bank` sets how many
tokens are compared with: 65,536 of a ViT-B with two sensors take 0.4 GB.

Variants, joined with commas: those of configs/dense_probe.py.
"""

import ml_collections

from fusmae_jax.eval.dense.config import DenseKnn
from fusmae_jax.shipped.configs.dense_probe import dense


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `DenseKnn`."""
    return dense(DenseKnn(), variant, 'configs/dense_knn.py')
