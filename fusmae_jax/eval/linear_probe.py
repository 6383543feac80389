"""Linear heads on frozen features: learning rates x weight decays x seeds as one compiled program.

AdamW (0.9, 0.999) on mini-batches, the learning rate falling to 0 by a half cosine. All heads of a sweep see
the same batches in the same order; they differ in their settings and initial kernels alone. What is learned
from is an argument, and so is what settles the sweep: neither can reach the test split.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fusmae_jax.errors import DivergedError
from fusmae_jax.eval.metrics import judged
from fusmae_jax.models.heads import init_head

NORM_EPS = 1e-6
BETAS = (0.9, 0.999)
Decay = Literal['decoupled', 'l2']


class Points(NamedTuple):
    """The heads of a sweep, one number of each for every head; seeds vary fastest, learning rates slowest."""

    learning_rate: np.ndarray  # (p,)
    weight_decay: np.ndarray  # (p,)
    seed: np.ndarray  # (p,) uint32


class Heads(NamedTuple):
    """Linear heads, `x @ kernel + bias`; several lie side by side, so that all take one matrix product."""

    kernel: Float[Array, 'd p c']
    bias: Float[Array, 'p c']


class Recipe(NamedTuple):
    """What is the same for every head."""

    loss: Literal['multi_label', 'single_label', 'regression'] = 'multi_label'
    decay: Decay = 'decoupled'
    label_smoothing: float = 0.0


class Scale(NamedTuple):
    """An affine-free batch norm with fixed statistics."""

    mean: np.ndarray  # (d,)
    std: np.ndarray  # (d,)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The features with the mean 0 and the variance 1 that they have where the statistics come from."""
        return ((features - self.mean) / self.std).astype(np.float32)


def make_recipe(kind: str, label_smoothing: float, decay: Decay = 'decoupled') -> Recipe:
    """That of a kind of labels of whole images; smoothing is for one class a record."""
    if kind == 'single_label':
        return Recipe('single_label', decay, label_smoothing)
    return Recipe('regression' if kind == 'regression' else 'multi_label', decay)


def points(learning_rates: Sequence[float], weight_decays: Sequence[float], seeds: Sequence[int]) -> Points:
    """Every combination."""
    grid = np.meshgrid(learning_rates, weight_decays, seeds, indexing='ij')
    rate, decay, seed = (values.ravel() for values in grid)
    return Points(rate, decay, seed.astype(np.uint32))


def batch_norm(features: np.ndarray) -> Scale:
    """The statistics (d,) of training features, variance of the population plus 1e-6, taken in float64."""
    # Float32 sums over many records lose small deviations beside a large mean.
    wide = features.astype(np.float64)
    return Scale(wide.mean(axis=0), np.sqrt(wide.var(axis=0) + NORM_EPS))


def batch_order(records: int, batch_size: int, epochs: float, seed: int = 0) -> np.ndarray:
    """Which records each step sees: (steps, batch) int32, a new order every epoch.

    Batches run on over the end of an epoch, so all of them are full; a set smaller than a batch is one.
    """
    batch = min(batch_size, records)
    steps = max(1, int(epochs * records / batch + 1e-9))
    rng = np.random.default_rng(seed)
    whole = -(-steps * batch // records)
    stream = np.concatenate([rng.permutation(records) for _ in range(whole)])
    return stream[: steps * batch].reshape(steps, batch).astype(np.int32)


def loss(logits: Float[Array, 'b p c'], targets: Float[Array, 'b c'], recipe: Recipe) -> Float[Array, ' p']:
    """The loss of each head over a batch.

    `multi_label`: binary cross-entropy, mean over records and classes (multi-label soft margin).
    `single_label`: cross-entropy with smoothed one-hot targets, mean over records. `regression`: squared
    error, mean over the targets that are not missing (NaN).
    """
    if recipe.loss == 'regression':
        known = jnp.isfinite(targets)[:, None]
        error = jnp.where(known, logits - jnp.where(known, targets[:, None], 0), 0)
        return jnp.sum(error**2, axis=(0, 2)) / jnp.maximum(jnp.sum(known), 1)
    if recipe.loss == 'multi_label':
        each = optax.sigmoid_binary_cross_entropy(logits, targets[:, None])
        return jnp.mean(each, axis=(0, 2))
    smoothed = optax.smooth_labels(targets, recipe.label_smoothing)
    return jnp.mean(-jnp.sum(smoothed[:, None] * jax.nn.log_softmax(logits), axis=2), axis=0)


def logits(heads: Heads, features: Float[Array, 'b d']) -> Float[Array, 'b p c']:
    """The scores of every head, in full float32 on every kind of device."""
    width, points, classes = heads.kernel.shape
    flat = jnp.dot(features, heads.kernel.reshape(width, -1), precision='highest')
    return flat.reshape(-1, points, classes) + heads.bias[None]


@functools.partial(jax.jit, static_argnames='recipe')
def _train(
    features: Float[Array, 'n d'],
    targets: Float[Array, 'n c'],
    order: Int[Array, 's b'],
    swept: Points,
    recipe: Recipe,
) -> Heads:
    steps = order.shape[0]
    rates, decays = (jnp.asarray(x, jnp.float32)[:, None] for x in (swept.learning_rate, swept.weight_decay))
    adam = optax.scale_by_adam(*BETAS)

    def objective(heads: Heads, x: Array, y: Array) -> Array:
        # No head shares a parameter with another, so the gradient of the sum is that of each.
        total = jnp.sum(loss(logits(heads, x), y, recipe))
        if recipe.decay == 'l2':
            total += jnp.sum(0.5 * decays[None] * heads.kernel**2)
        return total

    def step(carry: tuple[Heads, Any], at: tuple[Array, Array]) -> tuple[tuple[Heads, Any], None]:
        (heads, state), (ids, number) = carry, at
        # The indices are in range; the default mode would check them and fill in NaN.
        x, y = (jnp.take(a, ids, axis=0, mode='clip') for a in (features, targets))
        update, state = adam.update(jax.grad(objective)(heads, x, y), state, heads)
        # Half a cosine to 0: rate_s = rate (1 + cos(pi s / S)) / 2.
        rate = rates * 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
        kernel = update.kernel
        # Of the kernel alone: the bias says how frequent the classes are.
        if recipe.decay == 'decoupled':
            kernel += decays[None] * heads.kernel
        return (Heads(heads.kernel - rate[None] * kernel, heads.bias - rate * update.bias), state), None

    keys = jax.vmap(jax.random.key)(jnp.asarray(swept.seed))
    fresh = functools.partial(init_head, width=features.shape[1], classes=targets.shape[1])
    heads = Heads(**jax.vmap(fresh, out_axes={'kernel': 1, 'bias': 0})(keys))
    (heads, _), _ = jax.lax.scan(step, (heads, adam.init(heads)), (order, jnp.arange(steps)))
    return heads


def train(
    features: np.ndarray, targets: np.ndarray, order: np.ndarray, swept: Points, recipe: Recipe
) -> Heads:
    """All heads of a sweep, trained side by side; compiled once for each shape.

    Args:
        features: (n, d) float32.
        targets: (n, c) of 0 and 1, exactly one 1 in a row for `single_label`; or numbers and NaN.
        order: (steps, batch) positions of the records of each step, as `batch_order` gives them.
        swept: the settings of the p heads.
        recipe: what they share.

    Returns:
        The heads, on the device.
    """
    return _train(features, targets.astype(np.float32), order, swept, recipe)


_logits = jax.jit(logits)


def scores(heads: Heads, features: np.ndarray, point: int) -> np.ndarray:
    """The logits (n, c) of one head of a sweep, float32."""
    head = Heads(heads.kernel[:, point : point + 1], heads.bias[point : point + 1])
    return np.asarray(_logits(head, features))[:, 0]


def in_units(heads: Heads, scale: Scale) -> Heads:
    """Heads of standardised targets as heads of the targets: y = mean + std (x @ kernel + bias).

    The targets are the last axis of kernel and bias, whatever the others are.
    """
    mean, std = (np.asarray(x, np.float32) for x in scale)
    return Heads(heads.kernel * std, heads.bias * std + mean)


class Settled(NamedTuple):
    """What a sweep came to."""

    learning_rate: float
    weight_decay: float
    heads: dict[int, int]  # seed -> which head of the sweep
    value: float  # of the metric on the validation split, mean over the seeds
    at_edge: bool  # the best learning rate is the lowest or highest that was tried


def settle(
    heads: Heads, swept: Points, features: np.ndarray, metric: Callable[[np.ndarray], float]
) -> Settled:
    """The learning rate and weight decay of the best mean over the seeds; of equal ones the first.

    Args:
        heads: as trained.
        swept: their settings.
        features: (n, d) of the validation split, scaled as the training features were.
        metric: from logits (n, c) of that split to a number, the higher the better.

    A head that diverged (scores that are not finite) counts -inf, and so does the mean that it is in.

    Raises:
        InputError: the metric is not defined there.
        DivergedError: no setting is left.
    """
    values = np.array(
        [judged(scores(heads, features, p), metric, 'validation split') for p in range(len(swept.seed))]
    )
    return best(swept, values)


def best(swept: Points, values: np.ndarray) -> Settled:
    """What a sweep comes to whose heads have these values (p,) on the validation split; see `settle`."""
    settings = np.stack([swept.learning_rate, swept.weight_decay], axis=1)
    # In the order in which they were swept, which np.unique would not keep: of equal ones the first is taken.
    kinds = list(dict.fromkeys(map(tuple, settings.tolist())))
    means = [float(values[(settings == kind).all(axis=1)].mean()) for kind in kinds]
    if max(means) == -np.inf:
        raise DivergedError(
            f'a head diverged at every learning rate of {tuple(np.unique(swept.learning_rate).tolist())}; '
            'try lower ones'
        )
    first = kinds[int(np.argmax(means))]
    settled = np.flatnonzero((settings == first).all(axis=1))
    rates = np.unique(swept.learning_rate)
    return Settled(
        learning_rate=first[0],
        weight_decay=first[1],
        heads={int(swept.seed[point]): int(point) for point in settled},
        value=max(means),
        at_edge=len(rates) > 1 and first[0] in (rates[0].item(), rates[-1].item()),
    )
