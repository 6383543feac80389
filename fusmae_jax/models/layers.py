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
class Policy:
    """Numerics together with the compute type: everything a layer needs to know about numbers."""

    numerics: Numerics
    dtype: DTypeLike  # of matrix products

    @property
    def wide(self) -> Any:
        """Type of parameters, norms and the residual stream: float32, or float64 for that compute type."""
        return jnp.promote_types(self.dtype, jnp.float32)


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
    in_width: int, out_width: int, policy: Policy, *, rngs: nnx.Rngs, parts: int = 1, bias: bool = True
) -> nnx.Linear:
    """A linear layer; its kernel is (in, out)."""
    return nnx.Linear(
        in_width,
        out_width,
        use_bias=bias,
        dtype=policy.dtype,
        param_dtype=policy.wide,
        precision=policy.numerics.matmul_precision,
        kernel_init=xavier_uniform(parts),
        rngs=rngs,
    )


def layer_norm(width: int, policy: Policy, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, in the wide type."""
    return nnx.LayerNorm(
        width,
        epsilon=policy.numerics.norm_eps,
        use_fast_variance=policy.numerics.norm_variance == 'fast',
        dtype=policy.wide,
        param_dtype=policy.wide,
        rngs=rngs,
    )


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, policy: Policy, *, rngs: nnx.Rngs):
        self.up = linear(width, hidden, policy, rngs=rngs)
        self.down = linear(hidden, width, policy, rngs=rngs)
        self.wide, self.dtype = policy.wide, policy.dtype
        self.approximate = policy.numerics.gelu == 'tanh'

    def __call__(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n d']:
        """Token by token; the result has the compute type."""
        # The GELU in bfloat16 alone would put the error of the model a fifth above PyTorch's.
        hidden = jax.nn.gelu(self.up(x).astype(self.wide), approximate=self.approximate)
        return self.down(hidden.astype(self.dtype))
