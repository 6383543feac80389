"""The check of input files against a model: their contract, the look at their pixels, and the verdict."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusmae_jax.config.run import Config
from fusmae_jax.embed.rasters import Raster, pick
from fusmae_jax.embed.settings import EncodeConfig, option_name, sensor_file, settings_name
from fusmae_jax.embed.windows import spread
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.geo.safe import level_of
from fusmae_jax.geo.values import baseline
from fusmae_jax.input import compatibility, normalise, units
from fusmae_jax.input.compatibility import Difference
from fusmae_jax.input.contract import Contract, Group, Statistics
from fusmae_jax.input.statistics import Moments
from fusmae_jax.sensors import Product

SAMPLE = 64  # blocks of a window's size that are looked at before a model with its own statistics is run
_THIN = 4  # every which pixel, along rows and columns, is looked at for the range of values


class FittedFiles(NamedTuple):
    """Files that fit a model."""

    config: Config  # the model's, with statistics settled
    contract: Contract  # of what is read: the model's bands that are there, one group a file
    notes: list[str]  # what was converted, accepted or could not be compared


def restrict(config: Config, names: Mapping[str, object], where: str) -> Config:
    """The model's configuration with the given modalities alone; raises InputError for one it lacks."""
    for name in names:
        if name not in config.model.modalities:
            hint = nearest(name, config.model.modalities)
            raise InputError(f'{option_name(name)}: {where} has no modality {name!r}; {hint}')
    modalities = {name: m for name, m in config.model.modalities.items() if name in names}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=modalities))


def window_ground(model: Pretrained, config: Config, side: float = 0.0) -> tuple[float, float]:
    """The ground (rows, columns in metres) that one training record of the given modalities covers.

    `side` stands in where nothing is known of the records, as of imported weights.
    """
    sizes = {
        (group.size[0] * group.resolution, group.size[1] * group.resolution)
        for group in model.contract.first.groups.values()
        if group.modality in config.model.modalities
    }
    if side and sizes:
        raise InputError(f'window={side:g}: the checkpoint says it itself, {sorted(sizes)} m; leave it at 0')
    if side:
        return side, side
    if len(sizes) != 1 or not all(min(size) > 0 for size in sizes):
        raise InputError(
            f'the checkpoint does not say which ground one image covers (its sensors: {sorted(sizes)} m), so '
            'windows have no size; of imported weights state it: --config.window=1200'
        )
    return sizes.pop()


def window_pixels(raster: Raster, ground: tuple[float, float]) -> tuple[int, int]:
    """The pixels (rows, columns) of a window; raises InputError unless they are whole ones."""
    rows, columns = (length / raster.extent.resolution for length in ground)
    whole = round(rows), round(columns)
    if abs(rows - whole[0]) > 1e-6 or abs(columns - whole[1]) > 1e-6 or min(whole) < 1:
        raise InputError(
            f'{raster.file}: windows of {ground[0]:g} x {ground[1]:g} m are {rows:g} x {columns:g} pixels of '
            f'{raster.extent.resolution:g} m and must be whole ones: rio warp {raster.file} OUT.tif --res 10'
        )
    return whole


def fit(
    model: Pretrained,
    config: Config,
    rasters: Mapping[str, Raster],
    windows: Mapping[str, tuple[int, int]],
    ground: tuple[float, float],
    settings: EncodeConfig,
) -> FittedFiles:
    """Compares the files with the model, as a data set would be compared.

    Args:
        model: the checkpoint.
        config: its configuration, with the modalities of the files alone.
        rasters: field -> open file; several of one modality, of a product with several pixel sizes.
        windows: field -> pixels (rows, columns) of a window.
        ground: metres (rows, columns) of a window.
        settings: what was declared of the files.

    Raises:
        InputError: with everything that does not fit, and what to do.
    """
    bands = _bands(config, rasters, settings.absent_bands)
    groups: dict[str, Group] = {}
    measured, looks, products = {}, [], {}
    for modality in dict.fromkeys(raster.modality for raster in rasters.values()):
        of_sensor = {name: r for name, r in rasters.items() if r.modality == modality and bands[name]}
        pixels = {}
        for name, raster in of_sensor.items():
            groups[name] = _group(config, raster, bands[name], windows[name], ground, settings)
            blocks = SAMPLE if settings.stats == 'checkpoint' else 0
            measured[name], pixels[name] = _measure(raster, groups[name], blocks)
        looks += _look(of_sensor, groups, pixels, model.contract)
        products[modality] = _product(list(of_sensor.values()), sensor_file(settings, modality).product)
    files = ', '.join(str(raster.file) for raster in rasters.values())
    whole = settings.stats == 'dataset'
    contract = Contract(
        dataset=files,
        groups=groups,
        products=products,
        statistics=measured,
        statistics_split='all pixels' if whole else f'{SAMPLE} blocks',
    )
    data = dataclasses.replace(
        config.data, stats='dataset' if whole else 'config', absent_bands=settings.absent_bands
    )
    config = dataclasses.replace(config, data=data)
    differences = compatibility.compare(config, _as_stored(contract, rasters), model.contract)
    notes = compatibility.check([*looks, *differences], settings.accept, files)
    notes += _coarser(model, rasters)
    return FittedFiles(normalise.resolve(config, contract), contract, notes)


def _bands(config: Config, rasters: Mapping[str, Raster], absent: str) -> dict[str, list[str]]:
    """The bands of each raster that the model reads; none of a file that has only others."""
    result: dict[str, list[str]] = {}
    for modality, settings in config.model.modalities.items():
        of_sensor = {name: raster for name, raster in rasters.items() if raster.modality == modality}
        result |= pick(of_sensor, settings.bands, absent)
    return result


def _group(
    config: Config,
    raster: Raster,
    bands: Sequence[str],
    window: tuple[int, int],
    ground: tuple[float, float],
    settings: EncodeConfig,
) -> Group:
    """What is read of one raster; raises InputError where nobody says in which unit it is."""
    declared = sensor_file(settings, raster.modality)
    group = Group(
        modality=raster.modality,
        bands=tuple(bands),
        size=window,
        dtype='float32',
        unit=declared.unit,
        resolution=ground[0] / window[0],
        scale=raster.scale,
        offset=raster.offset,
    )
    if not group.unit:
        known = units.accepted(normalise.target_unit(config.model.modalities[raster.modality], group))
        raise InputError(
            f'{raster.file}: in which unit are its values? --{settings_name(raster.modality)}.unit=... '
            f'({", ".join(known)})'
        )
    return group


def _product(rasters: Sequence[Raster], declared: Product) -> Product:
    """What is known of a product: what was declared, and beside it what the metadata of its files say."""
    header = rasters[0].header
    level = level_of(header.tags)
    if declared.level and level and declared.level != level:
        raise InputError(
            f'{rasters[0].file}: PRODUCT_TYPE says {level}, but '
            f'{settings_name(rasters[0].modality)}.product.level={declared.level!r}; '
            'leave the setting out, or correct the tag'
        )
    if rasters[0].modality != 's2':
        return declared
    return dataclasses.replace(
        declared, level=declared.level or level, baseline=declared.baseline or baseline(header)
    )


def _coarser(model: Pretrained, rasters: Mapping[str, Raster]) -> list[str]:
    """Says where pixels are larger than any that the model learned from: detail is missing then."""
    lines = []
    trained = model.contract.first.groups.values()
    for raster in rasters.values():
        known = [group.resolution for group in trained if group.modality == raster.modality]
        if known and raster.extent.resolution > max(known) * 1.001:
            there = f'{raster.extent.resolution:g} m in {raster.file}'
            lines.append(
                f'note: {raster.modality}: pixels are {there}, the model knows up to {max(known):g} m'
            )
    return lines


def _measure(raster: Raster, group: Group, blocks: int) -> tuple[Statistics, np.ndarray]:
    """Statistics of evenly spread blocks of a window's size, or of all (0); and some pixels of some blocks.

    The pixels are (blocks, rows, columns, bands), as stored.
    """
    height, width = group.size
    moments, seen = Moments(len(group.bands)), []
    down, across = -(-raster.part.height // height), -(-raster.part.width // width)
    chosen = spread(down * across, blocks or down * across)
    looked_at = set(spread(len(chosen), SAMPLE))
    for i, index in enumerate(chosen):
        row, column = divmod(index, across)
        pixels = raster.read(group.bands, row * height, column * width, height, width)
        # Pixels are read with NaN where they are invalid, so nothing else is.
        moments.add(pixels, Group())
        if i in looked_at:
            seen.append(pixels[::_THIN, ::_THIN].copy())  # a view would keep the whole block
    return moments.result(), np.stack(seen)


def _look(
    rasters: Mapping[str, Raster],
    groups: Mapping[str, Group],
    pixels: Mapping[str, np.ndarray],
    trained: Contract,
) -> list[Difference]:
    """What looks wrong with the pixels of one sensor, all of its rasters together."""
    first = next(iter(rasters.values()))
    # All have as many blocks, but of the last row of a coarse raster.
    count = min(map(len, pixels.values()))
    images = {name: blocks[:count] for name, blocks in pixels.items()}
    differences = compatibility.look(
        first.modality, images, {name: groups[name] for name in images}, trained, 'block'
    )
    return [d._replace(message=f'{first.file}: {d.message}') for d in differences]


def _as_stored(contract: Contract, rasters: Mapping[str, Raster]) -> Contract:
    """The same contract with every band of the files, so that the ones left out are named."""
    groups, measured = {}, {}
    for name, group in contract.groups.items():
        extra = tuple(band for band in rasters[name].bands if band not in group.bands)
        groups[name] = dataclasses.replace(group, bands=(*group.bands, *extra), dtype=rasters[name].dtype)
        # Only bands of the model are measured; they come first, as their statistics do.
        measured[name] = contract.statistics[name]
    return dataclasses.replace(contract, groups=groups, statistics=measured)
