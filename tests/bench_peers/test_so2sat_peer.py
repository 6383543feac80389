"""The loader of GEO-Bench-2 on a container of so2sat as the converter reads it, with what it calls VV and VH.

$PEERS/geobenchv2 is the unpacked wheel of that name, 0.9.
"""

import importlib
import sys
import types

import numpy as np
import pytest

from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.generate.geobench2 import pack
from fusmae_jax.shipped.data.geobench2 import samples
from fusmae_jax.shipped.data.geobench2.so2sat import CLASSES, LABELS
from tests.support.data_fixtures import read
from tests.support.peers import clone
from tests.support.so2sat_file import SPLITS, sample

pytestmark = [pytest.mark.bench_peers, pytest.mark.filterwarnings('ignore')]


@pytest.fixture
def loader(monkeypatch):
    """Its class for so2sat; the packages around it import every set, which need far more."""
    folder = clone('geobenchv2')
    for name in ('torch', 'torchgeo', 'tacoreader'):
        pytest.importorskip(name)
    for name in ('geobench_v2', 'geobench_v2.datasets'):
        module = types.ModuleType(name)
        module.__path__ = [str(folder / name.replace('.', '/'))]
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module('geobench_v2.datasets.so2sat').GeoBenchSo2Sat
    for name in [name for name in sys.modules if name.startswith('geobench_v2.')]:
        del sys.modules[name]


def test_its_loader_reads_the_same_images_and_labels_but_calls_vh_vv(loader, tmp_path):
    import torch

    file = tmp_path / 'geobench_so2sat.tortilla'
    file.write_bytes(pack([sample(index) for index in range(6)]))
    folder, _ = sharded.convert(
        samples.source(samples.Archive(path=str(file), name='so2sat')), tmp_path / 'data'
    )
    for ours, theirs in zip(('train', 'val', 'test'), SPLITS):
        order = {'s1': loader.band_default_order['s1'], 's2': loader.band_default_order['s2']}
        loaded = loader(tmp_path, theirs, band_order=order, data_normalizer=torch.nn.Identity)
        records = {one['name'].decode(): one for one in read(folder, ours)}
        assert len(loaded) == len(records) == 2
        for index in range(len(loaded)):
            record, one = records[loaded.data_df.iloc[index]['patch_id']], loaded[index]
            assert CLASSES[int(np.flatnonzero(record[LABELS])[0])] == CLASSES[int(one['label'])]
            s2 = np.moveaxis(one['image_s2'].numpy(), 0, -1)
            np.testing.assert_array_equal(s2, record['s2'])
            # Its first channel, VV by its name, is the one that has the smaller spread.
            s1 = np.moveaxis(one['image_s1'].numpy(), 0, -1)
            np.testing.assert_array_equal(s1[..., ::-1], record['s1'])
            assert s1[..., 0].std() < s1[..., 1].std()
