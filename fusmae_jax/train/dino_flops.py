"""Analytic floating-point operations of a DINO-MM step, counted as `flops` counts those of a masked one.

The student sees every crop, forward and backward; the teacher the global ones, forward. Behind the last block
only CLS is computed.
"""

import itertools
from typing import NamedTuple

from fusmae_jax.config.run import Config
from fusmae_jax.train.flops import block, cross_block


class CropParts(NamedTuple):
    """Operations of one crop's forward pass."""

    patch: float
    block1: float
    blocks: float  # the stacked ones
    head: float


def of_crop(config: Config, size: int) -> CropParts:
    """A crop of size x size pixels."""
    model, head = config.model, config.distillation.head
    patches = (size // model.patch_size) ** 2
    pixels = sum(model.patch_dim(name) for name in model.modalities)
    whole = block(patches + 1, model.width, model.mlp_ratio)
    last = cross_block(1, patches + 1, model.width, model.mlp_ratio)
    widths = [model.width, *[head.hidden] * (head.layers - 1), head.bottleneck, head.out_dim]
    return CropParts(
        patch=2.0 * patches * pixels * model.width,
        block1=whole,
        blocks=(model.depth - 2) * whole + last if model.depth > 1 else 0.0,
        head=sum(2.0 * a * b for a, b in itertools.pairwise(widths)),
    )


def train_flops_per_image(config: Config) -> float:
    """Operations of forward and backward for one image, recomputation not counted."""
    student, teacher = _crops(config)
    # No gradient flows into the pixels, so the patch projection has half a backward pass.
    learning = sum(3 * sum(crop) - crop.patch for crop in student)
    return learning + sum(sum(crop) for crop in teacher)


def full_remat_share(config: Config) -> float:
    """What running the student's stacked blocks twice would add to the operations of a step, as a share."""
    student, _ = _crops(config)
    return sum(crop.blocks for crop in student) / train_flops_per_image(config)


def _crops(config: Config) -> tuple[list[CropParts], list[CropParts]]:
    """Of the student, and of the teacher."""
    settings = config.distillation
    seen, local = (
        [of_crop(config, crops.size)] * crops.count for crops in (settings.global_crops, settings.local_crops)
    )
    return seen + local, seen
