"""Plans for pods that are not there: the train step through the TPU compiler."""

import importlib.util
import os
import time

import jax
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build
from fusmae_jax.config.files import load_config
from fusmae_jax.errors import InputError
from fusmae_jax.plan import command, report, topology
from tests.support.tiny import tiny_config

MISSING = importlib.util.find_spec('libtpu') is None and not os.environ.get('TPU_LIBRARY_PATH')
pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(MISSING, reason='libtpu is not installed: pip install -e ".[tpu]"'),
]


@pytest.fixture(autouse=True)
def _as_a_run_compiles():
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


@pytest.mark.parametrize(
    ('name', 'devices', 'hosts', 'kind', 'gib'),
    [
        ('v5e:16x16', 256, 64, 'TPU v5 lite', 15.75),
        ('v5p:4x4x4', 64, 16, 'TPU v5', 95.74),
        ('v4:2x2x2', 8, 2, 'TPU v4', 30.75),
        ('v6e:4x4', 16, 4, 'TPU v6 lite', 31.25),
        ('v5e:4x4x2slices', 32, 8, 'TPU v5 lite', 15.75),
    ],
)
def test_machines(name, devices, hosts, kind, gib):
    machine = topology.machine(name)
    assert (len(machine.devices), machine.hosts, machine.kind) == (devices, hosts, kind)
    assert machine.memory == pytest.approx(gib * 2**30, rel=1e-3)
    assert machine.memory < topology.CHIPS[name.split(':')[0]].hbm * 1.01


def test_a_shape_that_libtpu_refuses():
    with pytest.raises(InputError, match='no such machine'):
        topology.machine('v5e:3x5')


@pytest.mark.slow
def test_a_small_model_over_two_slices():
    config = tiny_config(train=cfg.Train(batch_size=32, steps=10), parallel=cfg.Parallel(fsdp=4))
    plan = command.make_plan(config, topology.machine('v5e:2x2x2slices'))
    assert plan.fits and plan.step.batch_size == 32
    assert plan.setup.mesh.shape == {'data': 2, 'fsdp': 4}
    assert str(plan.setup.dtype) == 'bfloat16'
    assert plan.step.collectives is None or 'all-reduce' in plan.step.collectives.kinds
    assert plan.estimate.images_per_second > 0
    assert any('bfloat16' in note for note in plan.notes)


@pytest.mark.slow
def test_a_batch_that_is_too_large_gives_the_sentence(capsys):
    config = build(load_config('configs/pretrain.py:xae', ['train.batch_size=8192']))
    assert command.run_plan(config, 'v5e:4x4') == 1
    out = capsys.readouterr().out
    assert 'Out of memory: 512 images on each device need about ' in out
    assert 'train.accumulation=' in out and 'Traceback' not in out


@pytest.mark.slow
@pytest.mark.parametrize('size', ['B', 'L'])
@pytest.mark.parametrize('name', ['v5e:4x4', 'v5e:16x16', 'v5p:4x4x4'])
def test_the_paper_on_a_pod(name, size):
    config = build(load_config('configs/pretrain.py:xae', [f'model.size={size}', 'train.batch_size=4096']))
    begin = time.process_time()
    plan = command.make_plan(config, topology.machine(name))
    # Of all threads, so that what else runs on the machine does not count; measured: 120 to 240 s.
    assert time.process_time() - begin < 400
    assert plan.largest and plan.estimate.hours
    assert 'estimate ' in '\n'.join(report.lines(plan))


@pytest.mark.slow
def test_the_largest_batch_is_one_that_fits():
    config = build(load_config('configs/pretrain.py:xae', ['model.size=S', 'train.batch_size=256']))
    plan = command.make_plan(config, topology.machine('v5e:2x2'), verify=True)
    assert plan.verified.total <= plan.machine.memory
