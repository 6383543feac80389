"""Does radar reach masked optical patches? The true radar image against that of another region.

Of a joint sequence of as many slots as the model was trained with, 0, a few or half hold optical patches and
the others radar patches; every optical patch that is not among them is predicted, once with the true radar
image and once with that of another region from the same side of the flood.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.ombria_probe import batches
from benchmarks.ombria_swap import Split, exchange, order
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.eval.intervals import Interval, difference, intervals, resample
from fusmae_jax.eval.metrics import means
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.prepare import Patches, fields, make_prepare
from fusmae_jax.models import fusmae
from fusmae_jax.models.masking import Slots, hidden_patches, num_slots
from fusmae_jax.train import losses

VISIBLE = {'none': 0.0, 'eighth': 0.125, 'half': 0.5}  # share of the slots that hold optical patches
DRAWS, METRIC = 2, 's2'


def slots(images: int, patches: int, count: int, optical: int, draw: int) -> Slots:
    """Slots of which `optical` hold optical patches, drawn at random, and the others radar patches."""
    radar = order(images, patches, 0, draw)[:, : count - optical]
    position = np.concatenate([radar, order(images, patches, 1, draw)[:, :optical]], axis=1)
    sensor = np.repeat(np.arange(2, dtype=np.int32), [count - optical, optical])
    return Slots(np.broadcast_to(sensor, position.shape), position, np.ones(position.shape, bool))


def errors(model: Pretrained, data: str) -> Any:
    """The jitted function (params, images, slots) -> sum and count of each image's hidden optical patches."""
    config = model.config
    names, count = list(config.model.modalities), config.model.num_patches
    prepare, graphdef = make_prepare(config, contracts.read(data), None), fusmae.graph(config.model)

    @jax.jit
    def run(params: Any, images: Mapping[str, Any], chosen: Slots) -> Any:
        patches = prepare(images, None)
        predicted, _ = nnx.merge(graphdef, params).joint(patches, chosen)
        target = Patches(*patches['s2'])
        values = losses.normalise_patches(target) if config.loss.norm_pix else target.values
        keep = hidden_patches(chosen, names, count)['s2'][..., None] & target.valid
        squares = jnp.where(keep, (predicted['s2'] - values) ** 2, 0)
        return jnp.sum(squares, axis=(1, 2)), jnp.sum(keep, axis=(1, 2))

    return run


def measure(model: Pretrained, data: str, split: Split) -> dict[str, dict[str, np.ndarray]]:
    """Visible share -> what there is of each image: squared errors, `true` and `other`, and their `count`."""
    run, config = errors(model, data), model.config
    needed, patches = fields(config, contracts.read(data)), config.model.num_patches
    count, images = num_slots(patches, 2, config.masking), len(split.region)
    result = {}
    for name, share in VISIBLE.items():
        sums = {key: np.zeros(images) for key in ('true', 'other', 'count')}
        for draw in range(DRAWS):
            chosen = slots(images, patches, count, round(share * count), draw)
            swapped = split.images | {'s1': split.images['s1'][exchange(split, draw)]}
            for key, given in (('true', split.images), ('other', swapped)):
                squares, numbers = _run(run, model.params, {n: given[n] for n in needed}, chosen)
                sums[key] += squares
            sums['count'] += numbers
        result[name] = sums
    return result


def _run(run: Any, params: Any, images: Mapping[str, np.ndarray], chosen: Slots) -> tuple[np.ndarray, ...]:
    """What `run` gives of all images, batch by batch."""
    count, names = len(chosen.valid), Slots._fields
    parts = []
    for part in batches({**images, **chosen._asdict()}):
        given = Slots(*(part.pop(name) for name in names))
        parts.append(jax.device_get(run(params, part, given)))
    return tuple(np.concatenate([np.asarray(one[i], np.float64) for one in parts])[:count] for i in range(2))


def compare(one: Mapping[str, np.ndarray], region: np.ndarray) -> tuple[Interval, bool]:
    """True minus exchanged, mean squared error; and whether no image's error differs in a bit."""
    both = [resample(means({METRIC: one[key]}, one['count']), region) for key in ('true', 'other')]
    return intervals(difference(*both))[METRIC], bool(np.array_equal(one['true'], one['other']))
