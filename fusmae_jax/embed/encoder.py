"""From a batch of windows to one vector for each cell: one compiled function with one shape."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusmae_jax.config.run import Config
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.presets import make_inputs

Encoder = Callable[[Mapping[str, np.ndarray]], tuple[Array, Array]]


def make_encoder(
    model: Pretrained,
    config: Config,
    contract: Contract,
    batch: int,
    output: Literal['tokens', 'pooled', 'cls'],
) -> Encoder:
    """Compiles `encode(windows) -> vectors, valid` for batches of one size.

    Args:
        model: the checkpoint, whose weights are used.
        config: its configuration, with the modalities that are given and their statistics.
        contract: the fields of a batch, one for each modality.
        batch: windows in a batch.
        output: what a cell holds. `tokens`: the mean of the tokens that the sensors have there, leaving out
            those without a valid pixel. `pooled` and `cls`: that vector of the window, one cell a window.

    Returns:
        A function of modality -> (batch, rows, columns, bands) float32, NaN where nothing was measured. It
        gives vectors (batch, grid rows, grid columns, width) float32 and their validity (without width), on
        the device.
    """
    inputs = make_inputs(config, contract)
    grid = model.config.model.grid if output == 'tokens' else (1, 1)

    def run(params: Any, windows: Any) -> tuple[Array, Array]:
        patches = inputs(windows, None)
        tokens, cls, pooled = model.run(params, patches)
        valid = {name: jnp.any(p.valid, axis=2) for name, p in patches.items()}
        if output == 'tokens':
            vectors, some = _mean(tokens, valid)
        else:
            vectors = cls if output == 'cls' else pooled
            some = jnp.any(jnp.concatenate(list(valid.values()), axis=1), axis=1)
        return vectors.astype(jnp.float32).reshape(batch, *grid, -1), some.reshape(batch, *grid)

    shapes = {
        name: jax.ShapeDtypeStruct((batch, *group.size, len(group.bands)), jnp.float32)
        for name, group in contract.groups.items()
    }
    compiled = jax.jit(run).lower(model.params, shapes).compile()

    return lambda windows: compiled(model.params, dict(windows))


def _mean(tokens: Mapping[str, Array], valid: Mapping[str, Array]) -> tuple[Array, Array]:
    """The mean over the sensors whose token rests on a pixel (b, n, d), and where there is one (b, n)."""
    weights = {name: v[..., None].astype(jnp.float32) for name, v in valid.items()}
    total = sum(tokens[name].astype(jnp.float32) * w for name, w in weights.items())
    count = sum(weights.values())
    assert isinstance(total, jax.Array) and isinstance(count, jax.Array)
    return total / jnp.maximum(count, 1), count[..., 0] > 0
