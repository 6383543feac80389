"""What becomes of every parameter of a run that starts from given weights, by stated rules.

The same name and shape: taken. Stacked blocks of another depth: by their number, where `init.depth` allows
it. Projections and predictions of another band set: band by band, by name, also from a projection that stacks
the bands of all sensors. Learned positions: interpolated. Anything else is fresh. Another patch size, width
or number of heads is refused.
"""

import re
from typing import NamedTuple

import numpy as np

from fusmae_jax.config.run import Model
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.interop.weights import positions
from fusmae_jax.models.encoder import STACK
from fusmae_jax.models.positions import sincos_2d
from fusmae_jax.run.initial.sources import Source

Bands = dict[tuple[str, str], np.ndarray]


class Entry(NamedTuple):
    """What became of one parameter of the run."""

    name: str
    status: str  # taken, in part or fresh
    how: str  # which bands or layers, or why not


class Transfer:
    """The parameters that are taken, where they are only in part, and what became of each."""

    def __init__(self, source: Source, model: Model, shapes: dict[str, tuple[int, ...]], by_index: bool):
        """Decides; raises InputError for what cannot be taken at all.

        Args:
            source: the weights.
            model: of the run, resolved.
            shapes: of the run's parameters by path, DINO-MM's backbone being called encoder.
            by_index: whether blocks of another depth are taken by their number.
        """
        self.source, self.model, self.by_index = source, model, by_index
        self.theirs = source.config.model
        self.values: dict[str, np.ndarray] = {}
        self.masks: dict[str, np.ndarray] = {}
        self.entries: list[Entry] = []
        self.used: set[str] = set()
        self.partly: dict[str, str] = {}  # of the source: name -> what of it was not taken
        self.here = {(sensor, band) for sensor, m in model.modalities.items() for band in m.bands}
        self._check()
        for path, shape in shapes.items():
            self._one(path, shape)
        if not any(path.startswith('encoder/patch/') for path in self.values):
            raise InputError(f'init.from: no band of {source.title} is one of the run; nothing was taken')

    @property
    def left(self) -> list[str]:
        """Names of the source that were not taken, or not whole."""
        unused = [name for name in self.source.params if name not in self.used]
        return unused + [f'{name}: {what}' for name, what in self.partly.items()]

    def _check(self) -> None:
        ours, theirs, problems = self.model, self.theirs, []
        for name in ('patch_size', 'width', 'heads', 'mlp_ratio'):
            here, there = getattr(ours, name), getattr(theirs, name)
            if here != there:
                problems.append(f'model.{name}={here}: the source has {there}; use the same')
        if ours.depth != theirs.depth and not self.by_index:
            problems.append(
                f'model.depth={ours.depth}: the source has {theirs.depth}; use the same, or '
                "init.depth='by_index' to take blocks by their number"
            )
        raise_all(f'init.from={self.source.title}: these weights do not fit the run', problems)

    def _one(self, path: str, shape: tuple[int, ...]) -> None:
        if match := re.fullmatch(r'encoder/patch/([^/]+)/kernel', path):
            self._by_band(path, match[1], 'encoder/patch/{}/kernel', shape, axis=0)
        elif match := re.fullmatch(r'decoders/([^/]+)/predict/(kernel|bias)', path):
            self._by_band(path, match[1], f'decoders/{{}}/predict/{match[2]}', shape, axis=-1)
        elif match := re.fullmatch(r'encoder/patch/([^/]+)/bias', path):
            # What is stacked has one bias for the bands of all sensors.
            stacked = f'encoder/patch/{STACK}/bias'
            self._same(path, shape, stacked if stacked in self.source.params else path)
        elif path == 'encoder/position_table':
            self._positions(path)
        else:
            self._same(path, shape, path)

    def _same(self, path: str, shape: tuple[int, ...], theirs: str) -> None:
        x = self.source.params.get(theirs)
        if x is None:
            return self._fresh(path, 'the source has none')
        if x.shape == shape:
            return self._take(path, theirs, x, how='same shape' if theirs == path else f'from {theirs}')
        if '/blocks/' in path and x.shape[1:] == shape[1:] and self.by_index:
            count = min(len(x), shape[0])
            value, mask = np.zeros(shape, x.dtype), np.zeros(shape, bool)
            value[:count], mask[:count] = x[:count], True
            if count < len(x):
                self.partly[path] = f'layers {count} to {len(x) - 1}'
            return self._take(path, path, value, mask, how=f'layers 0 to {count - 1}')
        return self._fresh(path, f'shape {x.shape} in the source, {shape} here')

    def _take(
        self, path: str, theirs: str, x: np.ndarray, mask: np.ndarray | None = None, *, how: str
    ) -> None:
        self.used.add(theirs)
        self.values[path] = x
        if mask is None or mask.all():
            self.entries.append(Entry(path, 'taken', how))
        else:
            self.masks[path] = mask
            self.entries.append(Entry(path, 'in part', how))

    def _fresh(self, path: str, why: str) -> None:
        self.entries.append(Entry(path, 'fresh', why))

    def _by_band(self, path: str, stream: str, form: str, shape: tuple[int, ...], axis: int) -> None:
        """Rows or columns of each band from those of the band of that name, in its own stream or stacked."""
        stacked = form.format(STACK) in self.source.params
        theirs = form.format(STACK if stacked else stream)
        x = self.source.params.get(theirs)
        if x is None or not x.size:
            return self._fresh(path, f'the source has no {theirs}')
        here, there = band_rows(self.model, stream), band_rows(self.theirs, STACK if stacked else stream)
        common = [key for key in here if key in there]
        if not common and not {sensor for sensor, _ in here} & self.theirs.modalities.keys():
            return self._fresh(path, f'the source has no band of {stream}')
        if not common:
            names = ', '.join(band for _, band in there)
            raise InputError(f'init.from: {theirs} has bands {names}; none of them is in the run')
        value, mask = np.zeros(shape, x.dtype), np.zeros(shape, bool)
        v, m, w = (np.moveaxis(a, axis, 0) for a in (value, mask, x))
        if v.shape[1:] != w.shape[1:]:
            return self._fresh(path, f'shape {x.shape} in the source, {shape} here')
        for key in common:
            v[here[key]], m[here[key]] = w[there[key]], True
        # A projection inflated from three colours to K bands expects the sum of K; here are fewer.
        if axis == 0 and (inflated := self.source.config.preset and self.source.config.preset.bands):
            value *= np.asarray(inflated / len(common), value.dtype)
        lost = [band for sensor, band in there if (sensor, band) not in self.here]
        if lost:
            self.partly[theirs] = f'bands {", ".join(lost)}'
        return self._take(path, theirs, value, mask, how='bands ' + ', '.join(band for _, band in common))

    def _positions(self, path: str) -> None:
        table = self.source.params.get(path)
        if table is None:
            self.values[path] = sincos_2d(self.model.grid, self.model.width).astype(np.float32)
            self.entries.append(Entry(path, 'taken', 'sine-cosine positions as the source has them'))
            return
        moved = positions.interpolate(table, self.theirs.grid, self.model.grid)
        self._take(path, path, moved, how=f'from grid {self.theirs.grid} to {self.model.grid}')


def band_rows(model: Model, stream: str) -> Bands:
    """(modality, band) -> where its numbers stand in a flattened patch of a stream."""
    names = list(model.modalities) if stream == STACK else [stream] if stream in model.modalities else []
    rows, start, pixels = Bands(), 0, np.arange(model.patch_size**2)
    for name in names:
        bands = model.modalities[name].bands
        rows |= {(name, band): start + pixels * len(bands) + i for i, band in enumerate(bands)}
        start += model.patch_dim(name)
    return rows
