"""Everything a DINO-MM run is made of: the parts of `train.setup.Setup` from a DinoConfig."""

import jax

from fusmae_jax.config.dino import DinoConfig
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract
from fusmae_jax.train import dino_optimizer
from fusmae_jax.train.dino_loss import cosine
from fusmae_jax.train.dino_objective import self_distillation
from fusmae_jax.train.setup import Setup, make_setup


def make_dino_setup(
    config: DinoConfig, contract: Contract, examples: int, devices: list[jax.Device] | None = None
) -> Setup:
    """Builds a run over a data set of `examples` records; raises InputError where the parts do not fit."""
    if config.data.absent_bands == 'drop':
        raise InputError("data.absent_bands='drop': DINO-MM stacks all bands; use 'mean'")
    if config.train.accumulation > 1:
        raise InputError(
            f'train.accumulation={config.train.accumulation}: the centre of DINO-MM is of the whole batch; '
            'use 1, and more devices or a smaller batch'
        )
    base = make_setup(config, contract, examples, devices)
    settled = base.config
    assert isinstance(settled, DinoConfig)
    steps, optimizer, dino = base.total_steps, settled.optimizer, settled.dino
    epoch = examples / settled.train.batch_size
    warmup = optimizer.warmup_steps or round(optimizer.warmup_epochs * epoch)
    rate = cosine(optimizer.learning_rate, dino.final_learning_rate, steps, warmup)
    decay = cosine(optimizer.weight_decay, dino.final_weight_decay, steps)
    return base._replace(
        objective=self_distillation(settled, contract, base.dtype, steps),
        schedule=rate,
        optimizer=dino_optimizer.make_optimizer(
            rate,
            decay,
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            clip_norm=optimizer.clip_norm,
            freeze_steps=round(dino.freeze_last_layer_epochs * epoch),
        ),
    )
