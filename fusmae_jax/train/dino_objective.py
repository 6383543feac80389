"""DINO-MM's objective: a student on all crops learns to predict its own slow average on the global ones.

`extra` holds the teacher's parameters, the centre, and the number of good steps, which drives the schedules.
A loss is computed before its step is taken, so the teacher is brought up to date at the start of the next
one, with the momentum of the step that has passed: the same numbers as an update after each step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fusmae_jax.config.dino import DinoConfig
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.crops import Views, make_views
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import fields
from fusmae_jax.models import dino as dino_model
from fusmae_jax.models.blocks import sample_paths
from fusmae_jax.train.dino_loss import Schedule, cosine, cross_entropy, update_centre, update_teacher
from fusmae_jax.train.objective import Batch, Metrics, Objective, interleave


def teacher_rate(config: DinoConfig, total_steps: int) -> Schedule:
    """By how much the teacher follows the student after a step: 1 - momentum."""
    return cosine(1 - config.dino.teacher_momentum, 0.0, total_steps)


def self_distillation(
    config: DinoConfig, contract: Contract, dtype: DTypeLike, total_steps: int
) -> Objective:
    """The objective of a run.

    Metrics: `loss`, `kl` (of the student from the teacher), `teacher/entropy` (of one view; log of the number
    of outputs if it collapsed to a flat one), `teacher/spread` (entropy of the mean over the batch; 0 if it
    collapsed to one output), `teacher/momentum`, `centre_norm`.
    """
    settings, graphdef = config.dino, dino_model.graph(config.model, config.dino, dtype)
    inputs, rate = _inputs(config, contract), teacher_rate(config, total_steps)

    def loss(params: Any, extra: Any, batch: Batch, key: Array) -> tuple[Array, tuple[Metrics, Any]]:
        views, paths = inputs(batch, key)
        follow = rate(extra['step'] - 1)
        teacher = update_teacher(extra['teacher'], jax.lax.stop_gradient(params), follow)
        target = _logits(nnx.merge(graphdef, teacher), views[:1], None)
        found = _logits(nnx.merge(graphdef, params), views, paths)
        temperatures = settings.student_temperature, settings.teacher_temperature
        terms = cross_entropy(found, target, extra['centre'], *temperatures)
        centre = update_centre(extra['centre'], target, settings.centre_momentum)
        metrics = {
            'loss': terms.loss,
            'kl': terms.kl,
            'teacher/entropy': terms.entropy,
            'teacher/spread': terms.spread,
            'teacher/momentum': 1 - rate(extra['step']),
            'centre_norm': jnp.linalg.norm(centre),
        }
        return terms.loss, (metrics, {'teacher': teacher, 'centre': centre, 'step': extra['step'] + 1})

    def init(key: Array) -> tuple[Any, Any]:
        params = dino_model.init_params(config.model, settings, key, dtype)
        centre = jnp.zeros(settings.head.out_dim, jnp.promote_types(dtype, jnp.float32))
        # Buffers of its own: the step donates the state.
        teacher = jax.tree.map(jnp.copy, params)
        return params, {'teacher': teacher, 'centre': centre, 'step': jnp.zeros((), jnp.int32)}

    return Objective(init, loss, tuple(fields(config, contract)))


def final_teacher(params: Any, extra: Any, config: DinoConfig, total_steps: int) -> Any:
    """The teacher of a state after its last step, which `extra` alone does not hold yet."""
    return update_teacher(extra['teacher'], params, teacher_rate(config, total_steps)(extra['step'] - 1))


def _inputs(
    config: DinoConfig, contract: Contract
) -> Callable[[Batch, Array], tuple[Views, list[Float[Array, 'depth _ 2']]]]:
    """The function from a raw batch to global and local crops, and the student's paths through them."""
    make = {prefix: make_views(config, part) for prefix, part in contract.each.items()}
    counts = config.dino.global_crops.count, config.dino.local_crops.count

    def inputs(batch: Batch, key: Array) -> tuple[Views, list[Array]]:
        parts = []
        for prefix, one in make.items():
            own = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
            records = jax.vmap(jax.random.fold_in, (None, 0))(key, own[POSITION])
            pairs = jax.vmap(jax.random.split)(records)
            parts.append((one(own, pairs[:, 0]), pairs[:, 1]))
        views, keys = parts[0] if len(parts) == 1 else jax.tree.map(interleave, *parts)
        each = jax.vmap(lambda key: jax.random.split(key, sum(counts)))(keys)
        split = each[:, : counts[0]].reshape(-1), each[:, counts[0] :].reshape(-1)
        rate, depth = config.dino.drop_path, config.model.depth
        return views, [sample_paths(k, depth, rate) for k in split]

    return inputs


def _logits(
    model: dino_model.DinoModel, views: tuple[Float[Array, 'b _ h w c'], ...], paths: list[Array] | None
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
