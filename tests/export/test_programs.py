"""StableHLO, ONNX and PyTorch: each gives what `encode` gives, in a process without this package."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from fusmae_jax.config.run import Fusion
from fusmae_jax.encoders.inputs import describe, fields
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.export import command, parity, to_onnx, to_stablehlo
from fusmae_jax.export.function import encoder_weights, subsets
from fusmae_jax.export.source import Source, _model
from fusmae_jax.train.dino_encoder import encoder_config
from tests.support.dino_helpers import CONTRACT, tiny
from tests.support.helpers import weights
from tests.support.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures('one_device')
# The process of a user: this package cannot be imported there.
WITHOUT = "import sys; sys.modules['fusmae_jax'] = None\n"


def encoder(kind, depth=2):
    if kind == 'dino':
        config = encoder_config(tiny())
    else:
        fusion = Fusion(
            encoder='none' if kind == 'joint' else 'xae', absent='bypass' if kind == 'joint' else 'self'
        )
        config = tiny_config(model=tiny_model(depth=depth, fusion=fusion))
    return Pretrained(config, CONTRACT, weights(config.model), 'float32')


@pytest.fixture(scope='module')
def xae():
    return encoder('xae', depth=1)


def images_of(model, count):
    return {field: x[:count] for field, x in parity.make_images(model, None)[0].items()}


def test_what_a_program_takes_and_gives(xae):
    assert subsets(xae) == [('s1',), ('s2',), ('s1', 's2')]
    assert {field: group.unit for field, group in fields(xae).items()} == {
        's1': 'dB',
        's2_10m': 'DN',
        's2_20m': 'DN',
        's2_60m': 'DN',
    }
    about = describe(xae)
    assert about['outputs'] == {'cls': ['b', 32], 'pooled': ['b', 32], 'tokens/SENSOR': ['b', 16, 32]}
    assert about['sensors']['s2']['fields'] == ['s2_10m', 's2_20m', 's2_60m']
    assert set(encoder_weights(xae)) and all(name.startswith('encoder/') for name in encoder_weights(xae))
    unknown = Pretrained(xae.config, dataclasses.replace(CONTRACT, groups={}), xae.params, 'float32')
    assert {field: group.size for field, group in fields(unknown).items()} == {'s1': (32, 32), 's2': (32, 32)}


@pytest.mark.slow
def test_a_stablehlo_program(xae):
    """For platforms that are not there and any number of images; the first image lacks a sensor."""
    program = to_stablehlo.exported(xae, ('s1', 's2'))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    assert {str(aval.shape[0]) for aval in program.in_avals[-4:]} == {'b'}
    images = images_of(xae, 2)
    images['s1'][1, :7, :9] = np.nan
    for name in ('s2_10m', 's2_20m', 's2_60m'):
        images[name][0] = np.nan
    result = program.call(encoder_weights(xae), images)
    for name, x in parity.expected(xae, images).items():
        np.testing.assert_allclose(result[name], x, rtol=0, atol=1e-5 * np.abs(x).max())


def run_example(folder):
    done = subprocess.run(
        [sys.executable, '-c', f'{WITHOUT}import runpy; runpy.run_path(r"{folder}/example.py")'],
        capture_output=True,
        text=True,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_stablehlo_folder_needs_no_package(xae, tmp_path):
    pytest.importorskip('flatbuffers', reason='jax.export serialises with it; needs the extra export')
    to_stablehlo.write(epath.Path(tmp_path), xae)
    assert "s1+s2 {'cls': (2, 32)" in run_example(tmp_path)
    assert json.loads((tmp_path / 'contract.json').read_text())['programs']['s2']['inputs'] == [
        's2_10m',
        's2_20m',
        's2_60m',
    ]


def source(kind):
    model = encoder(kind)
    return Source(model, 'float32', _model(model), '', None)


@pytest.mark.parity
@pytest.mark.parametrize('kind', ['xae', 'joint', 'dino'])
def test_onnx(kind, tmp_path):
    pytest.importorskip('onnx', reason='needs the extra export')
    pytest.importorskip('onnxruntime', reason='needs the extra export')
    report = command._export(source(kind), 'onnx', tmp_path / 'out', None)
    assert report['ok'] and {row['sensors'] for row in report['rows']} >= {'s1', 's2'}
    assert "'pooled': (2, 32)" in run_example(tmp_path / 'out')


@pytest.mark.parity
@pytest.mark.parametrize('kind', ['xae', 'joint', 'dino'])
def test_torch(kind, tmp_path):
    torch = pytest.importorskip('torch')
    out = tmp_path / 'out'
    assert command._export(source(kind), 'torch', out, None)['ok']
    code = (
        f'{WITHOUT}sys.path.insert(0, r"{out}")\n'
        'import torch, fusmae_encoder\n'
        f'encoder = fusmae_encoder.load(r"{out}")\n'
        "images = {'s1': torch.zeros(2, 2, 24, 24) - 13, 's2': torch.full((2, 12, 24, 24), 900.0)}\n"
        'print([tuple(x.shape) for x in encoder.features(images, (0, -1))])\n'
        "print(tuple(encoder.features(images, merge='concat')[0].shape), encoder.out_channels)\n"
        "print(sorted(name for name in sys.modules if name in ('jax', 'safetensors', 'numpy.random')))\n"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().split('\n')
    assert lines[0] == '[(2, 32, 4, 4), (2, 32, 4, 4)]' and torch
    assert lines[1].startswith('(2, 32' if kind == 'dino' else '(2, 64')


@pytest.mark.parity
def test_an_operation_that_onnx_is_not_written_with_is_named(xae, monkeypatch):
    pytest.importorskip('onnx', reason='needs the extra export')
    monkeypatch.delitem(to_onnx.RULES, 'rsqrt')
    with pytest.raises(to_onnx.InputError, match='the operation rsqrt'):
        to_onnx.graph_of(xae, ('s1',), to_onnx._Weights())
