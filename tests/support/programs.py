"""Compiled programs in tests: what a step holds, its batches where it wants them, and a new program."""

import re

import jax
import jax.numpy as jnp

from fusmae_jax.parallel.mesh import batch_sharding

ONE, GRID = (1, 1), (4, 2)
STABLE = r'stablehlo\.((?:select_and_)?scatter)\b'
# XLA for CPUs makes a loop of a scatter, which keeps the name of what it was.
COMPILED = r'(?<![\w-])((?:select-and-)?scatter)\(|op_name="[^"]*/((?:select_and_)?scatter[^"/]*)"'


def scatters(lowered, compiled):
    """Names of scatter ops; reduce-scatter, which moves data between devices, is another thing."""
    return re.findall(STABLE, lowered.as_text()) + re.findall(COMPILED, compiled.as_text())


def on(setup, batch):
    return jax.device_put(batch, batch_sharding(setup.mesh))


def new_program():
    """A new function each time, so that only a folder of compiled programs remembers it."""
    return jax.jit(lambda x: jnp.sin(x) * 1.2345 + x[::-1])
