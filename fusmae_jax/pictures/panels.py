"""Reconstructions of single records, and how much better they are than trivial guesses."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import unpatchify
from fusmae_jax.parallel.mesh import replicated
from fusmae_jax.parallel.processes import read
from fusmae_jax.parallel.rules import Params
from fusmae_jax.pictures.figure import Panel, in_place, in_raster_order
from fusmae_jax.train.losses import NORM_PIX_EPS
from fusmae_jax.train.objective import Masked, reconstructions

BLOCK = 8  # pixels on the model grid
MASK_SEED = 2024  # the fixed masks of pictures and summaries


class Reconstructor:
    """Masks records with fixed keys, without augmentation, and lets the model fill them in."""

    def __init__(self, config: Config, contract: Contract, dtype: DTypeLike, mesh: Mesh):
        self._config, self._mesh = config, mesh
        forward = reconstructions(config, contract, None, dtype)
        self._run = jax.jit(forward, out_shardings=replicated(mesh))

    def __call__(
        self, params: Params, records: Sequence[Mapping[str, Any]], fields: Sequence[str]
    ) -> dict[str, list[Panel]]:
        """Panels of each modality, one a record."""
        count = -(-len(records) // self._mesh.size) * self._mesh.size  # activations are split over the mesh
        rows = [records[i % len(records)] for i in range(count)]
        batch = {name: np.stack([row[name] for row in rows]) for name in fields}
        batch[POSITION] = np.arange(count, dtype=np.uint32)
        with jax.set_mesh(self._mesh):
            batch = jax.device_put(batch, replicated(self._mesh))
            masked, predictions = self._run(params, batch, jax.random.key(MASK_SEED))
        masked, predictions = read('pictures', (masked, predictions))
        if self._config.loss.norm_pix:
            predictions = _undo_norm_pix(self._config, masked, predictions)
        panels = {}
        for name, predicted in predictions.items():
            target, valid = masked.patches[name]
            if masked.slots is None:
                drawn = in_raster_order(target, valid, predicted, masked.order[name], masked.visible)
            else:
                hidden = np.asarray(jax.tree.map(jnp.asarray, masked).targets(name)[1])
                drawn = in_place(target, valid, predicted, hidden)
            panels[name] = drawn[: len(records)]
        return panels


def _undo_norm_pix(
    config: Config, masked: Masked, predictions: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Each patch back to the mean and deviation of its own target; good for pictures only."""
    targets = {name: np.asarray(masked.patches[name].values) for name in predictions}
    if masked.slots is None:
        hidden = {name: np.asarray(masked.order[name])[:, masked.visible :, None] for name in targets}
        targets = {name: np.take_along_axis(x, hidden[name], axis=1) for name, x in targets.items()}
    # A token of stacked bands was normalised over the numbers of all sensors together.
    if config.model.fusion.encoder == 'stack':
        targets = dict.fromkeys(targets, np.concatenate(list(targets.values()), axis=-1))
    return {
        name: predicted * np.sqrt(targets[name].var(axis=-1, ddof=1, keepdims=True) + NORM_PIX_EPS)
        + targets[name].mean(axis=-1, keepdims=True)
        for name, predicted in predictions.items()
    }


def errors(panel: Panel, config: Config) -> dict[str, float]:
    """Sums of squared errors over the hidden valid numbers of one image, in normalised units.

    Keys: `model`; `mean`, for predicting the image's own band means; `block`, for predicting the means
    of blocks of 8 x 8 model pixels, which is what a perfect blurred memory would reach.
    """

    def image(patches: np.ndarray) -> np.ndarray:
        return unpatchify(patches[None].astype(np.float64), config.model.grid, config.model.patch_size)[0]

    target, predicted, valid = image(panel.target), image(panel.predicted), image(panel.valid) > 0
    hidden = image(np.repeat(~panel.visible[:, None], panel.target.shape[1], axis=1)) > 0
    guesses = {
        'model': predicted,
        'mean': _means(target, valid, target.shape[:2]),
        'block': _means(target, valid, (BLOCK, BLOCK)),
    }
    counted = hidden & valid
    return {name: float(np.sum((guess - target)[counted] ** 2)) for name, guess in guesses.items()}


def _means(image: np.ndarray, valid: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Each pixel replaced with the mean of the valid pixels of its block; the last block may be smaller."""
    edges = [np.arange(0, size, step) for size, step in zip(image.shape, block)]

    def sums(x: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(x, edges[0], axis=0), edges[1], axis=1)

    means = sums(image * valid) / np.maximum(sums(valid.astype(float)), 1)
    rows, columns = (np.arange(size) // step for size, step in zip(image.shape, block))
    return means[rows][:, columns]


def summary(panels: Mapping[str, Sequence[Panel]], snow: Sequence[bool], config: Config) -> dict[str, Any]:
    """Error ratios of each modality over some records.

    `<m>_vs_mean`: masked-token error divided by that of predicting each image's own band means;
    `<m>_vs_mean_without_snow`: the same without snowy scenes (None if there is no other);
    `<m>_block8_vs_mean`: the same ratio for predicting 8-pixel block means.
    With `loss.norm_pix` the first two are None.
    """
    result: dict[str, Any] = {'records': len(snow), 'records_with_snow': int(np.sum(snow))}
    for name, items in panels.items():
        each = [errors(panel, config) for panel in items]
        clear = [e for e, snowy in zip(each, snow) if not snowy]
        # With norm_pix the pictures borrow each patch's own mean and deviation; a ratio would be a lie.
        result[f'{name}_vs_mean'] = None if config.loss.norm_pix else _ratio(each, 'model')
        result[f'{name}_vs_mean_without_snow'] = None if config.loss.norm_pix else _ratio(clear, 'model')
        result[f'{name}_block8_vs_mean'] = _ratio(each, 'block')
    return result


def _ratio(each: Sequence[Mapping[str, float]], guess: str) -> float | None:
    # Of sums: a mean of ratios would be ruled by the images with next to no variation.
    total = sum(e['mean'] for e in each)
    return round(sum(e[guess] for e in each) / total, 4) if total > 0 else None
