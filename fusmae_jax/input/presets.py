"""Input presets: what an encoder that was pretrained elsewhere is given of a record, inside jit.

`own` follows the code that the weights were published with, `common` is this project's: z-scores on 224 px.
A preset travels in the configuration of its model (`PresetConfig`), so whoever makes the inputs of a model
with `make_inputs` makes the right ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Augment, Config, Model
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.crops import clip_quantiles
from fusmae_jax.input.prepare import Patches, Prepare, make_prepare, patchify

FAR = 1e6  # standard deviations: clips nothing
Grids = dict[str, tuple[Float[Array, 'b h w c'], Bool[Array, 'b h w c']]]


@dataclasses.dataclass(frozen=True)
class Preset:
    """The input of one model, from z-scores of its bands on."""

    name: Literal['own', 'common'] = 'common'
    resize: int = 0  # pixels a side before the centre is cut out; 0 resamples to the model grid itself
    quantile_clip: tuple[float, float] = (0.0, 1.0)  # of each image and band; (0, 1) is off
    quantile_modality: str = ''
    quantile_grid: Literal['native', 'model'] = 'model'  # before or after resampling
    # zscore: as they are; the others map [mean - 2 std, mean + 2 std], to [-1, 1] or to [0, 1]. What is not
    # there, a sensor or a patch without a valid pixel, is 0 on the scale.
    scale: Literal['zscore', 'symmetric', 'unit'] = 'zscore'
    levels: int = 0  # 255: values become whole steps of 8 bits, rounded down
    # Modalities that become those steps on their native grids and are resampled as 8 bits, so that they are
    # rounded once more, to the nearest; all others are resampled first.
    native_levels: tuple[str, ...] = ()
    # Of all modalities; if not 0, inputs are multiplied by bands / bands given: for a projection whose
    # kernel was divided by the number of bands. 0 is off.
    bands: int = 0
    cls: bool = True  # False: the model has no CLS token


@dataclasses.dataclass(frozen=True)
class NoClsModel(Model):
    """An encoder without a CLS token (SatViT). The family's own has one, which is left out of its blocks."""


@dataclasses.dataclass(frozen=True)
class PresetConfig(Config):
    """The settings of an encoder that has an input preset."""

    preset: Preset = dataclasses.field(default_factory=Preset)


def settled(config: PresetConfig) -> PresetConfig:
    """The configuration as its preset says: with a `NoClsModel` if there is no CLS token."""
    if config.preset.cls or isinstance(config.model, NoClsModel):
        return config
    model = {f.name: getattr(config.model, f.name) for f in dataclasses.fields(config.model)}
    return dataclasses.replace(config, model=NoClsModel(**model))


def preset_of(config: Config) -> Preset:
    """The preset of a model; for those pretrained here, whose inputs `prepare` makes, one that says so."""
    return config.preset if isinstance(config, PresetConfig) else Preset()


def make_inputs(config: Config, contract: Contract, augment: Augment | None = None) -> Prepare:
    """The function `inputs(batch, keys)`, as `input.prepare.make_prepare` makes it, with the model's preset.

    Args:
        config: of the model, with the modalities that are given, statistics settled (`systems.fit`).
        contract: of the data.
        augment: random crop and flips before the centre is cut out, or None.
    """
    preset = preset_of(config)
    plain = dataclasses.replace(preset, bands=0, cls=True) == Preset(preset.name)
    if not isinstance(config, PresetConfig) or plain:
        prepare = make_prepare(config, contract, augment)
    else:
        prepare = _own(config, preset, contract, augment)
    given = sum(len(modality.bands) for modality in config.model.modalities.values())
    if not preset.bands or preset.bands == given:
        return prepare

    def shared(batch: Mapping[str, Array], keys: Array | None = None) -> dict[str, Patches]:
        patches = prepare(batch, keys)
        return {name: Patches(p.values * (preset.bands / given), p.valid) for name, p in patches.items()}

    return shared


def _own(config: PresetConfig, preset: Preset, contract: Contract, augment: Augment | None) -> Prepare:
    side = (preset.resize, preset.resize) if preset.resize else config.model.image_size
    # One number a patch: `prepare` then gives whole images, as z-scores.
    pixels = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, image_size=side, patch_size=1),
        data=dataclasses.replace(config.data, normalisation='zscore', clip=FAR),
    )
    zscores = make_prepare(pixels, contract, augment, preset.native_levels)
    native = preset.quantile_grid == 'native'

    def images_to_patches(batch: Mapping[str, Array], keys: Array | None = None) -> dict[str, Patches]:
        if native:
            batch = clip_quantiles(batch, contract, preset.quantile_modality, preset.quantile_clip)
        grids: Grids = {
            name: tuple(x.reshape(-1, *side, x.shape[-1]) for x in p)  # type: ignore[misc]
            for name, p in zscores(batch, keys).items()
        }
        clipped = None if native else preset.quantile_modality
        return {
            name: _finish(*grids[name], config, preset, name == clipped, name in preset.native_levels)
            for name in config.model.modalities
        }

    return images_to_patches


def _finish(
    values: Float[Array, 'b h w c'],
    valid: Bool[Array, 'b h w c'],
    config: Config,
    preset: Preset,
    clipped: bool,
    in_bytes: bool,
) -> Patches:
    """From z-scores of one modality, or resampled bytes, to its patches."""
    if clipped:
        measured = jnp.where(valid, values, jnp.nan)
        low, high = jnp.nanquantile(measured, jnp.array(preset.quantile_clip), axis=(1, 2))[:, :, None, None]
        values = jnp.where(valid, jnp.clip(values, low, high), values)
    rows, columns = config.model.image_size
    top, left = (values.shape[1] - rows) // 2, (values.shape[2] - columns) // 2
    values, valid = (x[:, top : top + rows, left : left + columns] for x in (values, valid))
    if preset.scale == 'zscore':
        values = jnp.clip(values, -config.data.clip, config.data.clip)
    else:
        if in_bytes:
            values = jnp.clip(jnp.round(values), 0, 255) / 255
        else:
            values = (jnp.clip(values, -2, 2) + 2) / 4
            values = jnp.floor(values * preset.levels) / preset.levels if preset.levels else values
        values = values if preset.scale == 'unit' else 2 * values - 1
    size = config.model.patch_size
    return Patches(patchify(values, size), patchify(valid, size))


def describe_image(config: Config, contract: Contract, crops: bool) -> str:
    """How a record becomes an image, in the words of a result row."""
    rows, columns = config.model.image_size
    preset = preset_of(config)
    groups = [g for g in contract.groups.values() if g.modality in config.model.modalities]
    finest = max(g.size for g in groups)
    part = f'crops 4 x {finest[0]}, ' if crops else ''
    if preset.resize and (preset.resize, preset.resize) != (rows, columns):
        return f'{part}resize {preset.resize} x {preset.resize}, centre {rows} x {columns}'
    same = {g.size for g in groups} == {(rows, columns)}
    return f'{part}{"native" if same else "resize"} {rows} x {columns}'


def describe_statistics(config: Config) -> str:
    """What the inputs are normalised with, in the words of a result row."""
    preset = preset_of(config)
    scale, (low, high) = preset.scale, preset.quantile_clip
    if isinstance(config, PresetConfig) and scale != 'zscore':
        words = f'mean +- 2 std to {"[0, 1]" if scale == "unit" else "[-1, 1]"}'
        words += f' in {preset.levels + 1} levels' if preset.levels else ''
        words += f' ({", ".join(preset.native_levels)}: native grid)' if preset.native_levels else ''
    else:
        words = config.data.normalisation
    if preset.quantile_modality and (low, high) != (0, 1):
        where = 'native grid' if preset.quantile_grid == 'native' else 'resized image'
        words += f'; {preset.quantile_modality} clipped to {low:.0%} .. {high:.0%} of each {where}'
    if preset.bands:
        words += '; times bands / bands given'
    modalities = config.model.modalities.items()
    return '; '.join([words, *(f'{n}: {m.statistics_from or "sensor table"}' for n, m in modalities)])
