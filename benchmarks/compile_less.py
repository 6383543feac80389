"""Less time in the compiler, for benchmarks that train many small models in one process."""

import os
from pathlib import Path

import jax

# Masks that are known when a program is compiled are otherwise folded into it at great length.
FLAGS = '--xla_disable_hlo_passes=constant_folding'
CACHE = 'JAX_COMPILATION_CACHE_DIR'


def compile_less(workdir: Path) -> None:
    """One cache of programs for all runs: those of one encoder differ in their training step alone.

    To be called before anything is computed.
    """
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'.strip()
    folder = os.environ.setdefault(CACHE, str((workdir / 'compiled').absolute()))
    # jax was imported, and has read its environment, before this.
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
