"""What the kernels share: the types that they are for, sizes, windows of rows, and how they are started."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jax.typing import DTypeLike

from fusmae_jax.parallel.mesh import target_platform


def is_half(dtype: DTypeLike) -> bool:
    """Whether a type has 16 bits, for which tensor cores and these kernels are made."""
    return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def power_of_two(count: int, least: int = 1) -> int:
    """The least power of two that is neither below `count` nor below `least`: Triton has no other sizes."""
    return max(least, 1 << (count - 1).bit_length())


def window(start: Any, size: int) -> Any:
    """`size` rows or columns from `start` on."""
    # All indices of one type, also where whole numbers have 64 bits.
    return pl.ds(jnp.asarray(start, jnp.int32), size)


def how(name: str, warps: int) -> dict[str, Any]:
    """Arguments of `pallas_call`: the kernel's name in profiles and plans, and the warps of a program."""
    # Where there is no GPU the kernel is interpreted: slow, with the same results.
    return {
        'name': name,
        'interpret': target_platform() != 'gpu',
        'compiler_params': pltriton.CompilerParams(num_warps=warps, num_stages=1),
    }
