"""AdamW, the warm-up cosine schedule, and the decay mask by parameter name."""

from typing import Any

import jax
import optax

from fusmae_jax.config.run import Optimizer
from fusmae_jax.errors import InputError
from fusmae_jax.parallel.rules import Params, by_name

# (regex on the path, is it decayed). A name that none matches is an error. By name and not by rank, since
# stacked biases have two dimensions as kernels have.
DECAY: tuple[tuple[str, bool], ...] = (
    (r'(^|/)kernel$', True),
    (r'(^|/)(bias|scale)$', False),
    (r'(^|/)(cls|mask_token|position_table)$', False),
)

# Groups of the optimizer's moments: an array for each kernel, one vector for everything else.
KERNELS, JOINED = 'kernels', 'joined'


def decay_mask(params: Params, decay_all: bool = False) -> Any:
    """True for parameters that weight decay applies to; raises InputError for uncovered names."""
    advice = 'add a rule for it to train.optimizer.DECAY'
    decayed = by_name(params, DECAY, 'no weight-decay rule covers these parameters', advice)
    return jax.tree.map(lambda value: value or decay_all, decayed)


def schedule(
    optimizer: Optimizer, total_steps: int, batch_size: int, examples_per_epoch: int
) -> optax.Schedule:
    """Learning rate of a step: linear from 0 to the peak, then a half cosine to 0 at `total_steps`.

    The warm-up is counted in examples (`warmup_epochs`), unless `warmup_steps` is given.
    """
    warmup = optimizer.warmup_steps or round(optimizer.warmup_epochs * examples_per_epoch / batch_size)
    if warmup >= total_steps > 1:
        raise InputError(
            f'config.optimizer: a warm-up of {warmup} steps leaves nothing of a run of {total_steps} steps; '
            'lower warmup_epochs or warmup_steps, or train longer'
        )
    return optax.warmup_cosine_decay_schedule(
        0.0, optimizer.learning_rate, min(warmup, total_steps - 1), max(total_steps, 1), 0.0
    )


def make_optimizer(optimizer: Optimizer, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with decoupled decay on kernels only, after an optional clip of the global norm.

    The moments of everything but kernels lie in one vector: of ViT-B XAE the host hands over 143 arrays in
    every step instead of 254, and the device runs one small program instead of dozens.
    """
    adam = optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)
    # Decay after Adam (decoupled), and both before the rate, which multiplies them.
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
        optax.partition({KERNELS: adam, JOINED: optax.flatten(adam)}, _groups),
        optax.add_decayed_weights(
            optimizer.weight_decay, lambda params: decay_mask(params, optimizer.decay_all)
        ),
        optax.scale_by_learning_rate(learning_rate),
    )


def _groups(params: Params) -> Any:
    """For each parameter, which of the two groups of moments it belongs to."""
    return jax.tree.map(lambda kernel: KERNELS if kernel else JOINED, decay_mask(params))
