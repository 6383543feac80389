"""Tokens of labelled records with the labels of their ground, as many as memory is given for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8


class Labelled(NamedTuple):
    """The labels under the tokens of a batch."""

    shares: Float[Array, 'b h w c']  # of the classes among the labelled pixels of a token; 0 without any
    some: Bool[Array, 'b h w']  # whether there are any


def labelled(labels: UInt8[Array, 'b oh ow'], classes: int, grid: tuple[int, int]) -> Labelled:
    """The shares of the classes under each token; traceable.

    A pixel counts by the part of it that lies in a token, and not at all without a label.

    Args:
        labels: class numbers; IGNORE where there is none.
        classes: how many.
        grid: rows and columns of the tokens, which cover the same ground.
    """
    # Those without a label are 0 throughout.
    hot = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    rows, columns = (jnp.asarray(overlaps(*sizes)) for sizes in zip(labels.shape[1:], grid))
    counts = jnp.einsum('ir,js,brsc->bijc', rows, columns, hot, precision='highest')
    total = jnp.sum(counts, axis=-1, keepdims=True)
    return Labelled(counts / jnp.where(total > 0, total, 1), total[..., 0] > 0)


def overlaps(pixels: int, tokens: int) -> np.ndarray:
    """(tokens, pixels): how much of a pixel lies in a token, along one axis; a whole one counts `tokens`."""
    token, pixel = np.arange(tokens)[:, None] * pixels, np.arange(pixels) * tokens
    ends = np.minimum(token + pixels, pixel + tokens)
    return np.maximum(ends - np.maximum(token, pixel), 0).astype(np.float32)


class Sample:
    """Tokens drawn from a stream of records, each as likely as any other: at most `size` of them.

    Every token has a random number, a function of the seed, its record and its place; those with the lowest
    stay. What is drawn does not depend on how records were batched. No more than a quarter beyond `size` are
    kept from batch to batch.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed, self.offered = size, seed, 0
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._count, self._limit = 0, np.inf  # of kept ones; the number above which none can stay

    def add(self, records: Any, values: np.ndarray, shares: np.ndarray, there: np.ndarray) -> None:
        """Offers the tokens of some records.

        Args:
            records: (b,) their numbers, each offered once.
            values: (b, tokens, width).
            shares: (b, tokens, classes) of their labels.
            there: (b, tokens) whether a token may be drawn.
        """
        numbers = [np.random.default_rng([self._seed, int(r)]).random(there.shape[1]) for r in records]
        draws = np.stack(numbers)
        low = there & (draws <= self._limit)
        self.offered += int(there.sum())
        self._count += int(low.sum())
        self._parts.append(tuple(x[low] for x in (draws, values, shares)))
        if self._count > self._size + self._size // 4:
            self._reduce()

    def _reduce(self) -> None:
        """Leaves the tokens with the lowest numbers, in their order: it settles ties between neighbours."""
        if self._count > self._size:
            draws = np.concatenate([part[0] for part in self._parts])
            self._limit, self._count = np.partition(draws, self._size - 1)[self._size - 1], self._size
            for i, part in enumerate(self._parts):
                self._parts[i] = tuple(x[part[0] <= self._limit] for x in part)

    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Values (n, width) and shares (n, classes) of what was drawn."""
        self._reduce()
        _, values, shares = (np.concatenate(arrays) for arrays in zip(*self._parts))
        return values, shares
