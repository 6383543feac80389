import dataclasses
import json

import jax
import pytest

from fusmae_jax.bench import dispatch as bench_dispatch
from fusmae_jax.bench import input as bench_input
from fusmae_jax.bench import step as bench
from fusmae_jax.config import run as cfg
from fusmae_jax.input.mixture import check_rows, row_counts
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.train.setup import make_setup
from tests.support.helpers import CONTRACT
from tests.support.tiny import smallest_model, tiny_config


@pytest.mark.slow
def test_bench_prints_step_and_loader(example_dataset, capsys, monkeypatch):
    monkeypatch.setattr(bench_input, 'SECONDS', 0.2)
    config = tiny_config(
        model=smallest_model(), data=cfg.Data(path=str(example_dataset), threads=2, prefetch=2)
    )
    assert bench.bench(config, [1]) == 0  # one record on each of the eight devices
    out = capsys.readouterr().out
    for part in (
        'batch 8 |',
        'compile ',
        'step ',
        'images/s',
        'TFLOP/s',
        'MFU unknown',
        'peak memory',
        'records/s',
    ):
        assert part in out


@pytest.mark.slow
def test_dispatch_is_timed_on_the_parameters_of_the_model(example_dataset):
    """The arrays of the configured model, a few numbers wide, on as many devices as asked for."""
    config = tiny_config(data=cfg.Data(path=str(example_dataset), threads=1, prefetch=1))
    milliseconds, leaves = bench_dispatch.dispatch(config, jax.devices()[:2])
    setup = make_setup(config, CONTRACT, 100, jax.devices()[:2])
    assert leaves == len(jax.tree.leaves(setup.abstract_state())) and 0 < milliseconds < 1000


def test_dispatch_takes_a_mesh_and_a_mixture_that_one_device_cannot():
    parts = {name: cfg.MixturePart(path=name, weight=w) for name, w in (('a', 2.0), ('b', 1.0))}
    config = tiny_config(data=cfg.Data(mixture=parts), parallel=cfg.Parallel(fsdp=2))
    for devices, batch in ((1, 2), (2, 6)):
        small = bench_dispatch.narrow(config, devices)
        assert make_mesh(small.parallel, jax.devices()[:devices]).size == devices
        rows = row_counts(small.data, small.train.batch_size)
        check_rows(rows, devices)
        assert sum(rows.values()) == batch
    assert bench_dispatch.narrow(tiny_config(), 2).train.batch_size == 2


def test_the_loader_rate_is_positive(example_dataset, monkeypatch):
    monkeypatch.setattr(bench_input, 'SECONDS', 0.2)
    config = tiny_config(data=cfg.Data(path=str(example_dataset), threads=1, prefetch=1))
    source = bench.open_train(config).sources['']
    assert bench_input.loader_rate(dataclasses.replace(config, seed=1), source) > 10


def test_errors_other_than_memory_are_not_swallowed(example_dataset, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError('INTERNAL: something else')

    monkeypatch.setattr(bench, 'time_step', broken)
    config = tiny_config(data=cfg.Data(path=str(example_dataset)))
    with pytest.raises(jax.errors.JaxRuntimeError):
        bench.bench(config, [1])


def test_input_prints_rates_processor_time_and_what_16_cores_reach(example_dataset, capsys, monkeypatch):
    monkeypatch.setattr(bench_input, 'SECONDS', 0.05)
    monkeypatch.setattr(bench_input, 'ROUNDS', 1)
    assert bench_input.bench_input(str(example_dataset), 'train', 4, 1, as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['image_bytes'] == 120 * 120 * (2 * 4 + 4 * 2) + 60 * 60 * 6 * 2 + 20 * 20 * 2 * 2
    assert (
        list(result['cpu_ms']) == list(result['records_per_second']) == ['raw', 'source', 'batches', 'device']
    )
    assert min(result['cpu_ms'].values()) > 0 and result['records_per_second_16_cores'] > 0
    assert bench_input.bench_input(str(example_dataset), 'train', 4, 1) == 0
    assert 'by the last line 16 cores read' in capsys.readouterr().out
