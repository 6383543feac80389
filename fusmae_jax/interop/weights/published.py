"""Published encoders as systems of an evaluation: ImageNet ViT and MAE, SatViT v1, DINO-MM.

`run_import` (`python main.py import --config=configs/published.py:KIND`) reads a weight file once and writes
two folders, `own` and `common`: the same encoder with the input that it was published with, and with ours. An
evaluation takes either as `encoder.checkpoint`.

All bands are stacked before one projection, as SatViT and DINO-MM have them. Kernels are mapped to bands by
name. An ImageNet projection is inflated: every band gets the mean over red, green and blue times 3 / bands,
and an input of fewer bands is scaled by bands / bands given, so that S1 alone is what a projection inflated
to two bands would see.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from fusmae_jax.config.checks import check_model
from fusmae_jax.config.run import Config, Data, Fusion, Modality, Model, Numerics, Preset, dino_mm
from fusmae_jax.encoders.store import write
from fusmae_jax.errors import raise_all
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.presets import FAR
from fusmae_jax.interop.weights.files import read_state
from fusmae_jax.interop.weights.foreign import DINO_MM_CHANNELS
from fusmae_jax.interop.weights.importers import import_weights, stacked_order
from fusmae_jax.interop.weights.layouts import reference_rules
from fusmae_jax.interop.weights.published_kinds import (
    COMMON_SIDE,
    DINO_MM_SIDES,
    KINDS,
    SATVIT_DESCENDING,
    SATVIT_STATISTICS,
    PublishedKind,
    WeightFile,
    check,
)
from fusmae_jax.interop.weights.rules import ImportOptions, State, ours_shapes, unflatten
from fusmae_jax.models.dino import resize_positions
from fusmae_jax.models.encoder import STACK
from fusmae_jax.sensors import SENSORS, Product
from fusmae_jax.train.dino_encoder import NO_DECODER


def run_import(config: WeightFile, workdir: epath.PathLike) -> int:
    """Writes `WORKDIR/own` and `WORKDIR/common`; returns the exit code 0.

    Raises:
        InputError: the settings are impossible, or the file holds no such encoder; nothing is written then.
    """
    check(config)
    state = read_state(config.file)
    source = hashlib.sha256(epath.Path(config.file).read_bytes()).hexdigest()
    made = [(preset, *build(config, state, preset)) for preset in ('own', 'common')]
    for preset, settings, params, notes in made:
        about = {
            'kind': config.kind,
            'file': epath.Path(config.file).name,
            'sha256': source,
            'channels': list(config.channels),
            'notes': notes,
            'untouched': config.kind.startswith('imagenet'),
        }
        write(epath.Path(workdir) / preset, settings, _contract(config.kind), params, about)
        print(f'{epath.Path(workdir) / preset}: {settings.name}')
    print('\n'.join(made[0][3]))
    return 0


def build(config: WeightFile, state: State, preset: str) -> tuple[Config, dict[str, Any], list[str]]:
    """An encoder under one preset: its settings, its parameters (nested), and what the import noted.

    Raises:
        InputError: with every difference between the file and the encoder.
    """
    source, settings = describe(config, preset)
    kind, satvit = KINDS[config.kind], config.kind == 'satvit'
    shapes = ours_shapes(reference_rules(source))
    base = {path: np.zeros(s, np.float32) for path, s in shapes.items() if path.startswith('decoders')}
    base |= {'encoder/cls': np.zeros(source.width, np.float32)} if satvit else {}
    options = ImportOptions(channels=_channels(config))
    if preset == 'own' and kind.pixel_std:
        state = _fold_pixels(state, config, kind)
    elif preset == 'own' and satvit:
        state = _fold_descending(state, config)
    imported, report = import_weights(kind.layout, state, source, unflatten(base), options)
    params = _stacked(imported, source, settings.model, 0.1 if config.kind == 'dino_mm' else 0.0)
    lines = report.text().split('\n')
    return settings, params, [x for x in lines if 'decoders' not in x and 'SatViT has no CLS' not in x]


def _channels(config: WeightFile) -> tuple[str, ...]:
    return config.channels or (DINO_MM_CHANNELS if config.kind == 'dino_mm' else ())


def describe(config: WeightFile, preset: str) -> tuple[Model, Config]:
    """The model that the file is read into, all bands as one modality, and the settings of the encoder.

    Raises:
        InputError: there is no such encoder.
    """
    kind, common = KINDS[config.kind], preset == 'common'
    modalities = _modalities(config.kind, _channels(config), common)
    shared = {
        'patch_size': config.patch_size or kind.patch_size,
        'size': 'custom',
        'width': config.width or kind.width,
        'depth': config.depth or 12,
        'heads': config.heads or kind.heads,
        'positions': kind.positions,
        'decoder': NO_DECODER,
        'numerics': Numerics(norm_eps=kind.norm_eps, qkv_bias=config.kind != 'satvit'),
    }
    there = config.image_size or kind.image_size
    bands = tuple(band for modality in modalities.values() for band in modality.bands)
    source = Model(
        modalities={STACK: Modality(bands)},
        image_size=(there, there),
        fusion=Fusion('none', 'none'),
        **shared,  # type: ignore[arg-type]
    )
    side = _side(config, kind, preset)
    model = dataclasses.replace(
        source,
        modalities=modalities,
        image_size=(side, side),
        fusion=Fusion('stack', 'none', 'zero_image'),
        cls=config.kind != 'satvit',
    )
    whole = dataclasses.replace(model, image_size=source.image_size)
    raise_all('config: no such encoder', check_model(whole) or check_model(model))
    settings = Config(
        name=f'{config.name or kind.title}, {preset} preset',
        data=_data(config.kind, common),
        model=model,
        preset=_preset(config, preset, len(bands), side),
    )
    return source, settings


def _side(config: WeightFile, kind: PublishedKind, preset: str) -> int:
    """Pixels of the model grid."""
    there = config.image_size or kind.image_size
    side = COMMON_SIDE if preset == 'common' else DINO_MM_SIDES[1]
    return side * there // kind.image_size if preset == 'common' or config.kind == 'dino_mm' else there


def _modalities(kind: str, channels: tuple[str, ...], common: bool) -> dict[str, Modality]:
    """The modalities of the encoder, Sentinel-2 first, with the statistics of the preset."""
    paper = Config().model.modalities
    published = dino_mm().model.modalities if kind == 'dino_mm' and not common else {}
    made = {}
    for name in ('s2', 's1'):
        bands = tuple(b for b in paper[name].bands if not channels or b in channels)
        if not bands:
            continue
        modality = dataclasses.replace(paper[name], bands=bands)
        if kind == 'satvit' and not common:
            mean, std = zip(*(SATVIT_STATISTICS[band] for band in bands))
            modality = dataclasses.replace(
                modality, mean=mean, std=std, statistics_from='the tutorial of SatViT'
            )
        elif name in published and published[name].mean:
            given = published[name]
            index = [given.bands.index(band) for band in bands]
            mean, std = (tuple(x[i] for i in index) for x in (given.mean, given.std))
            modality = dataclasses.replace(
                modality, mean=mean, std=std, statistics_from=given.statistics_from
            )
        kernel = modality.resample if common else 'opencv_cubic' if kind == 'dino_mm' else 'bicubic'
        made[name] = dataclasses.replace(modality, resample=kernel)
    return made


def _data(kind: str, common: bool) -> Data:
    if common:
        return Data()
    return Data(clip=FAR) if kind == 'satvit' else Data(normalisation='mean_2sigma')


def _preset(config: WeightFile, preset: str, bands: int, side: int) -> Preset:
    shared = bands if config.kind.startswith('imagenet') else 0
    if preset == 'common':
        return Preset('common', bands=shared)
    if config.kind == 'satvit':
        return Preset('own')
    if config.kind == 'dino_mm':
        return Preset(
            'own',
            resize=side * DINO_MM_SIDES[0] // DINO_MM_SIDES[1],
            quantile_clip=(0.01, 0.99),
            quantile_modality='s1',
            scale='unit',
            levels=255,
            native_levels=('s2',),
        )
    return Preset('own', scale='symmetric', levels=255, bands=shared)


def _stacked(params: Mapping[str, Any], source: Model, model: Model, offset: float) -> dict[str, Any]:
    """Parameters of a model of one modality with all bands as those of the model that stacks several.

    The numbers of a stacked patch lie modality by modality; learned positions are brought onto the grid.
    """
    encoder = dict(params['encoder'])
    patch = encoder['patch'][STACK]
    encoder['patch'] = {STACK: {**patch, 'kernel': patch['kernel'][stacked_order(model)]}}
    if 'position_table' in encoder:
        table = jnp.asarray(encoder['position_table'])
        encoder['position_table'] = np.asarray(resize_positions(table, source.grid, model.grid, offset))
    return {'encoder': encoder, 'decoders': params['decoders']}


def _fold_pixels(state: State, config: WeightFile, kind: PublishedKind) -> State:
    """Makes a projection of pixels at (x - mean) / std, x on [0, 1], one of inputs on [-1, 1].

    Channel by channel, before the mean over red, green and blue is taken: each has statistics of its own.
    """
    name = 'patch_embed.proj'
    if f'{name}.weight' not in state or f'{name}.bias' not in state:
        return state  # the import says what is missing
    given, kernel = config.pixel_mean != -1, state[f'{name}.weight'].astype(np.float64)
    mean = np.array((config.pixel_mean,) * len(kind.pixel_mean) if given else kind.pixel_mean)
    std = np.array((config.pixel_std,) * len(kind.pixel_std) if given else kind.pixel_std)
    if kernel.ndim != 4 or kernel.shape[1] != len(mean):
        problem = f'{name}.weight has shape {kernel.shape}, expected {len(mean)} channels: red, green, blue'
        raise_all(f'{kind.layout} weights do not fit the model', [problem])
    # With x = (u + 1) / 2 and u on [-1, 1], (x - mean) / std is u / (2 std) + (0.5 - mean) / std.
    mean, std = mean[:, None, None], std[:, None, None]
    bias = state[f'{name}.bias'] + (kernel * (0.5 - mean) / std).sum(axis=(1, 2, 3))
    folded = {f'{name}.weight': kernel / (2 * std), f'{name}.bias': bias}
    return {**state, **{key: x.astype(np.float32) for key, x in folded.items()}}


def _fold_descending(state: State, config: WeightFile) -> State:
    """Makes the projection of a second VV or VH, of descending orbits, one of z-scores of ascending ones.

    The two have means and deviations of their own, and one image feeds both. Where there is no radar image at
    all, the descending channels see the mean of the ascending ones.
    """
    key = next((name for name in state if name.endswith('linear_input.weight')), '')
    bias_key = key.replace('weight', 'bias')
    weight, channels = state.get(key), config.channels
    if weight is None or bias_key not in state or weight.ndim != 2 or weight.shape[1] % len(channels):
        return state  # the import says what is wrong
    kernel = weight.astype(np.float64).reshape(len(weight), len(channels), -1)
    bias = state[bias_key].astype(np.float64)
    for band, (mean, std) in SATVIT_DESCENDING.items():
        for index in [i for i, channel in enumerate(channels) if channel == band][1:]:
            ascending_mean, ascending_std = SATVIT_STATISTICS[band]
            bias = bias + kernel[:, index].sum(axis=1) * (ascending_mean - mean) / std
            kernel[:, index] *= ascending_std / std
    folded = {key: kernel.reshape(weight.shape), bias_key: bias}
    return {**state, **{name: x.astype(np.float32) for name, x in folded.items()}}


def _contract(kind: str) -> Contract:
    """What is known of the images that the weights learned from."""
    if kind == 'dino_mm':  # BigEarthNet-MM, which the sensor table describes
        return Contract(products={name: sensor.product for name, sensor in SENSORS.items()})
    return Contract(products={'s2': Product(level='L2A')} if kind == 'satvit' else {})
