"""Layers of the PyTorch reference: norms, MLP, self-attention, cross-attention and sine-cosine positions.

Only the other PyTorch files of this folder import this one; training never does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusmae_jax.config.run import Numerics


class FastLayerNorm(nn.LayerNorm):
    """LayerNorm with the variance as E[x^2] - E[x]^2, for comparison with models that compute it so."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis of x (..., d); the statistics are at least float32."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide.mean(-1, keepdim=True)
        variance = (wide.square().mean(-1, keepdim=True) - mean.square()).clamp_min(0)
        return ((wide - mean) * torch.rsqrt(variance + self.eps)).to(x.dtype) * self.weight + self.bias


def layer_norm(width: int, numerics: Numerics) -> nn.LayerNorm:
    """A LayerNorm over `width` features with the configured epsilon and form of the variance."""
    kind = FastLayerNorm if numerics.norm_variance == 'fast' else nn.LayerNorm
    return kind(width, eps=numerics.norm_eps)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, the MLP of eqs (3) and (11)."""

    def __init__(self, width: int, hidden: int, numerics: Numerics):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate='tanh' if numerics.gelu == 'tanh' else 'none')
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (b, n, d) to (b, n, d)."""
        return self.fc2(self.act(self.fc1(x)))


def _split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(b, n, parts*d) -> `parts` tensors (b, heads, n, d/heads), heads being the slower feature axis."""
    b, n, features = x.shape
    x = x.view(b, n, parts, heads, features // (parts * heads))
    return x.permute(2, 0, 3, 1, 4).unbind(0)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. (5) with 1/sqrt(d_head), heads merged again: (b, n, d)."""
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, width: int, heads: int, numerics: Numerics):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=numerics.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (b, n, d) to (b, n, d)."""
        return self.proj(_attend(*_split_heads(self.qkv(x), 3, self.heads)))


class CrossAttention(nn.Module):
    """CA(x, y) of eqs (4)-(5) with pre-norms: queries from x, keys and values from y."""

    def __init__(self, width: int, heads: int, numerics: Numerics):
        super().__init__()
        self.heads = heads
        self.query_norm = layer_norm(width, numerics)
        self.context_norm = layer_norm(width, numerics)
        self.q = nn.Linear(width, width, bias=numerics.qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=numerics.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Maps queries' tokens x (b, n, d) and context tokens y (b, m, d) to (b, n, d)."""
        (q,) = _split_heads(self.q(self.query_norm(x)), 1, self.heads)
        k, v = _split_heads(self.kv(self.context_norm(y)), 2, self.heads)
        return self.proj(_attend(q, k, v))


class Block(nn.Module):
    """A pre-norm transformer block: x + SA(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, heads: int, hidden: int, numerics: Numerics):
        super().__init__()
        self.norm1 = layer_norm(width, numerics)
        self.attn = SelfAttention(width, heads, numerics)
        self.norm2 = layer_norm(width, numerics)
        self.mlp = Mlp(width, hidden, numerics)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (b, n, d) to (b, n, d)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D positions (rows*columns, width), float64, tokens row-major.

    A quarter of the features each: sin(r w), cos(r w), sin(c w), cos(c w), with w_i = 10000^(-i / (width/4)).
    """
    w = torch.pow(10000.0, -torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    r, c = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing='ij'
    )
    r, c = r.reshape(-1, 1) * w, c.reshape(-1, 1) * w
    return torch.cat([r.sin(), r.cos(), c.sin(), c.cos()], dim=1)
