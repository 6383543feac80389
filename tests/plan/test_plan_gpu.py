"""Plans for GPUs that are not there: the train step through XLA's compiler for them."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build
from fusmae_jax.errors import InputError
from fusmae_jax.plan import command, parts, report, speed, topology
from fusmae_jax.plan.compiled import compile_step
from fusmae_jax.plan.gpus import GPUS
from fusmae_jax.plan.hlo import read
from fusmae_jax.plan.kernels import kernels
from fusmae_jax.plan.records import layout
from fusmae_jax.plan.roofline import FILLS, SLICES, roofline
from fusmae_jax.shipped.configs import pretrain
from fusmae_jax.train.flops import peak_flops
from fusmae_jax.train.setup import make_setup
from tests.support.tiny import tiny_config

MISSING = not any(importlib.util.find_spec(plugin) for plugin in topology.PLUGINS)
needs_plugin = [
    pytest.mark.gpu_plan,
    pytest.mark.skipif(MISSING, reason='the CUDA plugin is not installed: pip install -e ".[cuda-plan]"'),
]


def planned(test):
    for mark in needs_plugin:
        test = mark(test)
    return test


@pytest.fixture
def _as_a_run_compiles():
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


def test_without_the_plugin_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr(topology, 'PLUGINS', ('no_such_plugin',))
    with pytest.raises(InputError, match='cuda-plan') as error:
        topology.machine('h100:8')
    assert 'no GPU is needed' in str(error.value)


@pytest.mark.parametrize('name', ['h100:0', 'h100:8x0hosts'])
def test_machines_of_nothing(name):
    with pytest.raises(InputError, match='at least one'):
        topology.machine(name)


@pytest.mark.parametrize('name', ['h300:8', 'h100', 'h100:8x4', 'h100:8x2slices'])
def test_machines_that_do_not_exist(name):
    with pytest.raises(InputError, match='not understood'):
        topology.machine(name)


@pytest.mark.parametrize('name', GPUS)
def test_the_peak_of_every_gpu_is_the_same_in_both_tables(name):
    assert peak_flops(GPUS[name].name) == pytest.approx(GPUS[name].rates['bf16'], rel=1e-3)


@planned
@pytest.mark.parametrize(
    ('name', 'devices', 'hosts', 'kind', 'gib'),
    [
        ('h100:8', 8, 1, 'NVIDIA H100 80GB HBM3', 59.33),
        ('h100:8x4hosts', 32, 4, 'NVIDIA H100 80GB HBM3', 59.33),
        ('h200:1', 1, 1, 'NVIDIA H200', 105.75),
        ('a100:8', 8, 1, 'NVIDIA A100-SXM4-80GB', 59.44),
        ('b200:8', 8, 1, 'NVIDIA B200', 133.77),
    ],
)
def test_machines(name, devices, hosts, kind, gib, monkeypatch):
    for variable in topology.SHARE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    machine = topology.machine(name)
    assert (len(machine.devices), machine.hosts, machine.kind) == (devices, hosts, kind)
    assert machine.memory == pytest.approx(gib * 2**30, rel=1e-3) and '75%' in machine.memory_source
    assert machine.platform == 'gpu' and not topology.is_here(machine.devices[0])


@planned
def test_the_share_that_jax_takes_can_be_another(monkeypatch):
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
    machine = topology.machine('h200:1')
    assert machine.memory == int(0.9 * GPUS['h200'].memory)
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' in machine.memory_source


@pytest.mark.parametrize('text', ['much', '7', '0'])
def test_a_share_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', text)
    with pytest.raises(InputError, match='XLA_PYTHON_CLIENT_MEM_FRACTION'):
        topology._share('XLA_PYTHON_CLIENT_MEM_FRACTION')


@planned
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.usefixtures('_as_a_run_compiles')
def test_products_are_counted_in_what_the_compiler_makes(dtype):
    where = jax.sharding.SingleDeviceSharding(topology.machine('h200:1').devices[0])
    x, w = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((1024, 256), (256, 512)))
    jitted = jax.jit(lambda x, w: jnp.tanh(x @ w), in_shardings=where, out_shardings=where)
    compiled = jitted.lower(x, w).compile({'xla_gpu_enable_triton_gemm': False})
    counted = kernels(read(compiled.as_text()))
    assert sum(k.times * k.flops for k in counted) == 2 * 1024 * 256 * 512
    (product,) = [product for k in counted for product in k.products]
    assert product.dtype == {'bfloat16': 'bf16', 'float32': 'f32'}[dtype]
    least = (1024 * 256 + 256 * 512 + 1024 * 512) * jnp.dtype(dtype).itemsize
    assert least <= sum(k.traffic for k in counted) <= 2.5 * least


@planned
@pytest.mark.usefixtures('_as_a_run_compiles')
def test_the_plan_of_a_small_model(monkeypatch):
    # One size alone is compiled, which takes the compiler long enough.
    monkeypatch.setattr(command, '_sizes', lambda setup, step, limit: [step])
    config = tiny_config(train=cfg.Train(batch_size=32, steps=10))
    plan = command.make_plan(config, topology.machine('h100:8'))
    assert plan.fits and plan.speed.source == speed.MODELLED and plan.speed.exact
    # Gradients of matrices are summed in the type of the products.
    assert parameter_bytes(plan) / 2 <= plan.step.collectives.kinds['all-reduce'].bytes
    places = {place.part for place in plan.speed.places}
    assert places >= {*parts.PARTS} - {parts.OTHER}
    total = plan.speed.total
    # Nearly everything has a place.
    rest = [share.seconds for place, share in plan.speed.places.items() if place.part == parts.OTHER]
    assert sum(rest) < 0.1 * total.seconds
    # Resampling is not part of the analytic figure, and what is no multiple of 8 is padded.
    model = sum(share.flops for place, share in plan.speed.places.items() if place.part != parts.PREPARE)
    assert 0.9 <= model / (plan.estimate.flops_per_image * 32 / 8) < 2
    assert plan.estimate.mfu_source == speed.MODELLED
    assert plan.estimate.images_per_second == pytest.approx(32 / total.seconds)
    text = '\n'.join(report.lines(plan))
    assert 'a floor' in text and 'at most, MFU' in text and 'an assumption' not in text
    json.dumps(report.data(plan))


@planned
@pytest.mark.usefixtures('_as_a_run_compiles')
def test_the_step_of_an_h200_wastes_nothing():
    """ViT-B at the least depth: no product of float32, no stack of a loop, nothing moved in full size."""
    values = pretrain.get_config('xae').to_dict()
    values['model'] |= {'depth': 2, 'size': 'custom', 'width': 768, 'heads': 12}
    values['train'] |= {'batch_size': 64, 'compute_dtype': 'bfloat16'}
    config = build(values)
    machine = topology.machine('h200:1')
    contract, examples, _ = layout(config)
    setup = make_setup(config, contract, examples, machine.devices)
    step = compile_step(setup, 64, quick=False, inspect=True)
    model = roofline(step.module, GPUS['h200'])
    assert model.wide_products() == []
    assert model.unknown() == []
    traffic = model.total.traffic
    assert model.filled() < 0.01 * traffic
    assert {
        name: size for name, size in model.moved().items() if name == 'pad' and size > 0.01 * traffic
    } == {}
    # One thing alone is copied in part: tokens of both sensors, into one sequence and out of it.
    assert sum(model.moved().values()) < 0.06 * traffic
    kinds = {place.kind for place in model.by_place()}
    assert SLICES not in kinds and FILLS not in kinds
    kernels_of = [placed.kernel.instruction.op_name for placed in model.kernels]
    for name in ('attention_forward', 'attention_backward', 'add_norm_forward', 'add_norm_backward'):
        assert any(name in op for op in kernels_of)


def parameter_bytes(plan):
    return sum(x.size * 4 for x in jax.tree.leaves(plan.setup.abstract_state()['params']))
