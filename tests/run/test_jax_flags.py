"""Flags of jax that change the numbers of a run."""

import jax
import pytest

from fusmae_jax.run import jax_flags


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('jax_default_prng_impl', 'rbg'),
        ('jax_threefry_partitionable', False),
        ('jax_default_matmul_precision', 'highest'),
        ('jax_random_seed_offset', 3),
        ('jax_enable_x64', True),
    ],
)
def test_another_flag_is_named_with_both_values(name, value):
    stored, before = jax_flags.values(), jax.config.values[name]
    assert jax_flags.differences(stored) == []
    try:
        jax.config.update(name, value)
        (line,) = jax_flags.differences(stored)
        assert jax_flags.differences({}) == []  # a checkpoint of before there was a record
    finally:
        jax.config.update(name, before)
    assert (
        line.startswith(f'{name}: the run has {before!r}, this process {value!r} (') and name.upper() in line
    )


def test_flags_of_the_compiler_count_if_they_round(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
    stored = jax_flags.values()
    monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0')
    (line,) = jax_flags.differences(stored)
    assert "compiler flags: the run has [], this process ['--xla_gpu_deterministic_ops=true']" in line
