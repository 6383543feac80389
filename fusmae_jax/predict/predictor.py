"""The compiled function of `predict`: windows to the probabilities, or the numbers, of their pixels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from fusmae_jax.embed.check import FittedFiles
from fusmae_jax.embed.stream import EncodeWindows
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.eval.dense.features import of_two_dates, scaled, token_map
from fusmae_jax.eval.dense.score import scores
from fusmae_jax.eval.dense.stored import StoredHead
from fusmae_jax.eval.dense.targets import nearest
from fusmae_jax.input.contract import LabelMap
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.input.resample import full_box
from fusmae_jax.models import fusmae

BEFORE = 'before_'  # before the names of the fields of an earlier image
DATES = ('', BEFORE)


def make_predictor(
    model: Pretrained,
    fitted: FittedFiles,
    head: StoredHead,
    batch: int,
    earlier: FittedFiles | None = None,
) -> EncodeWindows:
    """Compiles `predict(windows) -> probabilities, measured` for batches of one size.

    Args:
        model: the encoder.
        fitted: how the files fit it.
        head: what was learned on its tokens.
        batch: windows in a batch.
        earlier: how the files of the earlier date fit it, for a head of two dates; their fields are called
            BEFORE and the name of the later ones.

    Returns:
        A function of field -> (batch, rows, columns, bands) float32, NaN where nothing was measured. It
        gives probabilities (batch, label rows, label columns, classes) float32, or numbers in their unit (the
        last axis is 1), and where a sensor measured anything (without that axis), on the device.
    """
    fits = {'': fitted} if earlier is None else {'': fitted, BEFORE: earlier}
    inputs = [make_inputs(one.config, one.contract) for one in fits.values()]
    groups = {
        f'{date}{name}': group for date, one in fits.items() for name, group in one.contract.groups.items()
    }
    whole = model.config.model
    graphdef = fusmae.graph(whole, model.dtype)

    def run(params: Any, learned: Any, windows: Any) -> tuple[Array, Array]:
        # Products of two dates need not have the same files.
        dates = [{n: windows[f'{date}{n}'] for n in one.contract.groups} for date, one in fits.items()]
        encoder = nnx.merge(graphdef, params)
        each = [
            token_map(encoder, prepare(images, None), head.layers) for images, prepare in zip(dates, inputs)
        ]
        features = each[0] if earlier is None else of_two_dates(each[0], each[1], head.shape.blocks)
        logits = scores(learned[0], scaled(features, learned[1]), head.shape, head.labels.size)
        there = [measured(images, features.seen, head.labels.size) for images in dates]
        said = jax.nn.softmax(logits / head.temperature) if isinstance(head.labels, LabelMap) else logits
        return said, jnp.all(jnp.stack(there), axis=0)

    shapes = {
        name: jax.ShapeDtypeStruct((batch, *group.size, len(group.bands)), jnp.float32)
        for name, group in groups.items()
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
