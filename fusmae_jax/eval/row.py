"""A result row: one number, and all that one has to know to hold another number against it.

Every field but two must be given; what does not apply is None. Rows whose protocols differ are not
compared (`same_protocol`, `require_same_protocol`), unless the comparison names what it varies.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fusmae_jax.errors import InputError, nearest, raise_all
from fusmae_jax.eval.intervals import Interval, Spread

FORMAT = 1  # of the JSON
ALL = 'all'  # the draw of a label fraction of 1
RANGES = {'rmse': (0.0, math.inf), 'mae': (0.0, math.inf), 'r2': (-math.inf, 1.0)}  # of what is no share
# Methods that give each pixel the class of the highest score: their F1 has no threshold.
PIXELWISE = ('dense_probe', 'dense_knn', 'dense_finetune', 'most frequent class')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One metric of one system on one split. Shares lie in [0, 1]; an undefined number is None."""

    # The system.
    system: str  # 'Fus-MAE XAE, independent masks'
    checkpoints: tuple[str, ...]  # fingerprints, one a pretraining seed; none for systems without weights
    leaks: Mapping[str, int] | None  # of the split, as `leak.count` counts; None: the weights do not say
    code_version: str
    # What was evaluated.
    dataset: str
    dataset_version: str
    dataset_fingerprint: str
    split: str
    records: int
    classes: tuple[str, ...]  # in the order of the scores
    without_positives: tuple[str, ...]  # classes that macro averages leave out
    # What the head learned from.
    train_split: str
    train_records: int  # of one draw
    label_fraction: float
    draw: str  # 'random', 'stratified', 'dino_mm'; 'all' for the fraction 1
    draw_seeds: tuple[int, ...]  # one a subset; none for 'all'
    # How.
    method: str  # 'finetune', 'linear', 'knn', 'prior', ...
    preset: str  # of the method: 'paper', 'recommended', 'custom' where its recipe was changed, 'none'
    head_seeds: tuple[int, ...]
    pooled: str | None  # pooled feature: 'mean_patch', 'last4_cls', ...
    batch_norm: bool | None  # before the linear head
    sweep: Mapping[str, tuple[float, ...]]  # setting -> values tried; a single one was not swept
    chosen: Mapping[str, tuple[float, ...]]  # setting -> values settled on, one a run or one for all
    settled_on: str | None  # the split and its metric that decided: 'val, ap_micro'
    # What the encoder saw.
    modalities: tuple[str, ...]
    absent: str | None  # rule for an absent modality: 'self', 'bypass', 'zero_image'
    image: str  # 'resize 224', 'crops 4 x 128'
    statistics: str  # that inputs were normalised with
    accepted: tuple[str, ...]  # declared shifts between the data and the model's input contract
    # What the number is.
    metric: Literal['ap', 'f1', 'top1', 'top3', 'precision', 'recall', 'iou', 'accuracy', 'rmse', 'mae', 'r2']
    averaging: Literal['micro', 'macro', 'weighted', 'class', 'none']
    label: str | None  # the class, or the target, for the averaging 'class'
    threshold: float | None  # of F1 over multi-hot labels, as a probability
    unit: str | None = None  # of an error, as the data give it; None: not known, or the number is a share
    # Of a target by neighbours: records that got the mean of the labelled ones, since none of their
    # neighbours has a value; a number a label subset
    filled: tuple[int, ...] = ()
    # The number.
    estimate: float | None
    low: float | None
    high: float | None
    level: float
    replicates: int
    undefined: int  # replicates without a value
    bootstrap_seed: int
    cluster: str  # what was drawn: 'S2 scene', 'tile', 'hold-out scene', 'region'
    clusters: int
    lowest: float | None  # of the single runs, over subsets and seeds
    highest: float | None
    runs: int

    def __post_init__(self):
        problems = [
            f'{name} must be {_words(hint)}, found {getattr(self, name)!r}'
            for name, hint in _hints().items()
            if not _fits(hint, getattr(self, name))
        ]
        raise_all(f'result row of {self.system!r}', problems or _impossible(self))

    def to_json(self) -> str:
        """One line."""
        values = dataclasses.asdict(self)
        # Rows of shares are what they were before there were others.
        if self.unit is None:
            del values['unit']
        if not self.filled:
            del values['filled']
        return json.dumps({'format': FORMAT} | values, allow_nan=False)


# Fields that may differ between two rows that are compared. All others are the protocol.
SYSTEM = ('system', 'checkpoints', 'leaks', 'code_version', 'chosen', 'filled')
NUMBER = ('estimate', 'low', 'high', 'undefined', 'lowest', 'highest', 'runs')
PROTOCOL = tuple(f.name for f in dataclasses.fields(ResultRow) if f.name not in (*SYSTEM, *NUMBER))


def from_json(text: str, source: str) -> ResultRow:
    """The row that `to_json` wrote; `source` names the file in the error message.

    Raises:
        InputError: not a row, another format, or fields that are missing, unknown or impossible.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'{source}: not valid JSON ({error}); evaluate again') from error
    if not isinstance(values, Mapping) or values.get('format') != FORMAT:
        raise InputError(f'{source}: not a result row of format {FORMAT}; evaluate again')
    given = {name: _tuples(value) for name, value in values.items() if name != 'format'}
    needed = [f.name for f in dataclasses.fields(ResultRow) if f.default is dataclasses.MISSING]
    problems = [f'{name} is missing' for name in needed if name not in given]
    problems += [
        f'{name} is not a field; {nearest(name, _hints())}' for name in given if name not in _hints()
    ]
    raise_all(f'{source}: not a result row', problems)
    try:
        return ResultRow(**given)
    except InputError as error:
        raise InputError(f'{source}: {error}') from error


def metric_fields(name: str) -> dict[str, Any]:
    """`metric`, `averaging` and `label` of a metric as `metrics.py` names it, such as `ap/Pastures`."""
    kind, _, label = name.partition('/')
    if label:
        return {'metric': kind, 'averaging': 'class', 'label': label}
    kind, _, averaging = name.partition('_')
    return {'metric': kind, 'averaging': averaging or 'none', 'label': None}


def number_fields(interval: Interval, runs: Spread | None = None) -> dict[str, Any]:
    """The fields of a row that an interval fills, and the range over repeated runs if there were any.

    Raises:
        InputError: the runs have another mean than the interval.
    """
    # Of what is no share the last digit can be larger than 1e-9.
    if runs and abs(runs.mean - interval.estimate) > 1e-9 * max(1, abs(interval.estimate)):
        raise InputError(f'the runs have the mean {runs.mean}, their interval is of {interval.estimate}')
    spread = runs or Spread(interval.estimate, interval.estimate, interval.estimate, 1)
    fields = interval._asdict() | spread._asdict()
    # NaN equals nothing, and JSON does not have it.
    return {name: None if value != value else value for name, value in fields.items() if name != 'mean'}


def same_protocol(a: ResultRow, b: ResultRow, varying: Sequence[str] = ()) -> list[str]:
    """The fields of the protocol in which two rows differ, but for those that are meant to vary."""
    for name in varying:
        if name not in PROTOCOL:
            raise InputError(f'varying: {name!r} is not part of the protocol; {nearest(name, PROTOCOL)}')
    return [name for name in PROTOCOL if name not in varying and getattr(a, name) != getattr(b, name)]


def require_same_protocol(rows: Sequence[ResultRow], varying: Sequence[str] = ()) -> None:
    """Raises InputError, with every difference, if rows cannot stand in one comparison."""
    first = rows[0]
    problems = [
        f'{name}: {getattr(first, name)!r} for {first.system!r}, {getattr(row, name)!r} for {row.system!r}'
        for row in rows[1:]
        for name in same_protocol(first, row, varying)
    ]
    raise_all('these rows do not follow one protocol and are not compared', problems)


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(ResultRow)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type; strings must not be empty, numbers must be finite."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin is types.UnionType:
        return any(_fits(kind, value) for kind in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(args[0], item) for item in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(_fits(args[1], item) for item in value.values())
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is hint and value != ''


def _words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f'one of {", ".join(args)}'
    words = {str: 'a word', float: 'a finite number', int: 'a whole number', bool: 'true or false'}
    return words.get(hint) or str(hint).replace('collections.abc.', '')


def _impossible(row: ResultRow) -> list[str]:
    """What contradicts itself, as sentences."""
    numbers = [row.estimate, row.low, row.high, row.lowest, row.highest]
    least, most = RANGES.get(row.metric, (0.0, 1.0))
    of_class, drawn = row.averaging == 'class', row.label_fraction < 1
    multi_hot_f1 = row.metric == 'f1' and row.averaging in ('micro', 'macro') and row.method not in PIXELWISE
    rules = [
        (min(row.records, row.runs) > 0, 'records and runs must be 1 or more'),
        (min(row.train_records, row.clusters) >= 0, 'train_records and clusters must be 0 or more'),
        (row.classes and len(set(row.classes)) == len(row.classes), 'classes must be named, each once'),
        (set(row.without_positives) <= set(row.classes), 'without_positives must be among the classes'),
        (0 < row.label_fraction <= 1, 'label_fraction must lie in (0, 1]'),
        (drawn == (row.draw != ALL), f'draw must be {ALL!r} for the label fraction 1, and for no other'),
        (drawn == bool(row.draw_seeds), 'draw_seeds must be given for a label fraction below 1 only'),
        (
            row.label in row.classes if of_class else row.label is None,
            'label must be one of the classes, for the averaging class only',
        ),
        (
            multi_hot_f1 == (row.threshold is not None),
            'threshold must be given for micro and macro F1, and for nothing else',
        ),
        (_ordered(row.low, row.high), 'low and high must both be given, in this order, or none'),
        (_ordered(row.lowest, row.highest), 'lowest and highest must both be given, in this order, or none'),
        (
            all(x is None or least <= x <= most for x in numbers),
            f'estimate, its interval and range must lie in [{least:g}, {most:g}]',
        ),
        (row.unit is None or row.metric in ('rmse', 'mae'), 'unit must be given for errors alone'),
        (
            row.low is None or (row.replicates > row.undefined >= 0 and row.clusters > 1),
            'an interval needs replicates that are defined, and two clusters or more',
        ),
        (
            row.leaks is None or ('any' in row.leaks and min(row.leaks.values()) >= 0),
            'leaks must be counts, with `any` among them',
        ),
    ]
    return [sentence for kept, sentence in rules if not kept]


def _ordered(low: float | None, high: float | None) -> bool:
    return (low is None) == (high is None) and (low is None or high is None or low <= high)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return value
