"""Linear, LayerNorm and MLP, built with the numerics and the initialisation of the model.

Matrix products run in the compute type; norms, softmax and parameters stay in float32 (float64 when that is
the compute type), and the residual stream too unless it is asked to be narrow.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fusmae_jax.config.run import Model, Numerics
from fusmae_jax.models.kernels.norm import MOST_WIDTH, fused_add_norm
from fusmae_jax.models.kernels.triton import is_half
from fusmae_jax.parallel.mesh import target_platform


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How a layer computes: numerics, the type of matrix products, and the implementation of attention."""

    numerics: Numerics
    compute_dtype: DTypeLike  # of matrix products
    attention: str = 'auto'  # see models.attention
    norm: str = 'auto'  # 'xla', or 'pallas' for the fused kernel of models.kernels.norm
    residual: str = 'float32'  # type of the residual stream; of bfloat16 products alone it can be bfloat16

    @classmethod
    def of(cls, model: Model, dtype: DTypeLike) -> 'Arithmetic':
        """That of a model whose products run in `dtype`."""
        return cls(model.numerics, dtype, model.attention, model.norm, model.residual_dtype)

    @property
    def wide_dtype(self) -> Any:
        """Type of parameters, norms, softmax and loss: float32, or float64 for that compute type."""
        return jnp.promote_types(self.compute_dtype, jnp.float32)

    @property
    def residual_dtype(self) -> Any:
        """Type of the residual stream: the wide one, unless it is asked to be as narrow as the products."""
        narrow = self.residual == 'bfloat16' and jnp.dtype(self.compute_dtype) == jnp.bfloat16
        return jnp.bfloat16 if narrow else self.wide_dtype


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


PRODUCT = 'product'  # what `model.remat='dots'` keeps


class Linear(nnx.Linear):
    """A linear layer over the last axis; its kernel is (in, out), its result has the compute type."""

    def __call__(self, x: Float[Array, '*b i'], columns: slice | None = None) -> Float[Array, '*b o']:
        """Of the output columns, only those asked for are computed."""
        kernel, bias = self.kernel[...], None if self.bias is None else jnp.asarray(self.bias[...])
        if columns is not None:
            kernel, bias = kernel[:, columns], None if bias is None else bias[columns]
        y = affine(x.astype(self.dtype), kernel.astype(self.dtype), bias, self.precision)
        # A policy of recomputation does not see into functions with derivatives of their own, so by name.
        return checkpoint_name(y, PRODUCT)


def linear(
    in_width: int,
    out_width: int,
    arithmetic: Arithmetic,
    *,
    rngs: nnx.Rngs,
    parts: int = 1,
    bias: bool = True,
) -> Linear:
    """A linear layer of the model's types."""
    return Linear(
        in_width,
        out_width,
        use_bias=bias,
        dtype=arithmetic.compute_dtype,
        param_dtype=arithmetic.wide_dtype,
        precision=arithmetic.numerics.matmul_precision,
        kernel_init=xavier_uniform(parts),
        rngs=rngs,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(
    x: Float[Array, '*b i'], kernel: Float[Array, 'i o'], bias: Float[Array, ' o'] | None, precision: Any
) -> Float[Array, '*b o']:
    """X kernel + bias, over the last axis of x and in its type; the bias can be of a wider one.

    The gradient of the kernel is written down as x^T dy over all rows. jax asks for (dy^T x)^T, for which
    XLA writes out dy once more on a CPU, transposed; the numbers are the same. The gradient of the bias is
    summed, and stays, in the type of the bias: in bfloat16 it errs up to four times as much as PyTorch's.
    """
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    if bias is None:
        return jax.lax.dot_general(x, kernel, dimensions, precision=precision)
    # One rounding behind the sum, as in PyTorch. A GPU's product takes a bias of its own type in, and rounds
    # behind that as well; a wide one would have it write a wide result.
    wide = x.dtype if target_platform() == 'gpu' else bias.dtype
    y = jax.lax.dot_general(x, kernel, dimensions, precision=precision, preferred_element_type=wide)
    return (y + _row(bias.astype(wide), y)).astype(x.dtype)


def _affine_forward(
    x: Array, kernel: Array, bias: Array | None, precision: Any
) -> tuple[Array, tuple[Array, Array, Array | None]]:
    # The bias is kept for its type alone.
    return affine(x, kernel, bias, precision), (x, kernel, bias)


def _affine_backward(
    precision: Any, kept: tuple[Array, Array, Array | None], gradient: Array
) -> tuple[Array, Array, Array | None]:
    x, kernel, bias = kept
    of_x = jax.lax.dot_general(gradient, kernel, (((x.ndim - 1,), (1,)), ((), ())), precision=precision)
    rows, of_rows = (part.reshape(-1, part.shape[-1]) for part in (x, gradient))
    of_kernel = jax.lax.dot_general(rows, of_rows, (((0,), (0,)), ((), ())), precision=precision)
    if bias is None:
        return of_x, of_kernel, None
    by_bits = target_platform() == 'gpu' and (gradient.dtype, bias.dtype) == (jnp.bfloat16, jnp.float32)
    wide = float32_by_bits(gradient) if by_bits else gradient.astype(bias.dtype)
    return of_x, of_kernel, jnp.sum(wide, axis=tuple(range(gradient.ndim - 1)))


affine.defvjp(_affine_forward, _affine_backward)


def float32_by_bits(x: Array) -> Array:
    """A bfloat16 array as float32: the same bits, and 16 zeros.

    XLA takes a conversion together with the one that made x, and on a GPU then writes what x was rounded from
    as well, for a sum to read: 31.8 ms for 29.4 of a modelled step (docs/parity.md). Bits it leaves alone.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(jax.lax.shift_left(bits, jnp.uint32(16)), jnp.float32)


def layer_norm(width: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs, wide: bool = False) -> 'LayerNorm':
    """LayerNorm over the last axis; the result has the compute type, or the wide one if `wide` is set."""
    return LayerNorm(width, arithmetic, wide, rngs=rngs)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, computed in the wide type."""

    def __init__(self, width: int, arithmetic: Arithmetic, wide: bool, *, rngs: nnx.Rngs):
        # A key each, as in nnx.LayerNorm: what is drawn after them is what it always was.
        rngs(), rngs()
        self.scale = nnx.Param(jnp.ones((width,), arithmetic.wide_dtype))
        self.bias = nnx.Param(jnp.zeros((width,), arithmetic.wide_dtype))
        self.kernel = arithmetic.norm
        self.settings = NormSettings(
            arithmetic.numerics.norm_eps,
            arithmetic.numerics.norm_variance == 'fast',
            jnp.dtype(arithmetic.wide_dtype),
            jnp.dtype(arithmetic.wide_dtype if wide else arithmetic.compute_dtype),
        )

    def __call__(self, x: Float[Array, '*_ d']) -> Float[Array, '*_ d']:
        """The normalised tokens."""
        with jax.named_scope('layer_norm'):
            return normalise(x, *self._affine(), self.settings)

    def after(
        self, x: Float[Array, 'b n d'], branch: Float[Array, 'b n d'] | None = None
    ) -> tuple[Float[Array, 'b n d'], Float[Array, 'b n d']]:
        """The residual stream x after a branch was added to it, and its normalised tokens.

        Both from one function, so that a fused kernel can add up their gradients as well.
        """
        if self.fused:
            return fused_add_norm(x, branch, *self._affine(), self.settings.eps, self.settings.out_dtype)
        # Branches may come in bfloat16; the residual stream, and so each sum, stays in its own type.
        x = x if branch is None else x + branch.astype(x.dtype)
        return x, self(x)

    def _affine(self) -> tuple[Array, Array]:
        return self.scale[...].astype(self.settings.dtype), self.bias[...].astype(self.settings.dtype)

    @property
    def fused(self) -> bool:
        """Whether `after` is one kernel; see `model.norm`."""
        if self.kernel != 'auto':
            return self.kernel == 'pallas'
        fits = self.scale.shape[0] <= MOST_WIDTH and not self.settings.fast
        return fits and is_half(self.settings.out_dtype) and target_platform() == 'gpu'


class NormSettings(NamedTuple):
    """How a LayerNorm computes."""

    eps: float
    fast: bool  # variance as E[x^2] - E[x]^2: one pass less, and it cancels where the mean is large
    dtype: DTypeLike
    out_dtype: DTypeLike


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    x: Float[Array, '*_ d'], scale: Float[Array, ' d'], bias: Float[Array, ' d'], settings: NormSettings
) -> Float[Array, '*_ d']:
    """LayerNorm of which only x and two numbers a token are kept for the backward pass.

    Left to itself the compiler keeps x - mean and its quotient beside x, or normalises again in each
    consumer.
    """
    return _normalise_forward(x, scale, bias, settings)[0]


def _row(vector: Array, like: Array) -> Array:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _moments(x: Array, settings: NormSettings) -> tuple[Array, Array]:
    """Mean and 1 / sqrt(variance + eps) of each token, in the wide type."""
    x = x.astype(settings.dtype)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    squares = jnp.mean(jnp.square(x if settings.fast else x - mean), axis=-1, keepdims=True)
    variance = jnp.maximum(squares - jnp.square(mean), 0) if settings.fast else squares
    return mean, jax.lax.rsqrt(variance + jnp.asarray(settings.eps, x.dtype))


def _normalise_forward(
    x: Array, scale: Array, bias: Array, settings: NormSettings
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    mean, inverse = _moments(x, settings)
    normed = (x.astype(settings.dtype) - mean) * inverse * _row(scale, x) + _row(bias, x)
    return normed.astype(settings.out_dtype), (x, scale, mean, inverse)


def _normalise_backward(
    settings: NormSettings, kept: tuple[Array, Array, Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = kept
    # With y = (x - mean) * inverse and g the gradient times scale:
    #     dx = inverse * (g - mean(g) - y * mean(g * y)),  dscale = sum(gradient * y),  dbias = sum(gradient).
    # The barrier keeps what the forward pass computed of x from being kept for here.
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    y, gradient = (x.astype(settings.dtype) - mean) * inverse, gradient.astype(settings.dtype)
    g = gradient * _row(scale, x)
    projection = jnp.mean(g * y, axis=-1, keepdims=True)
    dx = inverse * (g - jnp.mean(g, axis=-1, keepdims=True) - y * projection)
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), jnp.sum(gradient * y, axis=rows), jnp.sum(gradient, axis=rows)


normalise.defvjp(_normalise_forward, _normalise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gelu(x: Float[Array, '*_ d'], wide: DTypeLike, approximate: bool) -> Float[Array, '*_ d']:
    """x Phi(x), computed in the wide type and rounded to that of x; only x is kept for the backward pass.

    In bfloat16 throughout it would put the error of the model a fifth above PyTorch's.
    """
    return jax.nn.gelu(x.astype(wide), approximate=approximate).astype(x.dtype)


def _gelu_forward(x: Array, wide: DTypeLike, approximate: bool) -> tuple[Array, Array]:
    return gelu(x, wide, approximate), x


def _gelu_backward(wide: DTypeLike, approximate: bool, x: Array, gradient: Array) -> tuple[Array]:
    # Otherwise the factors of the derivative are computed in the forward pass and kept, in the wide type.
    if target_platform() == 'tpu':
        # There the product that gives the gradient can take the derivative in.
        x = jax.lax.optimization_barrier(x)
    else:
        x, gradient = jax.lax.optimization_barrier((x, gradient))
    _, pull = jax.vjp(lambda x: jax.nn.gelu(x, approximate=approximate), x.astype(wide))
    return (pull(gradient.astype(wide))[0].astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.up = linear(width, hidden, arithmetic, rngs=rngs)
        self.down = linear(hidden, width, arithmetic, rngs=rngs)
        self.wide = arithmetic.wide_dtype
        self.approximate = arithmetic.numerics.gelu == 'tanh'

    def __call__(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n d']:
        """Token by token; the result has the compute type."""
        hidden = self.up(x)
        with jax.named_scope('gelu'):
            hidden = gelu(hidden, self.wide, self.approximate)
        return self.down(hidden)
