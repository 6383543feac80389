"""AdamW as DINO's code runs it: scheduled decay, a clip for each parameter, a last layer that starts late.

The clip is that of each tensor's own norm, blocks of a stack counted one by one, not of the global norm.
While the last layer is frozen its moments rest too, so that its first step is an Adam step number one.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fusmae_jax.config.run import Config
from fusmae_jax.errors import raise_all
from fusmae_jax.parallel.rules import STACKED, Params, path_name
from fusmae_jax.train.dino_objective import Schedule, cosine

# (regex on the path, is it decayed): all but biases and norms, CLS and positions included.
DECAY: tuple[tuple[str, bool], ...] = (
    (r'(^|/)(kernel|cls|position_table)$', True),
    (r'(^|/)(bias|scale)$', False),
)
BODY, LAST = 'body', 'last'


def schedules(config: Config, steps: int, examples: int) -> tuple[Schedule, Schedule]:
    """Learning rate and weight decay of a step, in a run of `steps` over `examples` records."""
    optimizer, dino = config.optimizer, config.distillation
    warmup = optimizer.warmup_steps or round(optimizer.warmup_epochs * examples / config.train.batch_size)
    return (
        cosine(optimizer.learning_rate, dino.final_learning_rate, steps, warmup),
        cosine(optimizer.weight_decay, dino.final_weight_decay, steps),
    )


def make_optimizer(
    learning_rate: Schedule,
    weight_decay: Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    freeze_steps: int,
) -> optax.GradientTransformation:
    """The optimizer of a run.

    Args:
        learning_rate: of a step.
        weight_decay: of a step; decoupled, multiplied by the learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        clip_norm: of each tensor's gradient; 0 is off.
        freeze_steps: steps during which `head/last` does not move.
    """

    def thawed(step: Array) -> Array:
        return step >= freeze_steps

    adam = optax.scale_by_adam(b1, b2, eps)
    resting = optax.conditionally_transform(adam, thawed)
    still = optax.conditionally_mask(optax.identity(), thawed)
    return optax.chain(
        optax.stateless(lambda grads, _: clip(grads, clip_norm)) if clip_norm else optax.identity(),
        optax.partition({BODY: adam, LAST: resting}, _parts),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate),
        # Once more, after the decay: a frozen layer does not shrink either.
        optax.partition({BODY: optax.identity(), LAST: still}, _parts),
    )


def _parts(params: Params) -> Any:
    """LAST for the parameters of `head/last`, BODY for all others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: LAST if path_name(path).startswith('head/last/') else BODY, params
    )


def decay_mask(params: Params) -> Any:
    """True for parameters that weight decay applies to; raises InputError for uncovered names."""
    uncovered: list[str] = []

    def decayed(path: Any, _: Any) -> bool:
        name = path_name(path)
        for pattern, value in DECAY:
            if re.search(pattern, name):
                return value
        uncovered.append(f'{name}: add a rule for it to train.dino_optimizer.DECAY')
        return False

    mask = jax.tree_util.tree_map_with_path(decayed, params)
    raise_all('no weight-decay rule covers these parameters', uncovered)
    return mask


def clip(grads: Params, limit: float) -> Any:
    """Each gradient scaled to a norm of at most `limit`; stacked blocks are clipped one by one."""

    def clipped(path: Any, grad: Array) -> Array:
        first = 1 if STACKED.search(path_name(path)) else 0
        square = jnp.sum(jnp.square(grad), axis=tuple(range(first, grad.ndim)), keepdims=True)
        return grad * jnp.minimum(1, limit / (jnp.sqrt(square) + 1e-6))

    return jax.tree_util.tree_map_with_path(clipped, grads)
