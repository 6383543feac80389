"""Linear, LayerNorm and MLP, built with the numerics and the initialisation of the model.

Matrix products run in the compute type; norms, softmax and the residual stream stay in float32 (float64
when that is the compute type), parameters too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fusmae_jax.config.run import Numerics


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How a layer computes: numerics, and the types of matrix products and of everything else."""

    numerics: Numerics
    compute_dtype: DTypeLike  # of matrix products

    @property
    def wide_dtype(self) -> Any:
        """Type of parameters, norms and the residual stream: float32, or float64 for that compute type."""
        return jnp.promote_types(self.compute_dtype, jnp.float32)


def xavier_uniform(parts: int = 1) -> Callable[..., Array]:
    """Xavier-uniform for an (in, out) kernel that holds `parts` projections side by side (MultiMAE).

    Each part is initialised as if it stood alone: U(-a, a) with a = sqrt(6 / (in + out / parts)).
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        fan_in, fan_out = shape
        limit = (6 / (fan_in + fan_out / parts)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def trunc_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Draws from N(0, 0.02^2): `trunc_normal_(std=.02)` of timm and PyTorch.

    That function cuts at -2 and 2, a hundred deviations away and not at two of them, so nothing is ever cut.
    """
    return 0.02 * jax.random.normal(key, shape, dtype)


def linear(
    in_width: int,
    out_width: int,
    arithmetic: Arithmetic,
    *,
    rngs: nnx.Rngs,
    parts: int = 1,
    bias: bool = True,
) -> nnx.Linear:
    """A linear layer; its kernel is (in, out)."""
    return nnx.Linear(
        in_width,
        out_width,
        use_bias=bias,
        dtype=arithmetic.compute_dtype,
        param_dtype=arithmetic.wide_dtype,
        precision=arithmetic.numerics.matmul_precision,
        kernel_init=xavier_uniform(parts),
        rngs=rngs,
    )


def layer_norm(width: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, in the wide type."""
    return nnx.LayerNorm(
        width,
        epsilon=arithmetic.numerics.norm_eps,
        # 'fast' is E[x^2] - E[x]^2: one pass less, and it cancels where the mean is large.
        use_fast_variance=arithmetic.numerics.norm_variance == 'fast',
        dtype=arithmetic.wide_dtype,
        param_dtype=arithmetic.wide_dtype,
        rngs=rngs,
    )


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.up = linear(width, hidden, arithmetic, rngs=rngs)
        self.down = linear(hidden, width, arithmetic, rngs=rngs)
        self.wide, self.dtype = arithmetic.wide_dtype, arithmetic.compute_dtype
        self.approximate = arithmetic.numerics.gelu == 'tanh'

    def __call__(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n d']:
        """Token by token; the result has the compute type."""
        # The GELU in bfloat16 alone would put the error of the model a fifth above PyTorch's.
        hidden = jax.nn.gelu(self.up(x).astype(self.wide), approximate=self.approximate)
        return self.down(hidden.astype(self.dtype))
