"""How far the probabilities of a map can be believed: the temperature of a head, and its calibration error.

As `eval/calibration.py` has it for whole images, over labelled pixels: the temperature is that of the least
mean -log p of validation pixels, and an entry of the calibration error is a pixel of the test split, with the
probability of its most probable class. Pixels of one record are alike, so that the temperature is fitted on a
sample of them, evenly from all records. A record is reduced to sums by bin, whatever its size, and intervals
are drawn over scenes. A temperature changes no class of a map.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fusmae_jax.eval import calibration, calibration_report
from fusmae_jax.eval.calibration_report import Run
from fusmae_jax.eval.config import Intervals
from fusmae_jax.eval.dense.config import MapCalibration
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.intervals import KEYS
from fusmae_jax.eval.metrics import Weighted
from fusmae_jax.eval.task import LabelledSet
from fusmae_jax.input.label_maps import IGNORE
from fusmae_jax.input.pipeline import POSITION

SEED = 0  # of the drawn pixels


@dataclasses.dataclass(frozen=True, eq=False)
class PixelReliability:
    """Sums over the labelled pixels of each record; a `metrics.Measure`."""

    sums: np.ndarray  # (records, 3, bins) float64: pixels, sum of their confidence, hits
    surprise: np.ndarray  # (records,) sum of -log p

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.sums)

    @property
    def truth(self) -> bytes:
        """Labelled pixels of each record."""
        return self.sums[:, 0].sum(axis=1).tobytes()

    def binned(self, groups: np.ndarray, count: int) -> np.ndarray:
        """(3, count, bins): pixels, sum of their confidence, hits; by the group of each record."""
        total = np.zeros((count, *self.sums.shape[1:]))
        np.add.at(total, groups, self.sums)
        return total.swapaxes(0, 1)

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """`ece`, `surprise` and, by bin, `right/<bin>`; see `calibration.by_bin`."""
        binned = self.binned(groups, count)
        return calibration.by_bin(binned, np.bincount(groups, self.surprise, count), binned[0].sum(axis=1))


class Calibrated(NamedTuple):
    """Of one head."""

    temperature: float
    before: PixelReliability
    after: PixelReliability


def drawn_pixels(
    logits: Float[Array, 'b h w c'], labels: UInt8[Array, 'b h w'], records: Array, count: int
) -> tuple[Float[Array, 'b n c'], UInt8[Array, 'b n']]:
    """`count` labelled pixels of each record, or all it has and others that are IGNORE; traceable.

    Args:
        logits: scores of every class.
        labels: class numbers.
        records: (b,) numbers of the records, which decide what is drawn.
        count: at most as many as there are pixels.
    """
    flat = labels.reshape(len(labels), -1)
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(SEED), number))(records)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (flat.shape[1],)))(keys)
    _, places = jax.lax.top_k(jnp.where(flat == IGNORE, -1, draws), count)
    taken = jnp.take_along_axis(logits.reshape(*flat.shape, -1), places[..., None], axis=1)
    return taken, jnp.take_along_axis(flat, places, axis=1)


def pixel_sums(
    logits: Float[Array, 'b h w c'], labels: UInt8[Array, 'b h w'], temperature: Any, bins: int
) -> tuple[Float[Array, 'b 3 n'], Float[Array, ' b']]:
    """The arrays of a `PixelReliability`; traceable."""
    batch, classes = len(logits), logits.shape[-1]
    flat = labels.reshape(batch, -1).astype(jnp.int32)
    log_p = jax.nn.log_softmax(logits.reshape(batch, -1, classes) / temperature)
    there = (flat != IGNORE).astype(jnp.float32)
    confidence = jnp.exp(jnp.max(log_p, axis=-1))
    hit = jnp.where(jnp.argmax(log_p, axis=-1) == flat, there, 0)
    # 1.0 belongs to the last bin.
    number = jnp.minimum((confidence * bins).astype(jnp.int32), bins - 1)
    entries = jnp.stack([there, there * confidence, hit], axis=1)
    of_bin = jax.nn.one_hot(number, bins, dtype=jnp.float32)
    sums = jnp.einsum('bkp,bpn->bkn', entries, of_bin, precision='highest')
    truth = jax.nn.one_hot(flat, classes, dtype=jnp.float32)
    return sums, -jnp.sum(truth * log_p, axis=(1, 2))


class Calibrator:
    """Fits the temperatures of heads and measures them; every function is compiled once."""

    def __init__(
        self,
        settings: MapCalibration,
        size: tuple[int, int],
        logits: Callable[[Any, Any], Float[Array, 'b h w c']],
        jit: Callable[..., Callable],
    ):
        """Compiles nothing yet.

        Args:
            settings: of the run.
            size: rows and columns of the labels.
            logits: of a head, from its parameters and what it reads; traceable.
            jit: compiles for the devices.
        """
        self._settings, self._pixels = settings, size[0] * size[1]
        self._draw = jit(
            lambda head, read, batch, count: drawn_pixels(
                logits(head, read), batch[TARGETS], batch[POSITION], count
            ),
            static_argnums=3,
        )

        def both(head: Any, read: Any, batch: Any, temperature: Array) -> Any:
            scores, labels, bins = logits(head, read), batch[TARGETS], settings.bins
            return [pixel_sums(scores, labels, t, bins) for t in (jnp.ones(()), temperature)]

        self._both = jit(both)

    def __call__(
        self,
        heads: Sequence[Any],
        read: Callable[[Any], Any],
        over: Callable[[str, Callable[[Any], Any]], Iterator[tuple[slice, Any]]],
        task: LabelledSet,
    ) -> list[Calibrated]:
        """Learns from the validation split and measures on the test split.

        Args:
            heads: their parameters.
            read: from a batch to what heads read.
            over: from the name of a split and a function of a batch to the records that a batch holds, and
                what the function gave.
            task: the labels.
        """
        val, test = task.val, task.test
        count = min(max(self._settings.pixels // len(val.keys), 1), self._pixels)

        def draw(batch: Any) -> Any:
            features = read(batch)
            return jax.device_get([self._draw(head, features, batch, count) for head in heads])

        temperatures = [temperature(parts) for parts in _joined(over(val.name, draw))]

        def measure(batch: Any) -> Any:
            features, pairs = read(batch), zip(heads, temperatures)
            return jax.device_get([self._both(head, features, batch, np.float32(t)) for head, t in pairs])

        measured = _joined(over(test.name, measure))
        wide = jax.tree.map(lambda x: x.astype(np.float64), measured)
        return [
            Calibrated(t, *(PixelReliability(*sums) for sums in each)) for t, each in zip(temperatures, wide)
        ]


def _joined(stream: Iterator[tuple[slice, Any]]) -> Any:
    """Results of batches, without what fills up the last one."""
    parts = [jax.tree.map(lambda x, n=rows.stop - rows.start: x[:n], part) for rows, part in stream]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def temperature(drawn: tuple[np.ndarray, np.ndarray]) -> float:
    """That of drawn pixels: logits (records, n, classes) and labels (records, n), some of them IGNORE."""
    logits, labels = drawn
    there = labels != IGNORE
    hot = np.eye(logits.shape[-1], dtype=bool)[labels[there]]
    return calibration.fit_temperature(logits[there], hot, 'single_label')


def line(
    calibrated: Mapping[Run, Calibrated], task: LabelledSet, intervals: Intervals, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written of the heads of a cell; `fields` are those of its rows."""
    before, after = (
        {run: getattr(some, stage) for run, some in calibrated.items()} for stage in ('before', 'after')
    )
    return {
        **{name: fields[name] for name in KEYS},
        'temperatures': [some.temperature for some in calibrated.values()],
        **calibration_report.stages(before, after, task.test.clusters, intervals),
    }
