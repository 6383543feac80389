"""The adapter of torchgeo-bench under its own interface, on the nine real samples of GEO-Bench-2.

Modules of the benchmark are loaded one by one: its packages import all of its models, which need far more.
"""

import ast
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fusmae_jax
from fusmae_jax.shipped.data.geobench2 import samples
from fusmae_jax.shipped.data.geobench2.images import read_images
from tests.support.peers import clone

pytestmark = pytest.mark.bench_peers
ADAPTER = Path(__file__).parents[2] / 'integrations/fusmae_torchgeo_bench.py'
TOLERANCE = 1e-4  # relative to the largest feature; the export alone stays within 1e-5


@pytest.fixture(scope='module')
def benchmark():
    """The folder of the package, whose modules can be imported."""
    folder = clone('torchgeo-bench') / 'src/torchgeo_bench'
    pytest.importorskip('torch')
    for name in ('', '.models', '.datasets'):
        module = types.ModuleType(f'torchgeo_bench{name}')
        module.__path__ = [str(folder / name.strip('.'))]
        sys.modules[module.__name__] = module
    yield folder
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchgeo_bench']:
        del sys.modules[name]


@pytest.fixture(scope='module')
def adapter(benchmark):
    spec = importlib.util.spec_from_file_location('fusmae_torchgeo_bench', ADAPTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bands_of(benchmark, name):
    """The BandSpecs of a data set, as its source states them."""
    spec = importlib.import_module('torchgeo_bench.datasets.base').BandSpec
    tree = ast.parse((benchmark / 'datasets' / f'{name}.py').read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'BandSpec']
    literal = ast.literal_eval
    return [spec(*map(literal, c.args), **{k.arg: literal(k.value) for k in c.keywords}) for c in calls]


def test_the_statistics_of_benv2_are_exchanged_and_corrected(adapter, benchmark):
    bands = bands_of(benchmark, 'benv2')
    assert len(bands) == 14 and adapter.exchanged(bands)
    vv, vh = adapter.channels_of(bands, 's1', ('VV', 'VH'), 'dB')
    assert (bands[vv.index].name, bands[vh.index].name) == ('vh', 'vv')
    assert bands[vv.index].mean > bands[vh.index].mean


def test_radar_of_so2sat_is_refused_and_its_reflectance_scaled(adapter, benchmark, exported):
    import torch

    bands = bands_of(benchmark, 'so2sat')
    with pytest.raises(ValueError, match='no backscatter in dB'):
        adapter.FusMAEBench(bands, folder=exported[1])
    model = adapter.FusMAEBench(bands, folder=exported[1], sensors=['s2'])
    features = model(torch.full((2, len(bands), 32, 32), 0.1))
    assert features.shape == (2, 32) and torch.isfinite(features).all()


def test_rows_of_s1_s2_and_both_are_those_of_the_encoder(adapter, benchmark, exported):
    import torch

    file = clone('GEO-Bench-2') / 'tests/data/benv2/benv2.tortilla'
    listed, _ = samples.list_samples(file)
    images = [read_images(file, sample) for sample in listed]
    stored = [np.concatenate([image.s2, image.s1], -1) for image in images]
    stack = torch.from_numpy(np.stack(stored).astype(np.float32)).permute(0, 3, 1, 2)
    encoder, rows = fusmae_jax.load(exported[0]), {}
    order = [samples.SCHEMA.groups['s2'].bands.index(b) for b in encoder.config.model.modalities['s2'].bands]
    given = {
        's1': np.stack([image.s1[..., ::-1] for image in images]),
        's2': np.stack([image.s2[..., order] for image in images]),
    }
    for sensors in (('s1',), ('s2',), ('s1', 's2')):
        model = adapter.FusMAEBench(bands_of(benchmark, 'benv2'), folder=exported[1], sensors=sensors)
        rows[sensors] = model(stack).numpy()
        ours = encoder.encode(
            {name: given[name] for name in sensors},
            units={'s1': 'dB', 's2': 'DN'},
            accept=('order', 'offset', 'level', 'fill', 'floor', 'brightness'),
        ).pooled
        assert np.abs(rows[sensors] - ours).max() < TOLERANCE * np.abs(ours).max()
    by_name = adapter.FusMAEBench(
        bands_of(benchmark, 'benv2'), folder=exported[1], sensors=('s1',), radar='by_name'
    )
    assert np.abs(by_name(stack).numpy() - rows['s1',]).max() > 0.01
