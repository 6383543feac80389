"""AdamW of a sweep of learning rates: the rate is part of the state, so that one compiled step serves all.

Warm-up and length belong to the state too: label subsets differ in them. The rate of a parameter falls with
its distance from the head, by name (layer-wise decay).
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fusmae_jax.errors import raise_all
from fusmae_jax.eval.finetune.config import Tuning
from fusmae_jax.parallel.rules import Params, path_name
from fusmae_jax.train.optimizer import decay_mask

EPS = 1e-8

# (regex on the path, blocks between the parameter and the head: of the whole depth, less a number).
LAYERS: tuple[tuple[str, int | None], ...] = (
    (r'^(head|encoder/norm|lora)/', None),  # at the head
    (r'^encoder/block1/', 0),
    (r'^encoder/(patch/|cls$|position_table$)', -1),
)
STACK = re.compile(r'^encoder/blocks/')


class Pace(NamedTuple):
    """The learning rate of every step."""

    peak: Array
    warmup: Array  # steps, int32
    total: Array  # steps, int32


class SweptState(NamedTuple):
    """Good steps so far, how fast they go, and the moments."""

    done: Array
    pace: Pace
    moments: optax.OptState


def pace(peak: float, warmup: int, total: int) -> Pace:
    """A pace as it stands in the state."""
    return Pace(jnp.float32(peak), jnp.int32(warmup), jnp.int32(total))


def rate(pace: Pace, count: Array) -> Float[Array, '']:
    """Linear from 0 to the peak, then a half cosine to 0 at the last step."""
    # As arrays of the state, not as numbers of the program: label subsets differ in them.
    count, warmup, total = (x.astype(jnp.float32) for x in (count, pace.warmup, pace.total))
    share = jnp.clip((count - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
    rising = count / jnp.maximum(warmup, 1)
    return pace.peak * jnp.where(count < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * share)))


def make_optimizer(config: Tuning, depth: int) -> optax.GradientTransformation:
    """AdamW with decoupled decay on kernels; its state starts at a peak of 0, see `start`.

    An encoder with adapters has neither moments nor decay. One that is frozen at first does not move until
    `frozen_epochs` of all epochs are over, nor do its adapters.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, EPS)
    moments = optax.chain(
        optax.masked(adam, _learns) if config.lora_rank else adam,
        optax.add_decayed_weights(config.weight_decay, mask=_decayed if config.lora_rank else decay_mask),
    )
    frozen = config.frozen_epochs / config.epochs

    def init(params: Params) -> SweptState:
        return SweptState(jnp.zeros((), jnp.int32), pace(0.0, 0, 1), moments.init(params))

    def update(grads: Any, state: SweptState, params: Any = None) -> tuple[Any, SweptState]:
        moves, inner = moments.update(grads, state.moments, params)
        now, scales = rate(state.pace, state.done), multipliers(params, depth, config.layer_decay)
        if frozen:
            thawed = state.done.astype(jnp.float32) >= frozen * state.pace.total.astype(jnp.float32)
            still = jax.tree.map(lambda x: jnp.where(thawed, x, 0), scales)
            scales = {**still, 'head': scales['head']}
        updates = jax.tree.map(lambda move, scale: -now * scale * move, moves, scales)
        return updates, SweptState(state.done + 1, state.pace, inner)

    return optax.GradientTransformation(init, update)


def _learns(params: Params) -> Any:
    """True for what learns where there are adapters: all but the encoder beneath them."""
    return {name: jax.tree.map(lambda _, own=name: own != 'encoder', part) for name, part in params.items()}


def _decayed(params: Params) -> Any:
    """Kernels of the head alone: adapters are no kernels, and are small by their rank."""
    rest = {name: jax.tree.map(lambda _: False, part) for name, part in params.items()}
    return rest | {'head': decay_mask({'head': params['head']})['head']}


def multipliers(params: Params, depth: int, decay: float) -> Any:
    """What the learning rate of each parameter is multiplied with; an array (blocks, 1, ...) for a stack.

    As in fine-tuning MAE: 1 for the head and the last norm, `decay` for the last block, and so on down to
    `decay ** (depth + 1)` for the projections of the patches. Raises InputError for uncovered names.
    """
    uncovered: list[str] = []

    def scale(path: Any, leaf: Any) -> Array:
        name = path_name(path)
        if STACK.search(name):
            powers = jnp.arange(depth - 1, 0, -1, dtype=jnp.float32)
            return (decay**powers).reshape(-1, *(1,) * (leaf.ndim - 1))
        for pattern, nearer in LAYERS:
            if re.search(pattern, name):
                return jnp.float32(1.0 if nearer is None else decay ** (depth - nearer))
        uncovered.append(f'{name}: add a rule for it to eval.finetune.optimizer.LAYERS')
        return jnp.float32(1.0)

    scales = jax.tree_util.tree_map_with_path(scale, params)
    raise_all('no layer-decay rule covers these parameters', uncovered)
    return scales
