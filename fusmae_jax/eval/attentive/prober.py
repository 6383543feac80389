"""Heads of a sweep on the tokens of whole images: trained, settled and measured by `eval/prober.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from fusmae_jax.encoders.systems import System, fit
from fusmae_jax.errors import InputError
from fusmae_jax.eval import linear_probe, prober
from fusmae_jax.eval.attentive import head as heads
from fusmae_jax.eval.attentive.config import AttentiveProbe
from fusmae_jax.eval.dense.features import Batch, Features, Reader
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.metrics import judged
from fusmae_jax.eval.regression import standardised, target_scale
from fusmae_jax.eval.task import LabelledSet, LabelledSplit, validation
from fusmae_jax.input import presets
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.prepare import fields
from fusmae_jax.input.source import Source
from fusmae_jax.models import fusmae


class LabelledSource:
    """Records of a split by index: image fields and, as TARGETS, 0 or 1 for each class, or numbers."""

    def __init__(
        self,
        path: str,
        split: LabelledSplit,
        names: Sequence[str],
        positions: np.ndarray | None = None,
        scale: Scale | None = None,
    ):
        """`positions` chooses some of the records, None takes all in their order; `scale` is of numbers."""
        self._source, self._positions, self.scale = Source(path, split.name, names), positions, scale
        self._labels = split.labels if scale is None else standardised(split.labels, scale)
        self.fields, self.contract = (*names, TARGETS), self._source.contract
        self.path, self.split = self._source.path, split.name

    def __len__(self) -> int:
        return len(self._labels) if self._positions is None else len(self._positions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        at = index if self._positions is None else int(self._positions[index])
        record = self._source[at]
        return {name: record[name] for name in self._source.fields} | {TARGETS: self._labels[at]}


def token_reader(
    system: System, contract: Contract, modalities: Sequence[str], config: AttentiveProbe
) -> Reader:
    """What turns records into their tokens, those of the sensors one below the other.

    Raises:
        InputError: sensors, data and model do not fit together.
    """
    if system.parts:
        raise InputError(f'encoder.checkpoint: {system.name} has several encoders; the probe takes one')
    assert system.model is not None
    fitted = fit(system.model, contract, modalities, config.encoder, config.data.path)
    whole = system.model.config.model
    inputs = presets.make_inputs(fitted.config, contract, None)
    graphdef = fusmae.graph(whole, system.model.dtype)

    def run(params: Any, batch: Batch, keys: Array | None) -> Features:
        patches = inputs(batch, keys)
        tokens = nnx.merge(graphdef, params).encode(patches).tokens
        valid = {name: patches[name].any_valid for name in tokens}
        if whole.fusion.encoder == 'stack':  # every modality has the same tokens
            name = next(iter(tokens))
            tokens = {name: tokens[name]}
            valid = {name: jnp.any(jnp.stack(list(valid.values())), axis=0)}
        values = jnp.concatenate([x.astype(jnp.float32) for x in tokens.values()], axis=1)
        seen = jnp.concatenate([valid[name] for name in tokens], axis=1)
        columns = whole.grid[1]
        return Features(
            values.reshape(len(values), -1, columns, whole.width), seen.reshape(len(seen), -1, columns)
        )

    names = tuple(fields(fitted.config, contract))
    return Reader(run, names, system.model.params, whole.width, whole.patch_size, fitted, 'tokens')


class ImageHeads:
    """Heads that give a whole image its classes, or numbers; judged by their logits, or by the numbers."""

    def __init__(self, config: AttentiveProbe, task: LabelledSet, reader: Reader):
        self._config, self._task, self._reader = config, task, reader
        self._recipe = linear_probe.make_recipe(config.data.kind, config.label_smoothing)
        self._metric = validation(config, task)

    def source(self, split: str, positions: np.ndarray | None = None) -> LabelledSource:
        """Records of a split with their labels; numbers are standardised where heads learn from them."""
        task, data, scale = self._task, self._config.data, None
        (of_split,) = (x for x in (task.train, task.val, task.test) if x.name == split)
        if data.kind == 'regression' and positions is not None:
            scale = target_scale(of_split.labels[positions], task.classes)
        return LabelledSource(data.path, of_split, self._reader.fields, positions, scale)

    def init(self, key: Array) -> Any:
        """Fresh parameters of a head."""
        return heads.init(key, self._config.queries, self._reader.width, len(self._task.classes))

    def loss(self, head: Any, features: Array, seen: Array, labels: Array) -> Array:
        """That of a linear probe."""
        logits = self.score(head, features, seen, labels)
        return linear_probe.loss(logits[:, None], labels.astype(jnp.float32), self._recipe)[0]

    def score(self, head: Any, features: Array, seen: Array, labels: Array) -> Array:
        """Logits (b, classes), or numbers (b, targets)."""
        count = len(features)
        tokens = features.reshape(count, -1, features.shape[-1])
        return heads.logits(head, tokens, seen.reshape(count, -1))

    def gather(self, scores: np.ndarray, test: bool) -> np.ndarray:
        """All of them."""
        return scores

    def judge(self, scores: np.ndarray) -> float:
        """The metric of the task."""
        return judged(scores, self._metric, self._config.data.val_split)

    def in_units(self, sweep: Any, train: LabelledSource) -> Any:
        """Heads say numbers in the units of the data from here on; classes have none."""
        if train.scale is None:
            return sweep
        moved = linear_probe.in_units(linear_probe.Heads(**sweep['linear']), train.scale)
        return {**sweep, 'linear': moved._asdict()}

    def read_training(self, prober: prober.Prober) -> Callable | None:
        """Images as they are, as in the other probes of whole images."""
        return None


def make_prober(config: AttentiveProbe, task: LabelledSet, reader: Reader) -> prober.Prober:
    """What trains and measures the heads of one arm."""
    return prober.Prober(config, reader, ImageHeads(config, task, reader), config.standardise)
