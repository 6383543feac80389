"""Recipes: everything in which the kinds of pretraining differ, as a table.

What all have in common - data, step, loop, checkpoints - asks the recipe of `config.objective` and never
which one it is. A new kind is a group of settings, an entry here, and the functions that it names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax.typing import DTypeLike

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train import dino_encoder, dino_flops, dino_objective, dino_optimizer, flops
from fusmae_jax.train import optimizer as optimizers
from fusmae_jax.train.objective import Objective, reconstruction


class Parts(NamedTuple):
    """What a step is made of."""

    objective: Objective
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation


class Recipe(NamedTuple):
    """One kind of pretraining."""

    title: Callable[[Config], str]  # of a model card
    describe: Callable[[Config], str]  # of the objective, in words
    # (settled config, contract, dtype, steps of the run, records) -> parts
    parts: Callable[[Config, Contract, DTypeLike, int, int], Parts]
    shapes: Callable[[Config, DTypeLike], tuple[Params, dict[str, Any]]]  # of parameters and extra state
    # What is trained, as an encoder: its settings, with the preset of its input, and, traceably, its
    # parameters. Of a stored state `learned(params, extra, config, steps)` is what has to be turned into one.
    encoder_config: Callable[[Config], Config]
    encoder_params: Callable[[Params, Config], Params]
    learned: Callable[[Params, Any, Config, int], Params]
    feature: str  # that its features are judged by during training
    flops_per_image: Callable[[Config], float]  # of a step, analytic
    # What computing every stacked block twice would add to them, as a share.
    full_remat_share: Callable[[Config], float]
    masks: bool  # whether there is a held-out masked loss, and something to be drawn as a reconstruction


def recipe_of(config: Config) -> 'Recipe':
    """The recipe that a configuration follows."""
    return RECIPES[config.objective]


def _masked_parts(config: Config, contract: Contract, dtype: DTypeLike, steps: int, examples: int) -> Parts:
    schedule = optimizers.schedule(config.optimizer, steps, config.train.batch_size, examples)
    objective = reconstruction(config, contract, config.augment, dtype)
    return Parts(objective, schedule, optimizers.make_optimizer(config.optimizer, schedule))


def _masked_title(config: Config) -> str:
    fused = len(config.model.modalities) > 1
    return f'{"Fus-MAE" if fused else "Masked autoencoder of one sensor"}, {config.name}'


def _describe_masked(config: Config) -> str:
    fusion, masking = config.model.fusion, config.masking
    return (
        f'masked reconstruction, {masking.strategy} masks, {masking.ratio:.0%} hidden; fusion in the encoder '
        f'`{fusion.encoder}`, in the decoder `{fusion.decoder}`, absent sensor `{fusion.absent}`'
    )


def _dino_parts(config: Config, contract: Contract, dtype: DTypeLike, steps: int, examples: int) -> Parts:
    """Raises InputError for what DINO-MM cannot do."""
    if config.data.absent_bands == 'drop':
        raise InputError("data.absent_bands='drop': DINO-MM stacks all bands; use 'mean'")
    # Refuses a warm-up that leaves nothing of the run; the schedule itself is that of DINO's code.
    optimizers.schedule(config.optimizer, steps, config.train.batch_size, examples)
    rate, decay = dino_optimizer.schedules(config, steps, examples)
    optimizer = dino_optimizer.make_optimizer(
        rate,
        decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        eps=config.optimizer.eps,
        clip_norm=config.optimizer.clip_norm,
        freeze_steps=round(config.distillation.freeze_last_layer_epochs * examples / config.train.batch_size),
    )
    return Parts(dino_objective.self_distillation(config, contract, dtype, steps), rate, optimizer)


RECIPES: dict[str, Recipe] = {
    'masked': Recipe(
        title=_masked_title,
        describe=_describe_masked,
        parts=_masked_parts,
        shapes=lambda config, dtype: (fusmae.param_shapes(config.model, dtype), {}),
        encoder_config=lambda config: config,
        encoder_params=lambda params, config: params,
        learned=lambda params, extra, config, steps: params,
        feature='mean_patch',
        flops_per_image=flops.train_flops_per_image,
        full_remat_share=flops.full_remat_share,
        masks=True,
    ),
    'dino': Recipe(
        title=lambda config: f'DINO-MM, {config.name}',
        describe=lambda config: (
            'DINO-MM: self-distillation over crops of the stacked sensors, one of them dropped at times'
        ),
        parts=_dino_parts,
        shapes=dino_objective.shapes,
        encoder_config=dino_encoder.encoder_config,
        encoder_params=dino_encoder.encoder_params,
        learned=dino_objective.final_teacher,
        feature='cls',
        flops_per_image=dino_flops.train_flops_per_image,
        full_remat_share=dino_flops.full_remat_share,
        masks=False,
    ),
}
