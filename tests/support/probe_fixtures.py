"""A small converted archive with labels and scenes, and untrained checkpoints, for the tests of probes."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import to_dict
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import seen as leak
from fusmae_jax.input.contract import Targets
from fusmae_jax.input.source import Source as DataSet
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.records import Field, Item, RecordSource
from tests.support.helpers import weights
from tests.support.tiny import tiny_config, tiny_model

SIZES = {'train': 60, 'val': 30, 'test': 30}
NO_RADAR = 'val_0003'  # its Sentinel-1 image holds no measurement
CLASSES = ('dark', 'bright', 'rough')
FIELDS = {
    'name': Field('text', 'name of the record'),
    'labels': Field('uint8', 'multi-hot', (3,)),
    'one': Field('uint8', 'one-hot', (3,)),
    'scene': Field('text', 'scene'),
    'amounts': Field('float32', 'waves (m), albedo; NaN where it is missing', (2,)),
}
AMOUNTS = Targets(('waves', 'albedo'), ('m', ''))
# The bands of BigEarthNet-MM on grids a fifth as fine.
GROUPS = {
    name: dataclasses.replace(g, size=(g.size[0] // 5, g.size[1] // 5), resolution=g.resolution * 5)
    for name, g in SCHEMA.groups.items()
}


def archive(folder, sizes=None, seed=0):
    """Writes the data set; returns its folder. Each class moves some bands, so it can be learned."""
    schema = dataclasses.replace(
        SCHEMA,
        name='probe',
        groups=GROUPS,
        fields=FIELDS,
        key='name',
        classes={'labels': CLASSES, 'one': CLASSES},
        targets={'amounts': AMOUNTS},
        split_aliases={'everything': 'train+val+test'},
    )
    sizes = sizes or SIZES
    items = {
        split: [Item(f'{split}_{i:04d}', (k, i)) for i in range(count)]
        for k, (split, count) in enumerate(sizes.items())
    }
    source = RecordSource(schema, items, functools.partial(_read, seed=seed), {'records': f'{sizes} {seed}'})
    return Path(sharded.convert(source, folder)[0])


ACCEPT = ('order', 'range', 'level', 'offset', 'brightness', 'floor', 'fill')  # the pixels are made up


def native(data, split, modality):
    """The images of a split on their native grids, as `Pretrained.encode` takes them."""
    source = DataSet(str(data), split, tuple(GROUPS))
    names = [name for name, group in GROUPS.items() if group.modality == modality]
    return {
        name: np.stack([source[i][name] for i in range(len(source))]).astype(np.float32) for name in names
    }


def _read(item, seed):
    rng = np.random.default_rng([seed, *item.values])
    labels = (rng.random(3) < 0.4).astype(np.uint8)
    record = {'name': item.key, 'labels': labels, 'scene': f'scene_{item.values[1] % 7}'}
    record['one'] = np.eye(3, dtype=np.uint8)[rng.integers(3)]
    labels = labels.astype(np.float32)
    # Numbers that Sentinel-1 alone, and Sentinel-2 alone, tell of. Some are missing.
    noise = np.random.default_rng([seed, 1, *item.values]).normal(size=2)
    amounts = np.array([200 + 30 * labels[2] + 3 * noise[0], 0.2 + 0.1 * labels[1] + 0.01 * noise[1]])
    amounts[item.values[1] % 2] *= np.nan if item.values[1] % 12 == 5 else 1
    record['amounts'] = amounts.astype(np.float32)
    for name, group in GROUPS.items():
        shape = (*group.size, len(group.bands))
        if group.dtype == 'float32':
            level = np.array([-10.0, -17.0]) + 4 * labels[2] * np.array([1, -1])
            record[name] = rng.normal(level, 1 + labels[2], shape).astype(np.float32)
        else:
            level = 1500 + 900 * labels[1] - 700 * labels[0] * (np.arange(shape[-1]) % 2)
            record[name] = rng.normal(level, 150, shape).clip(1).astype(np.uint16)
    if item.key == NO_RADAR:
        record['s1'][:] = np.nan
    return record


def checkpoint(workdir, data, seed=1, trained_on='train[:10]', depth=5, modalities=('s1', 's2')):
    """An untrained model stored as a pretraining run stores one; returns its working directory."""
    known = cfg.Model().modalities
    encoder = 'xae' if len(modalities) > 1 else 'none'
    model = tiny_model(encoder, depth=depth, modalities={name: known[name] for name in modalities})
    config = tiny_config(model=model)
    params = weights(config.model, seed)
    state = {
        'step': jnp.zeros((), jnp.int32),
        'params': params,
        'opt_state': {'mu': jax.tree.map(jnp.zeros_like, params)},
    }
    meta = {
        'config': to_dict(config),
        'contract': to_dict(contracts.read(data)),
        'dtype': 'float32',
    }
    seen = leak.to_bytes(leak.collect(data, trained_on)) if trained_on else b''
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(state, meta, seen=seen)
    checkpoints.close()
    return str(workdir)


def quarter(batch, top, left):
    """One quarter of the images of a batch."""
    result = {}
    for name, x in batch.items():
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        result[name] = x[:, top * rows : (top + 1) * rows, left * columns : (left + 1) * columns]
    return result
