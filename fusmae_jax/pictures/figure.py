"""Pictures of reconstructions: S2 in true colour, S1 as a false colour of VV and VH.

Everything is drawn in sensor units after undoing the normalisation, with one stretch for all columns of a
sample, so that what looks alike is alike.
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fusmae_jax.config.run import Config
from fusmae_jax.input import units
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.normalise import statistics, target_unit
from fusmae_jax.input.prepare import unpatchify

TRUE_COLOUR = ('B04', 'B03', 'B02')
COLUMNS = ('input, as recorded', 'visible to the model', 'reconstruction', 'target')
GREY = 0.35  # what hidden patches look like


class Panel(NamedTuple):
    """One sample of one modality in raster order; values are normalised patches."""

    target: np.ndarray  # (n, p)
    predicted: np.ndarray  # (n, p); visible patches, which nobody predicts, hold the target
    valid: np.ndarray  # (n, p) bool
    visible: np.ndarray  # (n,) bool


def in_raster_order(
    target: np.ndarray, valid: np.ndarray, predictions: np.ndarray, order: np.ndarray, visible: int
) -> list[Panel]:
    """Panels from model outputs in the order of the mask.

    Args:
        target: all patches of a modality in raster order, (b, n, p).
        valid: which of their numbers are, (b, n, p).
        predictions: of the hidden patches `order[:, visible:]`, (b, n - visible, p).
        order: raster indices, visible patches first, (b, n).
        visible: how many come first.
    """
    panels = []
    for t, v, p, ids in zip(target, valid, predictions, order):
        filled, seen = t.copy(), np.zeros(len(ids), bool)
        filled[ids[visible:]] = p
        seen[ids[:visible]] = True
        panels.append(Panel(t, filled, v, seen))
    return panels


def in_place(
    target: np.ndarray, valid: np.ndarray, predictions: np.ndarray, hidden: np.ndarray
) -> list[Panel]:
    """Panels from predictions of all patches in raster order, (b, n, p), of which `hidden` (b, n) count."""
    return [
        Panel(t, np.where(h[:, None], p, t), v, ~h) for t, v, p, h in zip(target, valid, predictions, hidden)
    ]


def sensor_units(patches: np.ndarray, config: Config, name: str) -> np.ndarray:
    """Normalised patches (n, p) of a modality to an image (rows, columns, bands) in sensor units."""
    mean, std = statistics(config.model.modalities[name])
    image = unpatchify(patches[None], config.model.grid, config.model.patch_size)[0]
    scale = 2.0 if config.data.normalisation == 'mean_2sigma' else 1.0
    return image * (std * scale) + mean


def colours(image: np.ndarray, bands: Sequence[str]) -> tuple[np.ndarray, str]:
    """Three channels to show, (rows, columns, 3) in sensor units, and their description."""
    if all(band in bands for band in TRUE_COLOUR):
        return image[..., [bands.index(band) for band in TRUE_COLOUR]], 'true colour (B04, B03, B02)'
    if {'VV', 'VH'} <= set(bands):
        vv, vh = image[..., bands.index('VV')], image[..., bands.index('VH')]
        return np.stack([vv, vh, vv - vh], axis=-1), 'false colour (VV, VH, VV - VH)'
    return np.repeat(image[..., :1], 3, axis=-1), f'{bands[0]}'


def stretch(image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Linear stretch of each channel from [low, high] to [0, 1], clipped; NaN is black."""
    return np.nan_to_num(np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1))


def recorded(record: Mapping[str, np.ndarray], contract: Contract, config: Config, name: str) -> np.ndarray:
    """All bands of a modality before any resampling, (rows, columns, bands) in the model's unit.

    Bands of a coarser native grid are repeated up to the finest one. NaN stands where nothing was measured
    and where the value has no meaning in that unit, such as the decibels of a power of 0. A band that the
    data lack is its mean everywhere, as the model is given it.
    """
    modality, where = config.model.modalities[name], contract.modality_bands(name)
    groups = {band: contract.groups[where[band]] for band in modality.bands if band in where}
    finest = max(group.size for group in groups.values())
    channels = []
    for band, mean in zip(modality.bands, statistics(modality)[0]):
        if band not in groups:
            channels.append(np.full(finest, mean, np.float32))
            continue
        group = groups[band]
        stored = record[where[band]][..., group.bands.index(band)].astype(np.float32)
        physical = stored * np.float32(group.scale) + np.float32(group.offset)
        image = np.asarray(units.convert(jnp.asarray(physical), group.unit, target_unit(modality, group)))
        # The values without meaning are stored ones.
        missing = np.isin(stored, np.asarray(group.nodata, np.float32)) | ~np.isfinite(image)
        image = np.where(missing, np.nan, image)
        channels.append(np.kron(image, np.ones([f // s for f, s in zip(finest, group.size)], np.float32)))
    return np.stack(channels, axis=-1)


def pictures(
    panel: Panel, record: Mapping[str, np.ndarray], config: Config, contract: Contract, name: str
) -> tuple[list[np.ndarray], str]:
    """One picture in [0, 1] for each of COLUMNS, and what their colours mean."""
    bands = config.model.modalities[name].bands
    target, meaning = colours(sensor_units(panel.target, config, name), bands)
    predicted, _ = colours(sensor_units(panel.predicted, config, name), bands)
    given, _ = colours(recorded(record, contract, config, name), bands)
    low, high = np.percentile(target, 2, axis=(0, 1)), np.percentile(target, 98, axis=(0, 1))
    size, (rows, columns) = config.model.patch_size, config.model.grid
    seen = np.kron(panel.visible.reshape(rows, columns), np.ones((size, size)))[..., None] > 0
    given, target, predicted = (stretch(x, low, high) for x in (given, target, predicted))
    return [given, np.where(seen, target, GREY), predicted, target], meaning


def figure(
    panels: Mapping[str, Sequence[Panel]],
    records: Sequence[Mapping[str, np.ndarray]],
    config: Config,
    contract: Contract,
    title: str,
) -> np.ndarray:
    """A grid as uint8 (rows, columns, 3): per sample and modality one line of COLUMNS.

    Args:
        panels: modality -> one Panel for each sample.
        records: the raw records of the samples.
        config: of the model that made the panels.
        contract: of the data set the records are from.
        title: above everything.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from PIL import Image

    lines = [(i, name) for i in range(len(records)) for name in panels]
    height = 2.2 * len(lines) + 0.5
    fig, axes = plt.subplots(
        len(lines),
        len(COLUMNS),
        figsize=(2.1 * len(COLUMNS) + 0.6, height),
        squeeze=False,
        layout='constrained',
    )
    for line, (index, name) in zip(axes, lines):
        columns, meaning = pictures(panels[name][index], records[index], config, contract, name)
        for axis, picture, column in zip(line, columns, COLUMNS):
            axis.imshow(picture, interpolation='nearest')
            axis.set_title(column, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(f'{name}: {meaning}\n{record_name(records[index], name)}', fontsize=5)
    fig.suptitle(title, fontsize=10)
    out = io.BytesIO()
    fig.savefig(out, format='png', dpi=100)
    plt.close(fig)
    return np.asarray(Image.open(out).convert('RGB'))


def record_name(record: Mapping[str, np.ndarray], modality: str) -> str:
    """The name of a record's image, as far as it has one."""
    value = record.get(f'{modality}_name', b'')
    return bytes(np.asarray(value).item()).decode() if np.asarray(value).size else ''
