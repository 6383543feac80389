import dataclasses

import pytest

from fusmae_jax import bench, bench_input
from tests.conftest import cfg, tiny_config


def test_bench_prints_step_and_loader(example_dataset, capsys, monkeypatch):
    monkeypatch.setattr(bench_input, 'SECONDS', 0.2)
    config = tiny_config(data=cfg.Data(path=str(example_dataset), threads=2, prefetch=2))
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


def test_the_loader_rate_is_positive(example_dataset, monkeypatch):
    monkeypatch.setattr(bench_input, 'SECONDS', 0.2)
    config = tiny_config(data=cfg.Data(path=str(example_dataset), threads=1, prefetch=1))
    source = bench.open_train(config).sources['']
    assert bench_input.loader_rate(dataclasses.replace(config, seed=1), source) > 10


def test_errors_other_than_memory_are_not_swallowed(example_dataset, monkeypatch):
    import jax

    def broken(*_):
        raise jax.errors.JaxRuntimeError('INTERNAL: something else')

    monkeypatch.setattr(bench, 'time_step', broken)
    config = tiny_config(data=cfg.Data(path=str(example_dataset)))
    with pytest.raises(jax.errors.JaxRuntimeError):
        bench.bench(config, [1])
