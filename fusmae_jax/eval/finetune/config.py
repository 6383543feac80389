"""The settings of `finetune`, and the impossible ones among them."""

import dataclasses
import math
from typing import Literal

from fusmae_jax.config import Augment, Parallel
from fusmae_jax.config_build import augment_problems
from fusmae_jax.errors import raise_all
from fusmae_jax.eval import evaluation_config
from fusmae_jax.eval.evaluation_config import (
    BANDS,
    PAPER_HEAD,
    PRIOR,
    RANDOM,
    Encoder,
    Intervals,
    Labels,
    LinearProbe,
    Task,
)


def _encoder() -> Encoder:
    return Encoder(baselines=(RANDOM, PRIOR))


def _labels() -> Labels:
    return Labels(fractions=(1.0,))


def _flips() -> Augment:
    return Augment(crop=False, crop_scale=(0.5, 1.0), hflip=0.5, vflip=0.5)


@dataclasses.dataclass(frozen=True)
class Finetune:
    """A linear head and the encoder under it, trained together; the paper's 10 epochs of AdamW.

    The defaults are the preset `paper`. What the paper leaves open follows the fine-tuning of MAE and
    MultiMAE; layer decay, drop path and random crops belong to the preset `recommended`.
    """

    data: Task = dataclasses.field(default_factory=Task)
    encoder: Encoder = dataclasses.field(default_factory=_encoder)
    labels: Labels = dataclasses.field(default_factory=_labels)
    intervals: Intervals = dataclasses.field(default_factory=Intervals)
    features: tuple[str, ...] = ('mean_patch',)  # what the head reads; each a run of its own
    image: Literal['resize', 'crops'] = 'resize'  # the whole record, or its four quarters
    augment: Augment = dataclasses.field(default_factory=_flips)  # of the record, or of a quarter of it
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 5e-4)  # peaks; the validation split settles on one
    settle: Literal['all', 'each'] = 'all'  # one rate for all systems and modalities, or one for each
    epoch: Literal['last', 'best'] = 'last'  # which is tested; best: on the validation split
    metric: str = ''  # of the validation split; '' is ap_micro (multi_label) or top1 (single_label)
    epochs: float = 10.0
    warmup_epochs: float = 1.0  # linear from 0; then a half cosine to 0
    batch_size: int = 128  # of all devices; fewer labelled records make a smaller batch
    weight_decay: float = 0.05  # decoupled; of kernels alone
    b1: float = 0.9
    b2: float = 0.999
    layer_decay: float = 1.0  # factor of the rate from one block to the one below it; 1 is off
    drop_path: float = 0.0  # in the last block, rising from 0 in the first
    label_smoothing: float = 0.1  # single_label only
    head_seeds: tuple[int, ...] = (0,)  # of head, batch order and augmentation; each a run of its own
    max_skips: int = 10  # this many steps in a row that are not finite end a learning rate
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
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
    same = all(getattr(config, name) == getattr(preset, name) for name in RECIPE if name != 'image')
    return config.preset if same else 'custom'


def check(config: Finetune) -> None:
    """Raises InputError with every setting that is impossible whatever the data hold."""
    raise_all('config: these settings cannot be used', _problems(config))
    evaluation_config.check(as_probe(config))


def as_probe(config: Finetune) -> LinearProbe:
    """The settings that a linear probe of the same task shares."""
    shared = {f.name for f in dataclasses.fields(LinearProbe)} & {
        f.name for f in dataclasses.fields(Finetune)
    }
    shared -= {'weight_decay'}
    return LinearProbe(**{name: getattr(config, name) for name in shared})


def _problems(config: Finetune) -> list[str]:
    problems = augment_problems(config.augment)
    if BANDS in (config.encoder.checkpoint, *config.encoder.baselines):
        problems.append(f'encoder: {BANDS!r} has no weights to train; `linear_probe` and `knn` take it')
    for name in ('drop_path', 'b1', 'b2'):
        if not 0 <= getattr(config, name) < 1:
            problems.append(f'{name}={getattr(config, name)} must lie in [0, 1)')
    if not 0 < config.layer_decay <= 1:
        problems.append(f'layer_decay={config.layer_decay} must lie in (0, 1]')
    for name in ('weight_decay', 'warmup_epochs'):
        if not 0 <= getattr(config, name) < math.inf:
            problems.append(f'{name}={getattr(config, name)} must be at least 0')
    if not config.warmup_epochs < config.epochs:
        problems.append(f'warmup_epochs={config.warmup_epochs} leaves nothing of epochs={config.epochs}')
    if config.max_skips < 1:
        problems.append(f'max_skips={config.max_skips} must be at least 1')
    return problems
