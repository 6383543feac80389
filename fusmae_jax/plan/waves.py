"""Batch sizes whose matrix products fill a GPU: the output tiles of a product run in waves over its cores.

A product of 10 tiles on 8 cores takes as long as one of 16. Here a tile has 128 x 256 outputs, the largest
that cuBLAS has for these chips; how it really cuts a product is its own choice, so the loss is an indication.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from fusmae_jax.plan.batches import Batches
from fusmae_jax.plan.roofline import Roofline

TILE = (128, 256)
REACH = (0.5, 2.0)  # rows to look at, as a share of the configured ones
SHOWN = 3
MANY = 64


class Linear(NamedTuple):
    """Products whose rows are tokens of the batch."""

    tokens: float  # rows for one row of the batch
    columns: int
    flops: float  # in a step


class Waves(NamedTuple):
    """What incomplete waves cost, as a share of the time of the products over tokens."""

    lost: float  # at the configured batch
    better: tuple[tuple[int, float], ...]  # (global batch, share), the batches in order


def linears(roofline: Roofline, rows: int) -> list[Linear]:
    """The products of a step whose rows grow with the batch.

    Args:
        roofline: of the step.
        rows: of the batch on one device, in a micro-batch.
    """
    return [
        Linear(product.rows / rows, product.columns, product.flops * placed.kernel.times)
        for placed in roofline.kernels
        for product in placed.kernel.products
        if not product.batched and not product.sums_rows and product.rows % rows == 0
    ]


def tiles(product: Linear, rows: int) -> int:
    """Output tiles of a product, for so many rows of a batch."""
    return math.ceil(product.tokens * rows / TILE[0]) * math.ceil(product.columns / TILE[1])


def lost(products: Iterable[Linear], rows: int, cores: int) -> float:
    """The share of their time that incomplete waves cost, for so many rows of a batch."""
    full = actual = 0.0
    for product in products:
        outputs = product.tokens * rows * product.columns / math.prod(TILE)
        full += product.flops
        actual += product.flops * math.ceil(tiles(product, rows) / cores) * cores / outputs
    return 1 - full / actual if actual else 0.0


def waves(roofline: Roofline, batches: Batches, batch_size: int, largest: int | None) -> Waves | None:
    """What incomplete waves cost at a batch size, and up to three near it that lose at most half as much.

    None where no product has as many tiles as the chip has cores.
    """
    rows, cores = batches.rows(batch_size), roofline.gpu.cores
    # Of what does not fill the chip once, the library makes smaller tiles.
    products = [product for product in linears(roofline, rows) if tiles(product, rows) >= cores]
    if not products:
        return None
    now = lost(products, rows, cores)
    first, last = math.ceil(REACH[0] * rows), math.floor(REACH[1] * rows)
    losses = {}
    for count in range(first, last + 1):
        size = count * batches.parts
        # Only multiples of 8 where there are many rows: the library's kernels do not like others.
        fits = (largest is None or size <= largest) and (rows < MANY or count % 8 == 0)
        if fits and batches.splits(size):
            losses[size] = lost(products, count, cores)
    best = sorted((size for size in losses if losses[size] <= now / 2), key=lambda size: losses[size])
    return Waves(now, tuple((size, losses[size]) for size in sorted(best[:SHOWN])))
