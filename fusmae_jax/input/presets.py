"""Input presets: what an encoder that was pretrained elsewhere is given of a record, inside jit.

`own` follows the code that the weights were published with, `common` is this project's: z-scores on 224 px.
A preset travels in the configuration of its model (`config.preset`), so whoever makes the inputs of a model
with `make_inputs` makes the right ones.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.build import to_dict
from fusmae_jax.config.run import Augment, Config, Preset
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.crops import clip_quantiles
from fusmae_jax.input.prepare import Patches, Prepare, make_prepare, patchify

FAR = 1e6  # standard deviations: clips nothing
Grids = dict[str, tuple[Float[Array, 'b h w c'], Bool[Array, 'b h w c']]]


def preset_of(config: Config) -> Preset:
    """The preset of a model; for those pretrained here, whose inputs `prepare` makes, one that says so."""
    return config.preset or Preset()


def preset_fields(config: Config) -> dict[str, Any]:
    """The preset of a model as plain data, for the identity of what was made with it."""
    return to_dict(preset_of(config)) | {'cls': config.model.cls}


def make_inputs(config: Config, contract: Contract, augment: Augment | None = None) -> Prepare:
    """The function `inputs(batch, keys)`, as `input.prepare.make_prepare` makes it, with the model's preset.

    Args:
        config: of the model, with the modalities that are given, statistics settled (`systems.fit`).
        contract: of the data.
        augment: random crop and flips before the centre is cut out, or None.
    """
    preset = preset_of(config)
    if dataclasses.replace(preset, bands=0) == Preset(preset.name):  # nothing that `prepare` does not do
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


def _own(config: Config, preset: Preset, contract: Contract, augment: Augment | None) -> Prepare:
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
    if scale != 'zscore':
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
