"""Flags of jax that change the numbers of a run, as the shell or the host program has set them.

A resume goes on with the same random keys, types and roundings, or it is another run: another generator of
random numbers alone gives every record another mask, without a word. Flags of speed and memory are left out,
as is what the devices themselves decide: a run may move to other chips.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax

NAMES = (
    'jax_default_prng_impl',
    'jax_threefry_partitionable',
    'jax_random_seed_offset',
    'jax_enable_x64',
    'jax_default_matmul_precision',
    'jax_disable_most_optimizations',
)
COMPILER = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')  # variables with flags of the compiler
# Words in the names of those that change roundings or the order of sums.
ROUNDING = ('precision', 'deterministic', 'fast_math', 'fast_min_max', 'tf32')
TF32 = 'NVIDIA_TF32_OVERRIDE'  # of cuBLAS


def values() -> dict[str, Any]:
    """Flag -> value, as JSON can hold it."""
    flags = {name: jax.config.values.get(name) for name in NAMES}
    given = [flag for name in COMPILER for flag in os.environ.get(name, '').split()]
    named = {flag: flag.partition('=')[0] for flag in given}
    flags['compiler flags'] = sorted(f for f, name in named.items() if any(w in name for w in ROUNDING))
    flags[TF32] = os.environ.get(TF32)
    return {name: value if isinstance(value, list) else _plain(value) for name, value in flags.items()}


def differences(stored: Mapping[str, Any]) -> list[str]:
    """What a run had set otherwise, one line each; a flag that it did not record is none."""
    here = values()
    return [
        f'{name}: the run has {stored[name]!r}, this process {value!r}{_advice(name, stored[name])}'
        for name, value in here.items()
        if name in stored and stored[name] != value
    ]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _advice(name: str, value: Any) -> str:
    if name not in NAMES:
        return ''
    return f' (set {name.upper()}={value})' if value is not None else f' (unset {name.upper()})'
