"""Result rows: the fields of one that can be, and those that an evaluation wrote."""

from fusmae_jax.eval.row import ResultRow, from_json

VALUES = {
    'system': 'Fus-MAE XAE, independent masks',
    'checkpoints': ('0123456789abcdef',),
    'leaks': {'records': 119_825, 'id': 0, 'twin': 60_886, 'cell': 61_000, 'any': 61_002},
    'code_version': '0.1.0',
    'dataset': 'bigearthnet_v2',
    'dataset_version': '2.0.0',
    'dataset_fingerprint': 'fedcba9876543210',
    'split': 'test',
    'records': 119_825,
    'classes': ('Urban fabric', 'Transitional woodland/shrub', 'Pastures'),
    'without_positives': (),
    'train_split': 'train',
    'train_records': 2_378,
    'label_fraction': 0.01,
    'draw': 'random',
    'draw_seeds': (0, 1, 2, 3, 4),
    'method': 'linear',
    'preset': 'paper',
    'head_seeds': (0, 1, 2),
    'pooled': 'mean_patch',
    'batch_norm': False,
    'sweep': {'learning_rate': (0.001, 0.01, 0.1), 'weight_decay': (0.0,)},
    'chosen': {'learning_rate': (0.01,), 'weight_decay': (0.0,)},
    'settled_on': 'val',
    'modalities': ('s1', 's2'),
    'absent': 'self',
    'image': 'resize 224',
    'statistics': 'checkpoint',
    'accepted': ('level',),
    'metric': 'ap',
    'averaging': 'micro',
    'label': None,
    'threshold': None,
    'estimate': 0.722,
    'low': 0.71,
    'high': 0.733,
    'level': 0.95,
    'replicates': 1000,
    'undefined': 0,
    'bootstrap_seed': 0,
    'cluster': 'tile',
    'clusters': 56,
    'lowest': 0.70,
    'highest': 0.73,
    'runs': 15,
}


def rows_of(workdir, command='linear') -> list[ResultRow]:
    file = workdir / f'rows-{command}.jsonl'
    return [from_json(line, str(file)) for line in file.read_text().splitlines()]
