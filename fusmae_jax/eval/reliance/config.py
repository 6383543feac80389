"""The settings of `reliance`, and the impossible ones among them."""

import dataclasses
from typing import Literal

from fusmae_jax.config.run import MAX_SEED
from fusmae_jax.config.setting import SPARSE, range_problems, setting
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.errors import nearest, raise_all
from fusmae_jax.eval.config import METRICS, POOLED, Draw, HeadSettings, Intervals, LinearProbe, Task

# Of one width whatever sensors are given; `concat_per_sensor` is not.
FIXED_WIDTH = tuple(name for name in POOLED if name != 'concat_per_sensor')


@dataclasses.dataclass(frozen=True)
class Cloud:
    """A synthetic cloud over optical images; see `reliance.inputs.opacity`."""

    modality: str = 's2'
    cover: float = setting(0.7, above=0, below=1)  # share of the image in which the opacity is above one half
    # What opaque cloud looks like, in standard deviations above the mean of each band. It is normalised and
    # clipped as the images are: under `mean_2sigma` anything above 2 is as bright as an input can be.
    bright: float = 3.0
    seed: int = setting(0, least=0, most=MAX_SEED)


@dataclasses.dataclass(frozen=True)
class CleanHead(HeadSettings):
    """The linear head, trained on clean images of all sensors."""

    fraction: float = setting(1.0, above=0, most=1)  # of the labels of the training split
    draw: Draw = 'random'
    draw_seed: int = setting(0, least=0, most=MAX_SEED)  # for a fraction below 1
    feature: str = 'mean_patch'
    batch_norm: bool = False
    seeds: tuple[int, ...] = setting((0, 1, 2), least=0, most=MAX_SEED)
    # True: the head that an encoder was fine-tuned with, which lies beside it, in place of a new one
    own: bool = dataclasses.field(default=False, metadata=SPARSE)


@dataclasses.dataclass(frozen=True)
class Reliance:
    """What a head reads off the features when a sensor is missing, exchanged or under cloud."""

    data: Task = dataclasses.field(default_factory=Task)
    checkpoints: tuple[str, ...] = setting((), path=True)  # of two sensors or more each; drawn in this order
    names: tuple[str, ...] = ()  # one for each; () takes those of the pretraining configurations
    head: CleanHead = dataclasses.field(default_factory=CleanHead)
    cloud: Cloud = dataclasses.field(default_factory=Cloud)
    shuffle_seed: int = setting(0, least=0, most=MAX_SEED)
    absent: Literal['', 'self', 'bypass', 'zero_image'] = ''  # '' is the rule that the model was trained by
    stats: Literal['checkpoint', 'dataset'] = 'checkpoint'
    absent_bands: Literal['error', 'mean'] = 'error'
    accept: tuple[str, ...] = ()
    batch: int = setting(32, least=1)  # images at once; the attention of one batch is held in memory
    attention_records: int = setting(512, least=0)  # the first ones of the test split; 0: none is measured
    intervals: Intervals = dataclasses.field(default_factory=Intervals)  # its cluster is shuffled over, too


def encoder(config: Reliance, index: int) -> EncoderSettings:
    """How one of the checkpoints is read."""
    return EncoderSettings(
        checkpoint=config.checkpoints[index],
        baselines=(),
        name=config.names[index] if config.names else '',
        absent=config.absent,
        stats=config.stats,
        absent_bands=config.absent_bands,
        accept=config.accept,
        batch=config.batch,
    )


def as_probe(config: Reliance) -> LinearProbe:
    """The head as a linear probe."""
    head = config.head
    return LinearProbe(
        data=config.data,
        features=(head.feature,),
        batch_norm=(head.batch_norm,),
        head_seeds=head.seeds,
        preset='reliance',
        **{field.name: getattr(head, field.name) for field in dataclasses.fields(HeadSettings)},
    )


def check(config: Reliance) -> None:
    """Raises InputError with every setting that is impossible whatever the data hold."""
    head, problems = config.head, range_problems(config)
    if not config.checkpoints or not all(config.checkpoints):
        problems.append(f'checkpoints={config.checkpoints}: give one working directory or more')
    if config.names and len(config.names) != len(config.checkpoints):
        problems.append(f'names={config.names} must be one for each of {len(config.checkpoints)} checkpoints')
    if len(set(config.names)) < len(config.names):
        problems.append(f'names={config.names} has a name twice')
    if not config.data.path:
        problems.append("data.path='': give the folder of a converted data set")
    if not config.intervals.cluster:
        problems.append("intervals.cluster='': images are shuffled across clusters; name an index field")
    if head.feature not in FIXED_WIDTH:
        problems.append(f'head.feature={head.feature!r}; {nearest(head.feature, FIXED_WIDTH)}')
    if not head.learning_rates or not head.weight_decays or not head.seeds:
        problems.append('head: learning_rates, weight_decays and seeds must name one number or more each')
    if config.data.kind not in ('multi_label', 'single_label', 'regression'):
        problems.append(
            f"data.kind={config.data.kind!r}: only labels and numbers of whole images: 'multi_label', "
            "'single_label', 'regression'"
        )
    elif head.metric and head.metric not in METRICS[config.data.kind]:
        problems.append(f'head.metric={head.metric!r}; {nearest(head.metric, METRICS[config.data.kind])}')
    raise_all('config: these settings cannot be used', problems)
