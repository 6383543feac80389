"""Scores of images from the labels of their nearest neighbours among the training features.

With the cosines s_i and labels y_i of the k nearest and the temperature T, class c scores

    sum_i y_ic exp(s_i / T) / sum_i exp(s_i / T)

A number to predict is the same weighted mean; both sums are over those of the k nearest that have the number,
and where none has it the mean is NaN.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fusmae_jax.errors import InputError

QUERIES = 256  # at once
BLOCK = 65536  # of the bank, at once


class Bank(NamedTuple):
    """What is voted by, in blocks of one size, the last one filled up."""

    features: Float[Array, 'blocks m d']  # of length 1
    labels: Float[Array, 'n c']
    size: Array  # features that are not filling


def make_bank(features: np.ndarray, labels: np.ndarray, block: int = BLOCK) -> Bank:
    """A bank of features (n, d), whose lengths are taken out, with labels or numbers (n, c)."""
    count, width = features.shape
    size = min(block, count)
    blocks = -(-count // size)
    filled = np.pad(unit(features), ((0, blocks * size - count), (0, 0))).reshape(blocks, size, width)
    return Bank(jnp.asarray(filled), jnp.asarray(labels, jnp.float32), jnp.int32(count))


def nearest(
    queries: Float[Array, 'q d'], bank: Bank, k: int
) -> tuple[Float[Array, 'q k'], Int[Array, 'q k']]:
    """Cosines and positions of the k nearest of a bank, the nearest first; traceable.

    Queries have length 1. Block by block, with the k best so far: the memory is that of queries x block
    numbers, however large the bank is. Of equally near ones the first are taken.
    """
    block = bank.features.shape[1]
    numbers = jnp.arange(block, dtype=jnp.int32)

    def step(best: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        similarity, number = best
        features, start = part
        # In full float32 on every kind of device: a coarser product would swap neighbours about as near.
        here = jnp.dot(queries, features.T, precision='highest')
        here = jnp.where(start + numbers < bank.size, here, -jnp.inf)
        similarity, at = jax.lax.top_k(jnp.concatenate([similarity, here], axis=1), k)
        before = jnp.take_along_axis(number, jnp.minimum(at, k - 1), axis=1)
        return (similarity, jnp.where(at < k, before, start + at - k)), None

    nothing = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    starts = block * jnp.arange(len(bank.features), dtype=jnp.int32)
    return jax.lax.scan(step, nothing, (bank.features, starts))[0]


def votes(
    queries: Float[Array, 'q d'], bank: Bank, temperature: float | Float[Array, ''], k: int
) -> Float[Array, 'q c']:
    """The weighted mean of the labels of the k nearest of a bank; traceable. See `nearest`."""
    similarity, positions = nearest(queries, bank, k)
    weights = jax.nn.softmax(similarity / temperature, axis=-1)
    return jnp.einsum('qk,qkc->qc', weights, jnp.take(bank.labels, positions, axis=0), precision='highest')


def means(
    queries: Float[Array, 'q d'], bank: Bank, temperature: float | Float[Array, ''], k: int
) -> Float[Array, 'q c']:
    """The same of numbers, over those of the k nearest that have one; NaN where none has; traceable."""
    similarity, positions = nearest(queries, bank, k)
    numbers = jnp.take(bank.labels, positions, axis=0)
    known = jnp.isfinite(numbers)
    some = jnp.any(known, axis=1)
    # Before the weights, not after: a far neighbour that alone has the number counts in full.
    logits = jnp.where(known, (similarity / temperature)[:, :, None], -jnp.inf)
    weights = jax.nn.softmax(jnp.where(some[:, None], logits, 0), axis=1)
    return jnp.where(some, jnp.sum(weights * jnp.where(known, numbers, 0), axis=1), jnp.nan)


_votes = functools.partial(jax.jit, static_argnames='k')(votes)
_means = functools.partial(jax.jit, static_argnames='k')(means)


def knn_scores(
    features: np.ndarray,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
    queries: int = QUERIES,
) -> np.ndarray:
    """The share of each class among the k nearest training records.

    Nearest by cosine; a neighbour of similarity s counts exp(s / temperature). Of equally near records the
    first ones are taken. A record whose features are all 0 is equally far from all.

    Args:
        features: (n, d) of the records to be scored.
        train_features: (m, d).
        train_labels: (m, c) of 0 and 1.
        k: neighbours.
        temperature: above 0.
        queries: how many records are compared at once, with at most BLOCK training records.

    Returns:
        (n, c) float32 in [0, 1].

    Raises:
        InputError: fewer training records than k.
    """
    return _by_neighbours(_votes, features, train_features, train_labels, k, temperature, queries)


def knn_means(
    features: np.ndarray,
    train_features: np.ndarray,
    train_targets: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
    queries: int = QUERIES,
) -> np.ndarray:
    """The weighted mean of each target over those of the k nearest training records that have it.

    Args:
        features: as of `knn_scores`, and so are all others but the targets.
        train_features: (m, d).
        train_targets: (m, c) numbers; NaN where missing.
        k: neighbours.
        temperature: above 0.
        queries: how many records are compared at once.

    Returns:
        (n, c) float32; NaN where none of the k has the target.

    Raises:
        InputError: fewer training records than k.
    """
    return _by_neighbours(_means, features, train_features, train_targets, k, temperature, queries)


def _by_neighbours(
    function: Callable[..., Array],
    features: np.ndarray,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    k: int,
    temperature: float,
    queries: int,
) -> np.ndarray:
    if len(train_features) < k:
        raise InputError(
            f'k={k} neighbours of {len(train_features)} training records; lower k or take more labels'
        )
    bank = make_bank(train_features, train_labels)
    result = np.empty((len(features), train_labels.shape[1]), np.float32)
    for start in range(0, len(features), queries):
        part = unit(features[start : start + queries])
        # The last part is filled up, so that there is one shape to compile.
        filled = np.pad(part, ((0, queries - len(part)), (0, 0)))
        scores = function(filled, bank, jnp.float32(temperature), k)
        result[start : start + len(part)] = np.asarray(scores)[: len(part)]
    return result


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 (or 0), float32; the length is taken in float64."""
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(length > 0, length, 1)).astype(np.float32)
