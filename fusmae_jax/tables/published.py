"""The numbers that the Fus-MAE paper prints, in percent, as they stand in its two versions.

Chan-To-Hing and Veeravalli: Fus-MAE, arXiv 2401.02764, v1 (preprint) and v2 (accepted at IGARSS 2024).
Table 1: mAP on BigEarthNet-MM, averaging and test list not stated. Table 2: SEN12MS, single label; neither
the sensor, nor the classes, nor the split are stated.
"""

from collections.abc import Mapping

SOURCE = 'arXiv 2401.02764'
SENSORS = (('s1',), ('s2',), ('s1', 's2'))
METRICS = ('top1', 'top3', 'precision_weighted', 'recall_weighted', 'f1_weighted')
FINETUNE, LINEAR, SEN12MS = 'finetune_100', 'linear_1', 'sen12ms'

# System -> fine-tuned with all labels, then linear with 1 % of them; each S1, S2, S1+S2.
_BASELINES_1 = {
    'ImageNet': (70.2, 85.5, 83.4, 55.9, 58.5, 60.5),
    'DINO-MM': (69.7, 83.9, 84.6, 52.7, 58.7, 60.3),
    'SatViT': (75.4, 85.6, 85.5, 52.4, 58.5, 58.0),
}
_TABLE_1 = {
    'v1': _BASELINES_1
    | {'XAD': (73.5, 87.8, 86.9, 59.3, 60.4, 63.1), 'XAE&D': (75.5, 87.9, 87.9, 57.8, 70.0, 68.7)},
    'v2': _BASELINES_1
    | {'XAD': (75.1, 86.9, 87.2, 64.8, 71.8, 72.2), 'XAE': (75.9, 87.6, 88.1, 57.5, 68.0, 70.0)},
}
# System -> top-1, top-3, precision, recall, F1. DINO-MM's F1 differs between the versions; in v2 the recall
# of XAD is 58.7 beside a top-1 of 58.8, which are one number by definition.
_TABLE_2 = {
    'v1': {
        'ImageNet': (58.6, 90.7, 75.2, 58.6, 60.1),
        'DINO-MM': (58.8, 91.0, 71.4, 58.8, 59.7),
        'SatViT': (59.1, 91.8, 75.2, 59.1, 59.9),
        'XAD': (59.8, 92.4, 75.2, 59.8, 62.0),
        'XAE&D': (59.6, 93.6, 71.5, 59.6, 60.1),
    },
    'v2': {
        'ImageNet': (58.6, 90.7, 75.2, 58.6, 60.1),
        'DINO-MM': (58.8, 91.0, 71.4, 58.8, 60.3),
        'SatViT': (59.1, 91.8, 75.2, 59.1, 59.9),
        'XAD': (58.8, 94.0, 73.9, 58.7, 60.5),
        'XAE': (60.6, 94.3, 71.5, 60.6, 61.0),
    },
}
VERSIONS = ('v2', 'v1')  # in the order in which tables show them
Key = tuple[str, tuple[str, ...] | None, str]  # task, sensors (None: not stated), metric


def published(version: str, system: str) -> Mapping[Key, float]:
    """What a version of the paper prints for a system, in percent; nothing if it has no such row.

    The mAP of Table 1 stands under `ap_micro`, the usual averaging of works on this data set; the paper does
    not say which it is.
    """
    numbers: dict[Key, float] = {}
    if system in _TABLE_1[version]:
        values = iter(_TABLE_1[version][system])
        numbers |= {
            (task, names, 'ap_micro'): next(values) for task in (FINETUNE, LINEAR) for names in SENSORS
        }
    if system in _TABLE_2[version]:
        numbers |= {(SEN12MS, None, m): value for m, value in zip(METRICS, _TABLE_2[version][system])}
    return numbers
