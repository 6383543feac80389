"""Analytic floating-point operations of a training step.

XLA's own count takes the body of a scan once, so it is off by the depth. Counted here are the matrix
products, at two operations for a multiply-add; the backward pass costs twice the forward.
"""

import jax

from fusmae_jax.config import Config, Model
from fusmae_jax.models.masking import num_visible

# bfloat16 peak without sparsity, FLOP/s of one jax device, from the vendors' data sheets.
PEAK_BF16 = {
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,
    'TPU v5p': 459e12,
    'TPU v6 lite': 918e12,
    'TPU v6e': 918e12,
    'NVIDIA A100': 312e12,
    'NVIDIA H100': 989e12,
    'NVIDIA H200': 989e12,
    'NVIDIA L4': 121e12,
    'NVIDIA V100': 125e12,
}


def block(tokens: int, width: int, mlp_ratio: float) -> float:
    """One self-attention block: qkv, attention, output projection, MLP."""
    linear = tokens * width**2 * (4 + 2 * mlp_ratio)
    return 2 * (linear + 2 * tokens**2 * width)


def cross_block(queries: int, context: int, width: int, mlp_ratio: float) -> float:
    """Cross-attention of some queries to a context, and the MLP on the queries."""
    linear = queries * width**2 * (2 + 2 * mlp_ratio) + 2 * context * width**2
    return 2 * (linear + 2 * queries * context * width)


def forward(model: Model, visible: int) -> dict[str, float]:
    """Operations of one image's pretraining forward pass, part by part."""
    count, names = len(model.modalities), list(model.modalities)
    n, d, ratio, dec = model.num_patches, model.width, model.mlp_ratio, model.decoder
    fused = sum(cross_block(visible, max(count - 1, 1) * visible, d, ratio) for _ in names)
    tokens = count * visible + 1
    decoder_tokens = n + int(dec.cls)
    return {
        'patch': sum(2.0 * visible * model.patch_dim(name) * d for name in names),
        'block1': fused if model.fusion.encoder == 'xae' else block(tokens, d, ratio),
        'blocks': (model.depth - 1) * block(tokens, d, ratio),
        'xad': fused if model.fusion.decoder == 'xad' else 0.0,
        'decoders': sum(
            2.0 * (visible + int(dec.cls)) * d * dec.width
            + dec.depth * block(decoder_tokens, dec.width, ratio)
            + 2.0 * (n - visible) * dec.width * model.patch_dim(name)
            for name in names
        ),
    }


def train_flops_per_image(config: Config) -> float:
    """Operations of forward and backward for one image, recomputation not counted."""
    visible = num_visible(config.model.num_patches, config.masking)
    parts = forward(config.model, visible)
    # No gradient flows into the pixels, so the patch projection has half a backward pass.
    return 3 * sum(parts.values()) - parts['patch']


def peak_flops(device: jax.Device) -> float | None:
    """The chip's bfloat16 peak, or None where it is not known."""
    kind = device.device_kind
    # Whole words only: 'NVIDIA L40S' is no 'NVIDIA L4'. PCIe cards of a name run slower, so they are unknown.
    known = [] if 'PCIe' in kind else [name for name in PEAK_BF16 if f'{kind} '.startswith(f'{name} ')]
    best = max(known, key=len, default=None)
    return None if best is None else PEAK_BF16[best]
