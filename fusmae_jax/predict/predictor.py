"""The compiled function of `predict`: windows to the probabilities of their pixels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from fusmae_jax.embed.check import FittedFiles
from fusmae_jax.embed.stream import EncodeWindows
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.eval.dense.features import scaled, token_map
from fusmae_jax.eval.dense.score import scores
from fusmae_jax.eval.dense.stored import StoredHead
from fusmae_jax.eval.dense.targets import nearest
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.input.resample import full_box
from fusmae_jax.models import fusmae


def make_predictor(model: Pretrained, fitted: FittedFiles, head: StoredHead, batch: int) -> EncodeWindows:
    """Compiles `predict(windows) -> probabilities, measured` for batches of one size.

    Returns:
        A function of modality -> (batch, rows, columns, bands) float32, NaN where nothing was measured. It
        gives probabilities (batch, label rows, label columns, classes) float32, and where a sensor measured
        anything (without classes), on the device.
    """
    inputs = make_inputs(fitted.config, fitted.contract)
    whole = model.config.model
    graphdef = fusmae.graph(whole, model.dtype)

    def run(params: Any, learned: Any, windows: Any) -> tuple[Array, Array]:
        features = token_map(nnx.merge(graphdef, params), inputs(windows, None), head.layers)
        logits = scores(learned[0], scaled(features, learned[1]), head.shape, head.labels.size)
        return jax.nn.softmax(logits / head.temperature), measured(windows, features.seen, head.labels.size)

    shapes = {
        name: jax.ShapeDtypeStruct((batch, *group.size, len(group.bands)), jnp.float32)
        for name, group in fitted.contract.groups.items()
    }
    learned = (head.params, head.scale)
    compiled = jax.jit(run).lower(model.params, learned, shapes).compile()
    return lambda windows: compiled(model.params, learned, dict(windows))


def measured(
    windows: Mapping[str, Array], seen: Bool[Array, 'b gh gw'], size: tuple[int, int]
) -> Bool[Array, 'b h w']:
    """The pixels of a map of `size` that lie on a finite pixel of any band, in a token that saw one.

    Of the images as they are: a model pixel is resampled from its neighbours as well, and those beyond the
    border of a scene would cost its outermost pixels.
    """
    there = nearest(seen.astype(jnp.uint8), full_box(len(seen)), size) > 0
    some = [jnp.any(jnp.isfinite(images), axis=-1) for images in windows.values()]
    each = [nearest(x.astype(jnp.uint8), full_box(len(x)), size) > 0 for x in some]
    return there & jnp.any(jnp.stack(each), axis=0)
