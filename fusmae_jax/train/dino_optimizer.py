"""AdamW as DINO's code runs it: scheduled decay, a clip for each parameter, a last layer that starts late.

The clip is that of each tensor's own norm, blocks of a stack counted one by one, not of the global norm.
While the last layer is frozen its moments rest too, so that its first step is an Adam step number one.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fusmae_jax.errors import raise_all
from fusmae_jax.parallel.rules import STACKED, path_name
from fusmae_jax.train.dino_loss import Schedule

# (regex on the path, is it decayed): all but biases and norms, CLS and positions included.
DECAY: tuple[tuple[str, bool], ...] = (
    (r'(^|/)(kernel|cls|position_table)$', True),
    (r'(^|/)(bias|scale)$', False),
)


class DinoOptState(NamedTuple):
    """Good steps so far, and the moments of the last layer apart from all others."""

    steps: Array
    body: optax.OptState
    last: optax.OptState


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
    adam = optax.scale_by_adam(b1, b2, eps)

    def init(params: Any) -> DinoOptState:
        body, last = _split(params)
        return DinoOptState(jnp.zeros((), jnp.int32), adam.init(body), adam.init(last))

    def update(grads: Any, state: DinoOptState, params: Any = None) -> tuple[Any, DinoOptState]:
        body, last = _split(clip(grads, clip_norm) if clip_norm else grads)
        body, body_state = adam.update(body, state.body)
        last, last_state = adam.update(last, state.last)
        thawed = state.steps >= freeze_steps
        last_state = jax.tree.map(lambda new, old: jnp.where(thawed, new, old), last_state, state.last)
        rate, decay = learning_rate(state.steps), weight_decay(state.steps)

        def scaled(move: Array, param: Array, decayed: bool) -> Array:
            return -rate * (move + decay * param if decayed else move)

        updates = jax.tree.map(scaled, _join(body, last), params, decay_mask(params))
        body, last = _split(updates)
        last = jax.tree.map(lambda x: jnp.where(thawed, x, 0), last)
        return _join(body, last), DinoOptState(state.steps + 1, body_state, last_state)

    return optax.GradientTransformation(init, update)


def decay_mask(params: Any) -> Any:
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


def clip(grads: Any, limit: float) -> Any:
    """Each gradient scaled to a norm of at most `limit`; stacked blocks are clipped one by one."""

    def clipped(path: Any, grad: Array) -> Array:
        first = 1 if STACKED.search(path_name(path)) else 0
        square = jnp.sum(jnp.square(grad), axis=tuple(range(first, grad.ndim)), keepdims=True)
        return grad * jnp.minimum(1, limit / (jnp.sqrt(square) + 1e-6))

    return jax.tree_util.tree_map_with_path(clipped, grads)


def _split(tree: Any) -> tuple[Any, Any]:
    """All parameters but `head/last`, and those."""
    head = {name: part for name, part in tree['head'].items() if name != 'last'}
    return {**tree, 'head': head}, tree['head']['last']


def _join(body: Any, last: Any) -> Any:
    return {**body, 'head': {**body['head'], 'last': last}}
