"""Scores of images from the labels of their nearest neighbours among the training features.

With the cosines s_i and labels y_i of the k nearest and the temperature T, class c scores

    sum_i y_ic exp(s_i / T) / sum_i exp(s_i / T)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusmae_jax.errors import InputError

QUERIES = 256  # at once


@functools.partial(jax.jit, static_argnames='k')
def _scores(
    queries: Float[Array, 'q d'],
    bank: Float[Array, 'n d'],
    labels: Float[Array, 'n c'],
    temperature: Float[Array, ''],
    k: int,
) -> Float[Array, 'q c']:
    # In full float32 on every kind of device: a coarser product would swap neighbours that are about as near.
    similarity, nearest = jax.lax.top_k(jnp.dot(queries, bank.T, precision='highest'), k)
    weights = jax.nn.softmax(similarity / temperature, axis=-1)
    return jnp.einsum('qk,qkc->qc', weights, jnp.take(labels, nearest, axis=0), precision='highest')


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
        queries: how many records are compared at once; the memory is `queries` x m numbers.

    Returns:
        (n, c) float32 in [0, 1].

    Raises:
        InputError: fewer training records than k.
    """
    if len(train_features) < k:
        raise InputError(
            f'k={k} neighbours of {len(train_features)} training records; lower k or take more labels'
        )
    bank = jnp.asarray(_unit(train_features))
    labels = jnp.asarray(train_labels, jnp.float32)
    result = np.empty((len(features), labels.shape[1]), np.float32)
    for start in range(0, len(features), queries):
        part = _unit(features[start : start + queries])
        # The last part is filled up, so that there is one shape to compile.
        filled = np.pad(part, ((0, queries - len(part)), (0, 0)))
        scores = _scores(filled, bank, labels, jnp.float32(temperature), k)
        result[start : start + len(part)] = np.asarray(scores)[: len(part)]
    return result


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 (or 0), float32; the length is taken in float64."""
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(length > 0, length, 1)).astype(np.float32)
