"""The settings of `dense_probe`, `dense_knn` and `dense_finetune`, and the impossible ones among them."""

import dataclasses
import functools

from fusmae_jax.config.checks import augment_problems
from fusmae_jax.config.run import MAX_SEED, Augment
from fusmae_jax.config.setting import SPARSE, setting
from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM, EncoderSettings
from fusmae_jax.errors import raise_all
from fusmae_jax.eval.config import (
    MAPS,
    Evaluation,
    Intervals,
    Labels,
    Task,
    evaluation_problems,
    sweep_problems,
)
from fusmae_jax.eval.dense.heads import Kind
from fusmae_jax.eval.dense.losses import Loss
from fusmae_jax.eval.dense.upernet import BLOCKS
from fusmae_jax.eval.finetune.config import Tuning, tuning_problems

STILL = Augment(crop=False, hflip=0.0, vflip=0.0)


@dataclasses.dataclass(frozen=True)
class MapCalibration:
    """How far the probabilities of a map can be believed; see `eval/dense/calibration.py`."""

    # Of the validation split, drawn evenly from its records, that the temperature of a head is fitted on; 0:
    # not measured
    pixels: int = setting(0, least=0)
    bins: int = setting(15, least=1)  # of the calibration error


@dataclasses.dataclass(frozen=True)
class Mapped(Evaluation):
    """A class or a number for each pixel, from the tokens of an encoder."""

    data: Task = dataclasses.field(default_factory=functools.partial(Task, labels='map', kind='segmentation'))
    labels: Labels = dataclasses.field(default_factory=functools.partial(Labels, fractions=(1.0,)))
    intervals: Intervals = dataclasses.field(default_factory=functools.partial(Intervals, cluster='scene'))
    # Numbers of the blocks, from 1, whose tokens are taken side by side; (): the last one
    layers: tuple[int, ...] = setting((), least=1)


@dataclasses.dataclass(frozen=True)
class Dense(Mapped):
    """A class or a number for each pixel, by a head on the tokens of an encoder."""

    calibration: MapCalibration = dataclasses.field(default=MapCalibration(), metadata=SPARSE)
    # shuffle: all pixels of a patch from its token; pup: a convolutional decoder; upernet: pyramid pooling
    # and a top-down path over one block or four
    head: Kind = 'linear'
    head_width: int = setting(64, least=1)  # channels of pup and upernet
    loss: Loss = 'cross_entropy'  # of classes; numbers have the squared error
    focal_gamma: float = setting(2.0, least=0)  # of the focal loss
    rot90: bool = False  # turn training records by a random multiple of 90 degrees; grids must be square


@dataclasses.dataclass(frozen=True)
class DenseProbe(Dense):
    """A head on frozen tokens; the encoder is never changed."""

    encoder: EncoderSettings = dataclasses.field(
        default_factory=functools.partial(EncoderSettings, baselines=(RANDOM, BANDS, PRIOR))
    )
    augment: Augment = STILL  # off, as in other probes of frozen features
    learning_rates: tuple[float, ...] = setting((3e-4, 1e-3, 3e-3, 1e-2), above=0)
    weight_decays: tuple[float, ...] = setting((0.0,), least=0)  # decoupled; of kernels alone
    epochs: float = setting(10.0, above=0)
    batch_size: int = setting(32, least=1)
    # Before the names of the fields of an earlier image of the same ground, such as 'before_': the head is
    # given the tokens and their difference from the earlier ones
    earlier: str = ''
    # Tokens with mean 0 and variance 1 over the labelled records; pixels always
    standardise: bool = True
    head_seeds: tuple[int, ...] = setting((0, 1, 2), least=0, most=MAX_SEED)  # of the initial heads
    metric: str = ''  # of the validation split; '' is iou_macro, of numbers r2_macro


@dataclasses.dataclass(frozen=True)
class DenseKnn(Mapped):
    """A class for each pixel from the labels of the nearest tokens; nothing is trained or settled."""

    encoder: EncoderSettings = dataclasses.field(
        default_factory=functools.partial(EncoderSettings, baselines=(RANDOM, PRIOR))
    )
    # As of `dense_probe`: tokens are compared together with their difference from the earlier ones
    earlier: str = ''
    standardise: bool = False  # by mean and variance of the bank
    k: int = setting(20, least=1)
    temperature: float = setting(0.07, least=1e-6)  # a neighbour of cosine s counts exp(s / temperature)
    # Tokens of the labelled records that are compared with, drawn at random where there are more
    bank: int = setting(65536, least=1)
    bank_seed: int = setting(0, least=0, most=MAX_SEED)  # of that draw


@dataclasses.dataclass(frozen=True)
class DenseFinetune(Tuning, Dense):
    """A head and the encoder under it, trained together."""

    encoder: EncoderSettings = dataclasses.field(
        default_factory=functools.partial(EncoderSettings, baselines=(RANDOM, PRIOR))
    )
    batch_size: int = setting(32, least=1)


# What decides the outcome of a fine-tuning beside the encoder, the records, the rate and the seed.
RECIPE = (
    *('augment', 'rot90', 'epochs', 'warmup_epochs', 'batch_size', 'weight_decay', 'b1', 'b2'),
    *('layer_decay', 'drop_path', 'epoch', 'max_skips', 'layers', 'head', 'head_width', 'loss'),
    'focal_gamma',
)


def check(config: DenseProbe | DenseKnn | DenseFinetune) -> None:
    """Raises InputError with every setting that is impossible whatever the data hold."""
    problems = evaluation_problems(config)
    if config.data.kind not in MAPS:
        problems.append(
            f"data.kind={config.data.kind!r}: dense tasks need 'segmentation', for numbers 'map_regression'"
        )
    elif config.data.kind == 'map_regression':
        problems += _number_problems(config)
    if len(set(config.layers)) < len(config.layers):
        problems.append(f'layers={config.layers} names a block twice')
    names: tuple[str, ...] = ()
    if isinstance(config, Dense) and config.head == 'upernet' and len(config.layers or (1,)) not in BLOCKS:
        problems.append(f"layers={config.layers}: head='upernet' takes one block or four")
    if isinstance(config, DenseProbe):
        problems += augment_problems(config.augment)
        names = ('learning_rates', 'weight_decays', 'head_seeds')
    elif isinstance(config, DenseKnn):
        if BANDS in (config.encoder.checkpoint, *config.encoder.baselines):
            problems.append(f'encoder: {BANDS!r} has no tokens; `dense_probe` takes it')
        if config.k > config.bank:
            problems.append(f'k={config.k} neighbours in a bank of {config.bank}; lower k or raise bank')
    else:
        problems += tuning_problems(config, config.encoder, '`dense_probe`')
        names = ('learning_rates', 'head_seeds')
    if config.data.kind in MAPS and names:
        problems += sweep_problems(config, names)
    raise_all('config: these settings cannot be used', problems)


def _number_problems(config: DenseProbe | DenseKnn | DenseFinetune) -> list[str]:
    """What is impossible with maps of numbers."""
    if isinstance(config, DenseKnn):
        return ["data.kind='map_regression': `dense_probe` and `dense_finetune` learn maps of numbers"]
    problems = []
    if config.calibration.pixels:
        problems.append('calibration.pixels: numbers to predict have no probabilities; leave it out')
    if config.loss != 'cross_entropy':
        problems.append(f'loss={config.loss!r} is of classes; numbers are learned by their squared error')
    return problems
