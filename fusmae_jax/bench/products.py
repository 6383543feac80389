"""How fast matrix products run on this machine: under their time no step of so many operations can come."""

import statistics

from fusmae_jax.bench.contenders import timed

EDGE, ROUNDS = 2048, 9


def product_rate() -> float:
    """Operations in a second of processor time, in a float32 product of square matrices, the median."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (EDGE, EDGE))
    multiply = jax.jit(jnp.matmul).lower(x, x).compile()
    turns = [timed(lambda: multiply(x, x).block_until_ready()) for _ in range(ROUNDS)]
    return 2 * EDGE**3 / statistics.median(turn.cpu for turn in turns)


def products_line(flops: float, rate: float) -> str:
    """What products of `flops` operations take at a rate."""
    return (
        f'{flops / 1e9:,.1f} GFLOP of products in a step of ours: {flops / rate:.2f} s of processor time by '
        f'themselves, at the {rate / 1e9:,.0f} GFLOP/s of a core in a product of {EDGE:,} x {EDGE:,}'
    )
