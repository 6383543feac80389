"""The settings of `finetune`, and the impossible ones among them."""

import dataclasses
import functools
from typing import Any, Literal

from fusmae_jax.config.checks import augment_problems
from fusmae_jax.config.run import MAX_SEED, Augment, Parallel
from fusmae_jax.config.setting import SPARSE, setting
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM, EncoderSettings
from fusmae_jax.errors import raise_all
from fusmae_jax.eval.config import (
    PAPER_HEAD,
    Calibration,
    Labels,
    PooledEvaluation,
    calibration_problems,
    pooled_problems,
    sweep_problems,
)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How an encoder and its head are trained together."""

    # Of the record, or of a quarter of it
    augment: Augment = dataclasses.field(
        default_factory=functools.partial(Augment, crop=False, crop_scale=(0.5, 1.0), hflip=0.5, vflip=0.5)
    )
    # Peaks; the validation split settles on one
    learning_rates: tuple[float, ...] = setting((1e-4, 3e-4, 5e-4), above=0)
    settle: Literal['all', 'each'] = 'all'  # one rate for all systems and modalities, or one for each
    epoch: Literal['last', 'best'] = 'last'  # which is tested; best: on the validation split
    # Of the validation split; '' is ap_micro (multi_label), top1 (single_label), iou_macro (segmentation) or
    # r2_macro (regression)
    metric: str = ''
    epochs: float = setting(10.0, above=0)
    warmup_epochs: float = setting(1.0, least=0)  # linear from 0; then a half cosine to 0
    batch_size: int = setting(128, least=1)  # of all devices; fewer labelled records make a smaller batch
    weight_decay: float = setting(0.05, least=0)  # decoupled; of kernels alone
    b1: float = setting(0.9, least=0, below=1)
    b2: float = setting(0.999, least=0, below=1)
    # Factor of the rate from one block to the one below it; 1 is off
    layer_decay: float = setting(1.0, above=0, most=1)
    drop_path: float = setting(0.0, least=0, below=1)  # in the last block, rising from 0 in the first
    # Sensors and how likely each is declared absent in a training record, never all of those that are there:
    # (('s2', 0.3),); see `finetune/dropout.py`
    modality_dropout: tuple[tuple[str, float], ...] = setting((), least=0, below=1, sparse=True)
    # Rank of adapters that are trained in place of the encoder (`finetune/adapters.py`); 0: the encoder is
    lora_rank: int = setting(0, least=0, sparse=True)
    # Epochs in which the head alone learns, before the encoder is thawed
    frozen_epochs: float = setting(0.0, least=0, sparse=True)
    # Of head, batch order and augmentation; each a run of its own
    head_seeds: tuple[int, ...] = setting((0,), least=0, most=MAX_SEED)
    max_skips: int = setting(10, least=1)  # this many steps in a row that are not finite end a learning rate
    parallel: Parallel = dataclasses.field(default_factory=Parallel)


@dataclasses.dataclass(frozen=True)
class Finetune(Tuning, PooledEvaluation):
    """A linear head and the encoder under it, trained together; the paper's 10 epochs of AdamW.

    The defaults are the preset `paper`. What the paper leaves open follows the fine-tuning of MAE and
    MultiMAE; layer decay, drop path and random crops belong to the preset `recommended`.
    """

    encoder: EncoderSettings = dataclasses.field(
        default_factory=functools.partial(EncoderSettings, baselines=(RANDOM, PRIOR))
    )
    labels: Labels = dataclasses.field(default_factory=functools.partial(Labels, fractions=(1.0,)))
    label_smoothing: float = setting(0.1, least=0, below=1)  # single_label only
    calibration: Calibration = dataclasses.field(default=Calibration(), metadata=SPARSE)
    preset: str = 'paper'


# What makes a preset, beside the learning rates and the records.
RECIPE = (
    *('augment', 'epochs', 'warmup_epochs', 'batch_size', 'weight_decay', 'b1', 'b2', 'layer_decay'),
    *('drop_path', 'label_smoothing', 'epoch', 'max_skips', 'image'),
)


# As MAE and MultiMAE are fine-tuned, but for mixed images and random erasing.
RECOMMENDED = Finetune(
    preset='recommended',
    layer_decay=0.65,
    drop_path=0.1,
    augment=dataclasses.replace(Finetune().augment, crop=True),
    epoch='best',
    settle='each',
    learning_rates=(2.5e-4, 5e-4, 1e-3),  # the layers below take a fraction of it
)
PRESETS = {'paper': Finetune(), 'recommended': RECOMMENDED}


def recipe_of(config: Finetune) -> str:
    """The preset, or 'custom' where its recipe was changed.

    `paper` on a set with one class a record has epochs and batch of the paper's linear head on SEN12MS.
    """
    preset = PRESETS.get(config.preset, config)
    if (config.preset, config.data.kind) == ('paper', 'single_label'):
        epochs, batch_size = PAPER_HEAD['single_label']
        preset = dataclasses.replace(preset, epochs=epochs, batch_size=batch_size)
    if (config.preset, config.data.kind) == ('paper', 'regression'):
        return 'custom'  # of which the paper says nothing
    same = all(getattr(config, name) == getattr(preset, name) for name in RECIPE if name != 'image')
    return config.preset if same and not changed(config) else 'custom'


def changed(config: Tuning) -> dict[str, Any]:
    """What is known of a run only where it is not the default: earlier versions had no such settings."""
    fields = [field for field in dataclasses.fields(Tuning) if 'sparse' in field.metadata]
    values = {field.name: getattr(config, field.name) for field in fields}
    return {field.name: values[field.name] for field in fields if values[field.name] != field.default}


def check(config: Finetune) -> None:
    """Raises InputError with every setting that is impossible whatever the data hold."""
    problems = pooled_problems(config) + tuning_problems(config, config.encoder, '`linear_probe` and `knn`')
    problems += sweep_problems(config, ('learning_rates', 'head_seeds')) + calibration_problems(config)
    raise_all('config: these settings cannot be used', problems)


def tuning_problems(config: Tuning, encoder: EncoderSettings, others: str) -> list[str]:
    """What is impossible in training an encoder; `others` are the commands that train none."""
    problems = augment_problems(config.augment)
    names = [name for name, _ in config.modality_dropout]
    if len(set(names)) < len(names):
        problems.append(f'modality_dropout={config.modality_dropout} names a sensor twice')
    if BANDS in (encoder.checkpoint, *encoder.baselines):
        problems.append(f'encoder: {BANDS!r} has no weights to train; {others} take it')
    if not config.warmup_epochs < config.epochs:
        problems.append(f'warmup_epochs={config.warmup_epochs} leaves nothing of epochs={config.epochs}')
    if not config.frozen_epochs < config.epochs:
        problems.append(f'frozen_epochs={config.frozen_epochs} leaves nothing of epochs={config.epochs}')
    return problems
