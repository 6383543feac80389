"""What a run asks of jax: its cache of compiled programs, and flags that change the numbers."""

import os

import jax
import numpy as np
import pytest

from fusmae_jax.run import compile_cache, jax_flags
from tests.support.files import cut, flip
from tests.support.programs import new_program


@pytest.fixture
def hits():
    """Counts the programs that came from the folder."""
    counted = []

    def listen(event, **_):
        counted.extend([event] * event.endswith('/compilation_cache/cache_hits'))

    jax.monitoring.register_event_listener(listen)
    yield counted
    jax.monitoring.unregister_event_listener(listen)


# Made by NumPy: `jnp.arange` is a program too, and another test may have compiled it before.
INPUT = np.arange(64, dtype=np.float32)


def run(workdir):
    """Compiles and runs the program as a run does; its result."""
    with compile_cache.enabled(workdir) as cache:
        result = np.asarray(new_program()(INPUT))
        cache.seal()
    return result


def entries(workdir):
    return sorted((workdir / compile_cache.FOLDER).glob('*-cache'))


def test_the_second_run_compiles_nothing(tmp_path, hits):
    first = run(tmp_path)
    assert entries(tmp_path) and not hits
    again = run(tmp_path)
    assert len(hits) == len(entries(tmp_path)) == 1
    np.testing.assert_array_equal(first, again)
    assert not jax.config.jax_compilation_cache_dir  # what follows is not cached


@pytest.mark.parametrize('damage', [flip, lambda file: cut(file, 40), lambda file: cut(file, 0)])
def test_a_damaged_entry_is_deleted_and_written_anew(damage, tmp_path, hits):
    first = run(tmp_path)
    whole = {file.name for file in entries(tmp_path)}
    for file in entries(tmp_path):
        damage(file)
    np.testing.assert_array_equal(run(tmp_path), first)  # a warning of jax would be an error here
    assert not hits and {file.name for file in entries(tmp_path)} == whole
    run(tmp_path)
    assert len(hits) == len(whole)


def test_an_entry_without_digest_is_not_trusted(tmp_path, hits):
    run(tmp_path)
    (tmp_path / compile_cache.FOLDER / compile_cache.DIGESTS).write_text('{"half')
    run(tmp_path)
    assert not hits
    run(tmp_path)
    assert hits


def test_what_was_never_whole_is_not_sealed(tmp_path):
    with compile_cache.enabled(tmp_path) as cache:
        np.asarray(new_program()(INPUT))
        for file in entries(tmp_path):
            os.truncate(file, 50)  # as a full disk leaves it
        cache.seal()
        assert not entries(tmp_path)
        assert cache.seal() == 0


def test_a_cache_chosen_by_the_user_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'mine'))
    with compile_cache.enabled(tmp_path) as cache:
        assert cache is None
    assert not (tmp_path / compile_cache.FOLDER).exists()


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
