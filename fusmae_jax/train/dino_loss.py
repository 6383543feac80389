"""DINO's loss, its centre, its teacher, and the half-cosine schedules that drive them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Schedule = Callable[[Array], Array]


class Terms(NamedTuple):
    """The loss of a batch and what it says of the teacher; entropies in nats."""

    loss: Float[Array, '']  # cross-entropy, mean over pairs of different views and records
    kl: Float[Array, '']  # Kullback-Leibler divergence of the student from the teacher: loss - entropy
    entropy: Float[Array, '']  # of the teacher's distribution for one view; log(k) when it is flat
    spread: Float[Array, '']  # entropy of the teacher's mean distribution; 0 when all views look alike to it


def cross_entropy(
    student: Float[Array, 'b v k'],
    teacher: Float[Array, 'b g k'],
    centre: Float[Array, ' k'],
    student_temperature: float,
    teacher_temperature: float,
) -> Terms:
    """Cross-entropy between the teacher on global crops and the student on all others.

    Args:
        student: logits of all crops, the global ones first.
        teacher: logits of the global crops; no gradient goes there.
        centre: subtracted from the teacher's logits.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the centred logits of the teacher.
    """
    views, crops = teacher.shape[1], student.shape[1]
    sharp = (jax.lax.stop_gradient(teacher) - centre[None, None]) / teacher_temperature
    log_target, target = jax.nn.log_softmax(sharp), jax.nn.softmax(sharp)
    log_student = jax.nn.log_softmax(student / student_temperature)
    pairs = -jnp.einsum('bgk,bvk->gv', target, log_student, precision='highest') / len(student)
    other = ~jnp.eye(views, crops, dtype=bool)
    loss = jnp.sum(jnp.where(other, pairs, 0)) / (views * crops - views)
    entropy = -jnp.mean(jnp.sum(target * log_target, axis=-1))
    mean = jnp.mean(target, axis=(0, 1))
    spread = -jnp.sum(mean * jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)))
    return Terms(loss, loss - entropy, entropy, spread)


def update_centre(
    centre: Float[Array, ' k'], teacher: Float[Array, 'b g k'], momentum: float
) -> Float[Array, ' k']:
    """Moving average of the mean of the teacher's logits over the global batch."""
    return momentum * centre + (1 - momentum) * jnp.mean(teacher, axis=(0, 1))


def update_teacher(teacher: Any, student: Any, rate: Float[Array, '']) -> Any:
    """The teacher's parameters moved towards the student's by `rate`, which is 1 - momentum."""
    return jax.tree.map(lambda t, s: t + rate.astype(t.dtype) * (s - t), teacher, student)


def cosine(start: float, end: float, steps: int, warmup: int = 0) -> Schedule:
    """From `start` to `end` along half a cosine, as DINO's code has it; `end` itself would be step `steps`.

    With a warm-up, `warmup` steps rise linearly from 0, the last of which has reached `start`.
    """

    def value(step: Array) -> Array:
        share = (step - warmup).astype(jnp.float32) / max(steps - warmup, 1)
        # cos^2 of half the angle keeps its relative precision near the end, where 1 + cos would lose it.
        fall = end + (start - end) * jnp.square(jnp.cos(jnp.pi / 2 * jnp.clip(share, 0, 1)))
        return jnp.where(step < warmup, start * step / max(warmup - 1, 1), fall)

    return value
