"""The settings that evaluations share, and those of `linear_probe` and `knn`, with what is impossible."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from fusmae_jax.config.run import MAX_SEED
from fusmae_jax.config.setting import SPARSE, range_problems, setting
from fusmae_jax.encoders.settings import EncoderSettings, encoder_problems
from fusmae_jax.errors import nearest, raise_all

METRICS = {
    'multi_label': ('ap_micro', 'ap_macro', 'f1_micro', 'f1_macro'),
    'single_label': ('top1', 'top3', 'precision_weighted', 'recall_weighted', 'f1_weighted'),
    'segmentation': ('iou_macro', 'f1_macro', 'accuracy'),
    'regression': ('r2_macro',),
    'map_regression': ('r2_macro',),
}
MAPS = ('segmentation', 'map_regression')  # kinds of labels that are maps
# Epochs and batch of the paper's linear heads: BigEarthNet-MM, and SEN12MS (its batch is in version 1 only).
PAPER_HEAD = {'multi_label': (20.0, 128), 'single_label': (10.0, 256)}
Image = Literal['resize', 'crops']  # the whole record, or its four quarters
Draw = Literal['random', 'stratified', 'dino_mm']
POOLED = ('mean_patch', 'mean_all', 'concat_per_sensor', 'cls', 'last4_cls')


@dataclasses.dataclass(frozen=True)
class Task:
    """A converted data set with labels."""

    path: str = setting('', path=True)  # a folder written by `convert`
    train_split: str = 'train'
    val_split: str = 'val'  # settles the sweep
    test_split: str = 'test'  # looked at once, with what was settled
    # The label field: one number a class, 0 or 1; segmentation: a map of classes; map_regression: a map of
    # numbers; regression: numbers to predict
    labels: str = 'labels_19'
    kind: Literal['multi_label', 'single_label', 'segmentation', 'regression', 'map_regression'] = (
        'multi_label'
    )
    threads: int = setting(4, least=1)
    prefetch: int = setting(4, least=1)


@dataclasses.dataclass(frozen=True)
class Labels:
    """How many labels there are to learn from: the lists stored beside the data set."""

    fractions: tuple[float, ...] = setting((0.01, 0.1, 1.0), above=0, most=1)
    draw: Draw = 'random'
    # One run each, for fractions below 1
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), least=0, most=MAX_SEED)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """95 % intervals by cluster bootstrap over the test split."""

    cluster: str = 's2_scene'  # the index field that names the scene, tile or region of a record
    replicates: int = setting(1000, least=0)  # 0: no intervals
    seed: int = setting(0, least=0, most=MAX_SEED)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What every evaluation has that reads labels off an encoder."""

    data: Task = dataclasses.field(default_factory=Task)
    encoder: EncoderSettings = dataclasses.field(default_factory=EncoderSettings)
    labels: Labels = dataclasses.field(default_factory=Labels)
    intervals: Intervals = dataclasses.field(default_factory=Intervals)
    preset: str = 'none'


@dataclasses.dataclass(frozen=True)
class PooledEvaluation(Evaluation):
    """One label, or several, for a whole image."""

    image: Image = 'resize'  # crops: the mean over the four quarters of an image
    features: tuple[str, ...] = ('mean_patch',)  # what is read; each a run of its own


@dataclasses.dataclass(frozen=True)
class HeadSettings:
    """How a linear head is trained; the paper's 20 epochs of 128, the rest of which it does not say."""

    learning_rates: tuple[float, ...] = setting((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), above=0)
    weight_decays: tuple[float, ...] = setting((0.0,), least=0)
    epochs: float = setting(20.0, above=0)
    batch_size: int = setting(128, least=1)
    label_smoothing: float = setting(0.1, least=0, below=1)  # single_label only
    # Of the validation split; '' is ap_micro (multi_label), top1 (single_label) or r2_macro (regression)
    metric: str = ''


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far the probabilities of a head can be believed; see `eval/calibration.py`."""

    alpha: float = setting(0.0, least=0, below=1)  # records whose label set may lack a label; 0: not measured
    bins: int = setting(15, least=1)  # of the calibration error


@dataclasses.dataclass(frozen=True)
class LinearProbe(HeadSettings, PooledEvaluation):
    """A linear head on frozen features."""

    calibration: Calibration = dataclasses.field(default=Calibration(), metadata=SPARSE)

    # True: affine-free, with the statistics of the labelled records that have a valid pixel.
    batch_norm: tuple[bool, ...] = (False,)
    decay: Literal['decoupled', 'l2'] = 'decoupled'  # l2: half the squared kernel, in the loss
    # Of the initial kernel; the batch order is the same for all
    head_seeds: tuple[int, ...] = setting((0, 1, 2), least=0, most=MAX_SEED)
    preset: str = 'paper'


@dataclasses.dataclass(frozen=True)
class Knn(PooledEvaluation):
    """Scores from the labels or numbers of the nearest training records; nothing is trained or settled."""

    standardise: bool = False  # by the labelled records; band statistics, which have units, always are
    k: int = setting(20, least=1)
    temperature: float = setting(0.07, least=1e-6)  # a neighbour of cosine s counts exp(s / temperature)


def metric_of(config: Any) -> str:
    """The metric that settles a sweep, of settings with `metric` and `data`."""
    return config.metric or METRICS[config.data.kind][0]


def recipe_of(config: LinearProbe) -> str:
    """The preset, or 'custom' where what the paper says of its head (`PAPER_HEAD`), or AdamW, was changed."""
    if config.preset != 'paper':
        return config.preset
    plain = (config.batch_norm, config.weight_decays) == ((False,), (0.0,))
    plain &= config.data.kind == 'multi_label' or config.label_smoothing == 0.1
    plain &= (config.epochs, config.batch_size) == PAPER_HEAD.get(config.data.kind)
    return 'paper' if plain else 'custom'


def check(config: LinearProbe | Knn) -> None:
    """Raises InputError with every setting that is impossible whatever the data hold."""
    problems = pooled_problems(config)
    if isinstance(config, LinearProbe):
        problems += sweep_problems(config, ('learning_rates', 'weight_decays', 'head_seeds'))
        if not config.batch_norm or len(set(config.batch_norm)) < len(config.batch_norm):
            problems.append(f'batch_norm={config.batch_norm} must name False, True or both')
        problems += calibration_problems(config)
    raise_all('config: these settings cannot be used', problems)


def calibration_problems(config: Any) -> list[str]:
    """What is impossible in measuring how far probabilities can be believed."""
    if not config.calibration.alpha:
        return []
    if config.data.kind == 'regression':
        return ['calibration.alpha: numbers to predict have no probabilities; leave it out']
    if not config.intervals.cluster:
        return ["calibration.alpha: label sets keep their promise over scenes, and intervals.cluster is ''"]
    return []


def evaluation_problems(config: Evaluation) -> list[str]:
    """What is impossible among the settings that every evaluation has, or outside its range."""
    problems = range_problems(config) + encoder_problems(config.encoder)
    if not config.labels.fractions:
        problems.append('labels.fractions is empty: name at least one share')
    if not config.labels.seeds and min(config.labels.fractions, default=1) < 1:
        problems.append('labels.seeds is empty: name at least one draw')
    if not config.data.path:
        problems.append("data.path='': give the folder of a converted data set")
    return problems


def pooled_problems(config: PooledEvaluation) -> list[str]:
    """The same, of evaluations of whole images."""
    problems = evaluation_problems(config)
    if config.data.kind in MAPS:
        takers = '`dense_probe`, `dense_knn` and `dense_finetune` take maps of labels'
        if config.data.kind == 'map_regression':
            takers = '`dense_probe` and `dense_finetune` take maps of numbers'
        problems.append(f'data.kind={config.data.kind!r}: {takers}')
    for name in config.features:
        if name not in POOLED:
            problems.append(f'features: {name!r}; {nearest(name, POOLED)}')
    if not config.features:
        problems.append('features is empty: name at least one')
    return problems


def sweep_problems(config: Any, names: Sequence[str]) -> list[str]:
    """What is impossible among the lists of a sweep, by their names, and the metric that settles it."""
    problems = []
    for name in names:
        values = getattr(config, name)
        if not values:
            problems.append(f'{name} is empty: name at least one number')
        if len(set(values)) < len(values):
            problems.append(f'{name}={values} has a number twice')
    if metric_of(config) not in METRICS[config.data.kind]:
        problems.append(f'metric={config.metric!r}; {nearest(config.metric, METRICS[config.data.kind])}')
    return problems
