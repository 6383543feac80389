"""The training step of the PyTorch reference: AdamW with a decay mask, linear warm-up, cosine to zero."""

import math

import torch
from torch import Tensor, nn

from fusmae_jax.config.run import Optimizer
from fusmae_jax.interop.reference.model import TorchFusMAE

NOT_DECAYED = ('cls_token', 'mask_token', 'pos_embed')  # beside every vector: biases and LayerNorm


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """The rate of update `step` (from 0): linear from 0 to `peak`, then half a cosine to 0 at `total`."""
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def is_decayed(name: str, parameter: Tensor) -> bool:
    """True for weight matrices and patch kernels only."""
    return parameter.ndim >= 2 and name.split('.')[-1] not in NOT_DECAYED


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`, in a decayed and an undecayed group."""
    groups: list[list[Tensor]] = [[], []]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[int(settings.decay_all or is_decayed(name, parameter))].append(parameter)
    return torch.optim.AdamW(
        [
            {'params': groups[1], 'weight_decay': settings.weight_decay},
            {'params': groups[0], 'weight_decay': 0.0},
        ],
        lr=0.0,
        betas=(settings.b1, settings.b2),
        eps=settings.eps,
    )


class TorchTrainer:
    """A model, its optimizer and its schedule; one call is one optimizer step."""

    def __init__(self, model: TorchFusMAE, settings: Optimizer, total: int, warmup: int):
        self.model, self.settings = model, settings
        self.total, self.warmup, self.count = total, warmup, 0
        self.optimizer = make_optimizer(model, settings)

    def step(self, images: dict[str, Tensor], ids: dict[str, Tensor], keep: dict[str, int]) -> float:
        """Updates the model on one batch (see `TorchFusMAE.forward`); returns the loss before the update."""
        rate = learning_rate(self.count, self.total, self.warmup, self.settings.learning_rate)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.model(images, ids, keep)
        loss.backward()
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.count += 1
        return float(loss.detach())
