"""Analytic floating-point operations of a training step.

XLA's own count takes the body of a scan once, so it is off by the depth. Counted here are the matrix
products, at two operations for a multiply-add; the backward pass costs twice the forward.
"""

import re

from fusmae_jax.config.run import JOINT, Config, Model
from fusmae_jax.models.encoder import streams
from fusmae_jax.models.masking import num_decoded, num_slots, num_visible

# bfloat16 peak without sparsity, FLOP/s of one jax device, from the vendors' data sheets, by the beginning of
# its name in jax. Chips without bfloat16 (V100) have none.
PEAK_BF16 = {
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,
    'TPU v5p': 459e12,
    'TPU v6 lite': 918e12,
    'TPU v6e': 918e12,
    'NVIDIA A100-SXM4': 312e12,
    'NVIDIA H100': 989e12,
    'NVIDIA H200': 989e12,
    'NVIDIA B200': 2250e12,
    'NVIDIA L4': 121e12,
}
# Slower cards with the same chip, and a part of one.
OTHERS = re.compile(r'\b(PCIe|NVL|MIG)\b')


def block(tokens: int, width: int, mlp_ratio: float) -> float:
    """One self-attention block: qkv, attention, output projection, MLP."""
    linear = tokens * width**2 * (4 + 2 * mlp_ratio)
    return 2 * (linear + 2 * tokens**2 * width)


def cross_block(queries: int, context: int, width: int, mlp_ratio: float) -> float:
    """Cross-attention of some queries to a context, and the MLP on the queries."""
    linear = 2 * queries * width**2 + 2 * context * width**2
    return 2 * (linear + 2 * queries * context * width) + mlp(queries, width, mlp_ratio)


def mlp(tokens: int, width: int, ratio: float) -> float:
    """The two layers of an MLP."""
    return 4 * tokens * width**2 * ratio


def forward(
    model: Model, visible: int, *, joint: bool = False, masked: int | None = None
) -> dict[str, float]:
    """Operations of one image's pretraining forward pass, part by part.

    Args:
        model: with its sizes filled in.
        visible: patches of each stream of tokens, or slots of a joint sequence.
        joint: whether the sensors share one sequence of slots. Projections and cross-attention then run
            over all slots for every sensor, and each decoder sees all slots and a mask token for every patch.
        masked: patches that a decoder predicts; None: all that are not visible.
    """
    names, d, ratio = streams(model), model.width, model.mlp_ratio
    count = len(names)
    seen = visible if joint else count * visible
    if joint:
        cross = count * cross_block(visible, visible, d, ratio)
        block1 = cross - (count - 1) * mlp(visible, d, ratio)  # one MLP on all slots
    else:
        cross = block1 = count * cross_block(visible, max(count - 1, 1) * visible, d, ratio)
    decoder = multimae_decoder if model.fusion.decoder == 'multimae' else mae_decoder
    if masked is None:
        masked = model.num_patches - (0 if joint else visible)
    return {
        'patch': sum(2.0 * visible * size * d for size in names.values()),
        'block1': block1 if model.fusion.encoder == 'xae' else block(seen + 1, d, ratio),
        'blocks': (model.depth - 1) * block(seen + 1, d, ratio),
        'xad': cross if model.fusion.decoder == 'xad' else 0.0,
        'decoders': sum(decoder(model, size, visible, masked, seen) for size in names.values()),
    }


def mae_decoder(model: Model, patch_dim: int, visible: int, masked: int, seen: int) -> float:
    """One decoder on its visible tokens and its mask tokens; `seen` by the encoder matters not here."""
    dec, cls = model.decoder, int(model.decoder.cls)
    return (
        2.0 * (visible + cls) * model.width * dec.width
        + decoder_blocks(model, visible + masked + cls, masked)
        + 2.0 * masked * dec.width * patch_dim
    )


def multimae_decoder(model: Model, patch_dim: int, visible: int, masked: int, seen: int) -> float:
    """One decoder whose visible and mask tokens attend to all the tokens that the encoder has seen."""
    dec, context = model.decoder, seen + int(model.decoder.cls)
    return (
        2.0 * context * model.width * dec.width
        + cross_block(visible + masked, context, dec.width, model.mlp_ratio)
        + decoder_blocks(model, visible + masked, masked)
        + 2.0 * masked * dec.width * patch_dim
    )


def decoder_blocks(model: Model, tokens: int, masked: int) -> float:
    """The blocks of a decoder; of the last one only the masked tokens are asked for, and attend to all."""
    dec = model.decoder
    if not dec.depth:
        return 0.0
    last = cross_block(masked, tokens, dec.width, model.mlp_ratio)
    return (dec.depth - 1) * block(tokens, dec.width, model.mlp_ratio) + last


def train_flops_per_image(config: Config) -> float:
    """Operations of forward and backward for one image, recomputation not counted."""
    parts = _parts(config)
    # No gradient flows into the pixels, so the patch projection has half a backward pass.
    return 3 * sum(parts.values()) - parts['patch']


def full_remat_share(config: Config) -> float:
    """What running every stacked block twice would add to the operations of a step, as a share of them.

    The blocks of the decoders are taken as all of the decoders, which they nearly are.
    """
    parts = _parts(config)
    return (parts['blocks'] + parts['decoders']) / train_flops_per_image(config)


def _parts(config: Config) -> dict[str, float]:
    """Operations of one image's forward pass under the configured masks."""
    model, joint = config.model, config.masking.strategy in JOINT
    visible = num_visible(model.num_patches, config.masking)
    slots = num_slots(model.num_patches, len(model.modalities), config.masking)
    decoded = None if joint else num_decoded(model.num_patches, config.masking)
    return forward(model, slots if joint else visible, joint=joint, masked=decoded)


def peak_flops(kind: str) -> float | None:
    """The bfloat16 peak of a chip, by its `jax.Device.device_kind`; None where it is not known."""
    # Whole words: 'NVIDIA L40S' is no 'NVIDIA L4'.
    known = [name for name in PEAK_BF16 if re.match(rf'{re.escape(name)}\b', kind)]
    best = max(known, key=len, default=None)
    return None if best is None or OTHERS.search(kind) else PEAK_BF16[best]
