"""Dense probe of a pretrained encoder: a class for each pixel from its frozen tokens, S1, S2 and both.

The data set carries a map of labels (docs/dense.md): GeoTIFFs with `map_root`, BigEarthNet v2 with
its reference maps, SEN12MS with `maps`, or Sen1Floods11. Every system of the sweep learns from the same
batches; untrained weights, the bands of single pixels and the most frequent class stand beside it.

    python main.py dense_probe --config=configs/dense_probe.py --workdir=runs/flood_probe \\
        --config.data.path=mine/data/paired_folder/1.0.0 --config.encoder.checkpoint=runs/xae

writes rows-dense_probe.jsonl, differences-dense_probe.jsonl and heads/ into the workdir.

Maps of numbers, such as biomass: --config.data.kind=map_regression.

Variants, joined with commas:
    layers4           the last block of each quarter of a ViT-B (3, 6, 9, 12), side by side
    bigearthnet_v2    CORINE land cover in 44 classes, intervals over Sentinel-2 scenes
    sen12ms           ten simplified IGBP classes, hold-out scenes, the set's own statistics (L1C)
    sen1floods11      water, intervals over floods, the set's own statistics (L1C)
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.dense.config import DenseProbe

VARIANTS = ('layers4', 'bigearthnet_v2', 'sen12ms', 'sen1floods11')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `DenseProbe`."""
    return dense(DenseProbe(), variant, 'configs/dense_probe.py')


def dense(settings: object, variant: str, file: str) -> ml_collections.ConfigDict:
    """The settings of a dense task, changed as the variants say."""
    config = config_dict(settings)
    config.data.path = 'data_dir/paired_folder/1.0.0'
    for part in variant.split(',') if variant else []:
        if part == 'layers4':
            config.layers = (3, 6, 9, 12)
        elif part == 'bigearthnet_v2':
            config.data.path, config.data.labels = 'data_dir/bigearthnet_v2/1.0.0', 'reference_map'
        elif part == 'sen12ms':
            config.data.path, config.data.labels = 'data_dir/sen12ms/1.0.0', 'igbp10_map'
            _level_1c(config)
        elif part == 'sen1floods11':
            config.data.path, config.data.labels = 'data_dir/sen1floods11/1.1.0', 'water'
            config.intervals.cluster = 'event'
            _level_1c(config)
        else:
            raise InputError(f'{file}: no variant {part!r}; {nearest(part, VARIANTS)}')
    return config


def _level_1c(config: ml_collections.ConfigDict) -> None:
    """Top-of-atmosphere reflectance, and images of more ground than those of most pretraining sets."""
    config.encoder.stats, config.encoder.accept = 'dataset', ('level', 'resolution')
