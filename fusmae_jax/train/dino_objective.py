"""DINO-MM's objective: a student on all crops learns to predict its own slow average on the global ones.

With teacher logits z_t on the global crops, student logits z_s on all crops, centre c, and temperatures:

    P = softmax((z_t - c) / tau_t),   Q = softmax(z_s / tau_s),
    loss = mean over pairs of different crops g, v of -sum P_g log Q_v

`extra` holds the teacher's parameters, the centre, and the number of good steps, which drives the schedules.
A loss is computed before its step is taken, so the teacher is brought up to date at the start of the next
one, with the momentum of the step that has passed: the same numbers as an update after each step. The centre
is moved after it, by the mean over the whole batch, which may have come in parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.crops import Views, make_views
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import fields
from fusmae_jax.models import dino as dino_model
from fusmae_jax.models.blocks import sample_paths
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train.objective import Batch, Metrics, Objective, interleave

Schedule = Callable[[Array], Array]


def self_distillation(config: Config, contract: Contract, dtype: DTypeLike, total_steps: int) -> Objective:
    """The objective of a run.

    Metrics: `loss`, `kl` (of the student from the teacher), `teacher/entropy` (of one view; log of the number
    of outputs if it collapsed to a flat one), `teacher/spread` (entropy of the mean over the batch; 0 if it
    collapsed to one output), `teacher/momentum`, `centre_norm`.
    """
    settings = config.distillation
    graphdef = dino_model.graph(config.model, settings, dtype)
    inputs, rate = _inputs(config, contract), teacher_rate(config, total_steps)

    def begin(params: Params, extra: Any) -> Any:
        teacher = update_teacher(extra['teacher'], params, rate(extra['step'] - 1))
        nothing = jnp.zeros_like(extra['centre'])
        return extra | {'teacher': teacher, SEEN: Seen(nothing, nothing, jnp.zeros((), nothing.dtype))}

    def loss(params: Params, extra: Any, batch: Batch, key: Array) -> tuple[Array, tuple[Metrics, Any]]:
        views, paths = inputs(batch, key)
        target = _logits(nnx.merge(graphdef, extra['teacher']), views[:1], None)
        logits = _logits(nnx.merge(graphdef, params), views, paths)
        temperatures = settings.student_temperature, settings.teacher_temperature
        terms = cross_entropy(logits, target, extra['centre'], *temperatures)
        metrics = {'loss': terms.loss, 'kl': terms.kl, 'teacher/entropy': terms.entropy}
        return terms.loss, (metrics, extra | {SEEN: extra[SEEN].and_of(target, terms.mean)})

    def settle(extra: Any, metrics: Metrics) -> tuple[Any, Metrics]:
        seen, step = extra[SEEN], extra['step']
        # The loss has taken the centre before this batch, as in DINO's code.
        centre = update_centre(extra['centre'], seen.logits / seen.parts, settings.centre_momentum)
        metrics = metrics | {
            'teacher/spread': entropy_of(seen.shares / seen.parts),
            'teacher/momentum': 1 - rate(step),
            'centre_norm': jnp.linalg.norm(centre),
        }
        return {'teacher': extra['teacher'], 'centre': centre, 'step': step + 1}, metrics

    return Objective(
        lambda key: init(config, key, dtype),
        loss,
        tuple(fields(config, contract)),
        begin=begin,
        settle=settle,
        restart=follow_from,
    )


SEEN = 'seen'  # beside the extra state, within a step


class Seen(NamedTuple):
    """What the teacher has said of a batch so far: sums over its micro-batches of their means."""

    logits: Float[Array, ' k']
    shares: Float[Array, ' k']  # its distributions
    parts: Float[Array, '']  # micro-batches

    def and_of(self, logits: Float[Array, 'b g k'], shares: Float[Array, ' k']) -> 'Seen':
        """With one more micro-batch."""
        mean = jnp.mean(jax.lax.stop_gradient(logits), axis=(0, 1))
        return Seen(self.logits + mean, self.shares + shares, self.parts + 1)


def init(config: Config, key: Array, dtype: DTypeLike) -> tuple[Params, dict[str, Any]]:
    """Fresh parameters of the student, and the extra state beside them."""
    params = dino_model.init_params(config.model, config.distillation, key, dtype)
    centre = jnp.zeros(config.distillation.head.out_dim, jnp.promote_types(dtype, jnp.float32))
    # The teacher needs buffers of its own: the step donates the state.
    teacher = jax.tree.map(jnp.copy, params)
    return params, {'teacher': teacher, 'centre': centre, 'step': jnp.zeros((), jnp.int32)}


def shapes(config: Config, dtype: DTypeLike) -> tuple[Params, dict[str, Any]]:
    """Shapes and dtypes of what `init` draws."""
    return jax.eval_shape(lambda key: init(config, key, dtype), jax.random.key(0))


def follow_from(params: Params, extra: dict[str, Any]) -> dict[str, Any]:
    """The extra state of a run that starts from given parameters: the teacher has the same."""
    return {**extra, 'teacher': jax.tree.map(jnp.copy, params)}


def final_teacher(params: Params, extra: Any, config: Config, total_steps: int) -> Params:
    """The teacher of a state after its last step, which `extra` alone does not hold yet."""
    return update_teacher(extra['teacher'], params, teacher_rate(config, total_steps)(extra['step'] - 1))


def teacher_rate(config: Config, total_steps: int) -> Schedule:
    """By how much the teacher follows the student after a step: 1 - momentum."""
    return cosine(1 - config.distillation.teacher_momentum, 0.0, total_steps)


class Terms(NamedTuple):
    """The loss of a batch and what it says of the teacher; entropies in nats."""

    loss: Float[Array, '']  # cross-entropy, mean over pairs of different views and records
    kl: Float[Array, '']  # Kullback-Leibler divergence of the student from the teacher: loss - entropy
    entropy: Float[Array, '']  # of the teacher's distribution for one view; log(k) when it is flat
    mean: Float[Array, ' k']  # the teacher's mean distribution


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
    return Terms(loss, loss - entropy, entropy, jnp.mean(target, axis=(0, 1)))


def entropy_of(shares: Float[Array, ' k']) -> Float[Array, '']:
    """In nats. Of the teacher's mean distribution it is 0 when all views look alike to it."""
    return -jnp.sum(shares * jnp.log(jnp.maximum(shares, jnp.finfo(shares.dtype).tiny)))


def update_centre(
    centre: Float[Array, ' k'], mean: Float[Array, ' k'], momentum: float
) -> Float[Array, ' k']:
    """Moving average of the means of the teacher's logits over the global batches."""
    return momentum * centre + (1 - momentum) * mean


def update_teacher(teacher: Params, student: Params, rate: Float[Array, '']) -> Params:
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


def _inputs(
    config: Config, contract: Contract
) -> Callable[[Batch, Array], tuple[Views, list[Float[Array, 'depth _ 2']]]]:
    """The function from a raw batch to global and local crops, and the student's paths through them."""
    make = {prefix: make_views(config, part) for prefix, part in contract.each.items()}
    dino = config.distillation
    counts = dino.global_crops.count, dino.local_crops.count

    def inputs(batch: Batch, key: Array) -> tuple[Views, list[Array]]:
        parts = []
        for prefix, crop in make.items():
            part = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
            records = jax.vmap(jax.random.fold_in, (None, 0))(key, part[POSITION])
            pairs = jax.vmap(jax.random.split)(records)
            parts.append((crop(part, pairs[:, 0]), pairs[:, 1]))
        views, keys = parts[0] if len(parts) == 1 else jax.tree.map(interleave, *parts)
        each = jax.vmap(lambda key: jax.random.split(key, sum(counts)))(keys)
        split = each[:, : counts[0]].reshape(-1), each[:, counts[0] :].reshape(-1)
        return views, [sample_paths(k, config.model.depth, dino.drop_path) for k in split]

    return inputs


def _logits(
    model: dino_model.DinoModel, views: tuple[Float[Array, 'b _ _ _ c'], ...], paths: list[Array] | None
) -> Float[Array, 'b v k']:
    """Logits of the crops of each size, side by side; the head runs once over all of them."""
    features = []
    for index, crops in enumerate(views):
        batch, count = crops.shape[:2]
        tokens = model.backbone(crops.reshape(-1, *crops.shape[2:]), None if paths is None else paths[index])
        features.append(tokens.reshape(batch, count, -1))
    joined = jnp.concatenate(features, axis=1)
    logits = model.head(joined.reshape(-1, joined.shape[-1]))
    return logits.reshape(*joined.shape[:2], -1)
