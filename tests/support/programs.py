"""Compiled steps in tests: what their programs hold, and batches where they want them."""

import re

import jax

from fusmae_jax.parallel.mesh import batch_sharding

ONE, GRID = (1, 1), (4, 2)
STABLE = r'stablehlo\.((?:select_and_)?scatter)\b'
COMPILED = r'(?<![\w-])((?:select-and-)?scatter)\('


def scatters(lowered, compiled):
    """Names of scatter ops; reduce-scatter, which moves data between devices, is another thing."""
    return re.findall(STABLE, lowered.as_text()) + re.findall(COMPILED, compiled.as_text())


def on(setup, batch):
    return jax.device_put(batch, batch_sharding(setup.mesh))
