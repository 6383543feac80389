"""Heads of a sweep on maps of frozen tokens: trained, settled and measured by `eval/prober.py`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fusmae_jax.eval import prober
from fusmae_jax.eval.config import metric_of
from fusmae_jax.eval.dense import heads, losses, numbers
from fusmae_jax.eval.dense.calibration import Calibrated, Calibrator
from fusmae_jax.eval.dense.config import DenseProbe
from fusmae_jax.eval.dense.features import Features, Reader, scaled
from fusmae_jax.eval.dense.metrics import of_confusion
from fusmae_jax.eval.dense.score import confusion, errors, scores
from fusmae_jax.eval.dense.stored import parameters
from fusmae_jax.eval.dense.targets import moved, turned
from fusmae_jax.eval.dense.task import MappedSource, map_of
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.metrics import judged, values
from fusmae_jax.eval.task import LabelledSet
from fusmae_jax.input import pipeline
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.train.objective import sample_keys


class MapHeads:
    """Heads that give every pixel of the labels a class; judged by confusion matrices."""

    def __init__(self, config: DenseProbe, task: LabelledSet, reader: Reader):
        self._config, self._task, self._reader = config, task, reader
        self._size = map_of(config.data, task.contract).size
        kind = config.head if reader.fitted else 'linear'
        classes, width = len(task.classes), config.head_width
        self.shape = heads.HeadShape(kind, reader.width, classes, reader.patch, width, reader.blocks)

    def source(self, split: str, positions: np.ndarray | None = None) -> MappedSource:
        """Records of a split with their maps."""
        return MappedSource(self._config.data, split, self._reader.fields, positions)

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of a head."""
        return heads.init(key, self.shape)

    def loss(self, head: Any, features: jax.Array, seen: jax.Array, labels: jax.Array) -> jax.Array:
        """Over labelled pixels."""
        logits = scores(head, features, self.shape, self._size)
        return losses.loss(logits, labels, self._config.loss, self._config.focal_gamma)

    def score(self, head: Any, features: jax.Array, seen: jax.Array, labels: jax.Array) -> jax.Array:
        """Confusion matrices (b, classes, classes)."""
        return confusion(scores(head, features, self.shape, self._size), labels)

    def gather(self, scores: np.ndarray, test: bool) -> np.ndarray:
        """Summed where no record has to be told from another."""
        counts = scores.astype(np.float32 if test else np.float64)
        return counts if test else counts.sum(axis=1, keepdims=True)

    def judge(self, scores: np.ndarray) -> float:
        """Of the counts of all pixels."""
        name, classes = metric_of(self._config), self._task.classes
        split = self._config.data.val_split
        return judged(scores.sum(axis=0), lambda counts: of_confusion(counts, classes)[name], split)

    def in_units(self, sweep: Any, train: MappedSource) -> Any:
        """Classes have no units."""
        return sweep

    def read_training(self, prober: prober.Prober) -> Callable | None:
        """Augmented images, and labels that are moved as they are."""
        config, names = self._config, (*self._reader.fields, TARGETS)
        if still(config.augment) and not config.rot90:
            return None

        def read(params: Any, batch: Any) -> tuple[Features, jax.Array]:
            geometry, turn = sample_keys(jax.random.key(0), batch[POSITION])
            batch = turned(batch, names, turn) if config.rot90 else batch
            keys = None if still(config.augment) else geometry
            return self._reader.run(params, batch, keys), moved(batch[TARGETS], keys, config.augment)

        return prober.jit(read)


class NumberHeads(MapHeads):
    """Heads that give every pixel of a map a number; judged by their errors."""

    def source(self, split: str, positions: np.ndarray | None = None) -> MappedSource:
        """Numbers are standardised where heads learn from them."""
        data, fields = self._config.data, self._reader.fields
        scale = None
        if positions is not None:
            scale = numbers.scale_of(self._task.train.labels[positions], self._task.classes[0])
        return MappedSource(data, split, fields, positions, scale)

    def in_units(self, sweep: Any, train: MappedSource) -> Any:
        """Heads say numbers in the units of the data from here on."""
        assert train.scale is not None
        return numbers.in_units(sweep, self.shape.kind, train.scale)

    def loss(self, head: Any, features: jax.Array, seen: jax.Array, labels: jax.Array) -> jax.Array:
        """Squared error over the pixels with a number."""
        return losses.squared(scores(head, features, self.shape, self._size), labels)

    def score(self, head: Any, features: jax.Array, seen: jax.Array, labels: jax.Array) -> jax.Array:
        """Sums of errors (b, 2)."""
        return errors(scores(head, features, self.shape, self._size), labels)

    def gather(self, scores: np.ndarray, test: bool) -> np.ndarray:
        """All of them: two numbers a record."""
        return scores.astype(np.float64)

    def judge(self, scores: np.ndarray) -> float:
        """Over all pixels."""
        name, task = metric_of(self._config), self._task

        def metric(sums: np.ndarray) -> float:
            return values(numbers.measured(sums, task.val.labels, task.classes[0]))[name]

        return judged(scores, metric, self._config.data.val_split)


class Prober(prober.Prober):
    """Trains and measures the heads of one arm."""

    def __init__(self, config: DenseProbe, task: LabelledSet, reader: Reader):
        kind = NumberHeads if config.data.kind == 'map_regression' else MapHeads
        heads_of = kind(config, task, reader)
        # A pixel has nothing to decode but its bands, which have units.
        super().__init__(config, reader, heads_of, config.standardise or reader.fitted is None)
        self.head, self._labels = heads_of.shape, task
        size = map_of(config.data, task.contract).size

        def logits(head: tuple[Any, Scale], read: Features) -> jax.Array:
            return scores(head[0], scaled(read, head[1]), self.head, size)

        self._calibrator = Calibrator(config.calibration, size, logits, self.jit)

    def calibrate(self, stored: Mapping[str, np.ndarray]) -> list[Calibrated]:
        """The temperature of each head that `__call__` has stored, and what it changes."""

        def over(split: str, run: Callable[[Any], Any]) -> Iterator[tuple[slice, Any]]:
            return pipeline.over_split(self._splits[split], run, self._where, self._batch, self._config.data)

        scale = Scale(stored['mean'], stored['std'])
        pairs = [(head, scale) for head in parameters(stored)]
        return self._calibrator(pairs, lambda batch: self.read(self._params, batch), over, self._labels)


def still(augment: Any) -> bool:
    """Whether an augmentation changes nothing."""
    return not (augment.crop or augment.hflip or augment.vflip)
