"""Maps of features: the tokens of some blocks of an encoder by their place, or the bands of each pixel."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Augment, Config
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import System, fit
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.task import Entrant
from fusmae_jax.input import presets, resample
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.prepare import Patches, fields
from fusmae_jax.input.units import validity
from fusmae_jax.models import fusmae
from fusmae_jax.models.blocks import Paths
from fusmae_jax.models.fusmae import FusMAE

Batch = Mapping[str, Array]


class Features(NamedTuple):
    """Features of the places of a batch."""

    values: Float[Array, 'b h w d']  # 0 where no sensor has a valid pixel
    seen: Bool[Array, 'b h w']  # whether one has


class Reader(NamedTuple):
    """What turns records into maps of features."""

    # From weights, a batch and random keys (None: not augmented); traceable.
    run: Callable[[Any, Batch, Array | None], Features]
    fields: tuple[str, ...]  # of a record, that it reads
    params: Any
    width: int
    patch: int  # model pixels on the side of a place; 1 for single pixels
    fitted: Fitted | None  # None without a model
    words: str  # of a result row
    blocks: int = 1  # whose tokens stand side by side, each as wide as the others


def make_reader(
    system: System,
    contract: Contract,
    modalities: Sequence[str],
    settings: EncoderSettings,
    layers: Sequence[int],
    augment: Augment | None,
    where: str,
    grid: tuple[int, int],
) -> Reader:
    """The features of a system under one choice of sensors.

    Args:
        system: an encoder, or the band statistics, which here are the bands of each pixel.
        contract: of the data.
        modalities: the sensors.
        settings: of the encoder.
        layers: numbers of blocks, from 1, whose tokens stand side by side; () is the last one.
        augment: of training; None never augments.
        where: the data are, for errors.
        grid: of the labels, rows and columns, which single pixels are brought to.

    Raises:
        InputError: sensors, data and model do not fit together, or there is no such block.
    """
    if system.parts:
        raise InputError(f'encoder.checkpoint: {system.name} has several encoders; dense tasks take one')
    if system.model is None:
        return _pixels(contract, modalities, augment, grid, where)
    fitted = fit(system.model, contract, modalities, settings, where)
    whole = system.model.config
    layers = chosen(layers, whole, system.name)
    check_preset(fitted.config, system.name)
    inputs = presets.make_inputs(fitted.config, contract, augment)
    graphdef = fusmae.graph(whole.model, system.model.dtype)

    def run(params: Any, batch: Batch, keys: Array | None) -> Features:
        return token_map(nnx.merge(graphdef, params), inputs(batch, keys), layers)

    return Reader(
        run,
        tuple(fields(fitted.config, contract)),
        system.model.params,
        width(fitted.config, whole, layers),
        whole.model.patch_size,
        fitted,
        layer_words(layers),
        len(layers),
    )


def open_reader(
    config: Any, contract: Contract, entrant: Entrant, augment: Augment | None, grid: tuple[int, int]
) -> Reader:
    """The features of an entrant, of one date or two, by the settings of a dense task; logs what differs."""
    system, modalities, layers = entrant.system, entrant.modalities, config.layers
    where = config.data.path
    reader = make_reader(system, contract, modalities, config.encoder, layers, augment, where, grid)
    for line in reader.fitted.notes if reader.fitted else ():
        logging.info('%s', line)
    return with_earlier(reader, contract, config.earlier) if config.earlier else reader


def with_earlier(reader: Reader, contract: Contract, earlier: str) -> Reader:
    """A reader of two dates: the features of the later one and, beside them, their change since the earlier.

    Args:
        reader: of the later images.
        contract: of the data.
        earlier: what the names of the earlier images' fields begin with, before those of the later ones.

    Raises:
        InputError: a field without its earlier one, or one that holds something else.
    """
    for name in reader.fields:
        one, other = contract.groups[name], contract.groups.get(f'{earlier}{name}')
        if other is None:
            raise InputError(
                f'earlier={earlier!r}: {contract.dataset} has no field {earlier}{name}; '
                f'{nearest(earlier + name, contract.groups)}'
            )
        if dataclasses.replace(other, modality=one.modality) != one:
            raise InputError(f'earlier={earlier!r}: {earlier}{name} holds something else than {name}')

    def run(params: Any, batch: Batch, keys: Array | None) -> Features:
        before = {name: batch[f'{earlier}{name}'] for name in reader.fields}
        late, early = (reader.run(params, images, keys) for images in (batch, before))
        return of_two_dates(late, early, reader.blocks)

    return reader._replace(
        run=run,
        fields=(*reader.fields, *(f'{earlier}{name}' for name in reader.fields)),
        width=2 * reader.width,
        words=f'{reader.words} and their change',
    )


def of_two_dates(late: Features, early: Features, count: int) -> Features:
    """The later features of `count` blocks and, beside each, their change; seen where both dates are."""
    parts = (late.values, late.values - early.values)
    # Block by block, as a head takes them apart.
    blocks = [jnp.split(x, count, axis=-1) for x in parts]
    values = jnp.concatenate([x for pair in zip(*blocks) for x in pair], axis=-1)
    return Features(values, late.seen & early.seen)


def layer_words(layers: Sequence[int]) -> str:
    """The blocks, for a result row."""
    return f'tokens of block {"+".join(map(str, layers))}'


def chosen(layers: Sequence[int], config: Config, name: str) -> tuple[int, ...]:
    """The blocks that are read, in rising order; raises InputError for one that the encoder does not have."""
    depth = config.model.depth
    if wrong := [layer for layer in layers if not 1 <= layer <= depth]:
        raise InputError(f'layers: {wrong[0]}, but {name} has the blocks 1 to {depth}')
    return tuple(sorted(layers)) or (depth,)


def check_preset(config: Config, name: str) -> None:
    """Raises InputError for an encoder that sees the centre of a record alone."""
    resize, size = presets.preset_of(config).resize, config.model.image_size
    if resize and (resize, resize) != size:
        raise InputError(
            f'{name}: its input is the centre, {size[0]} x {size[1]}, of an image of {resize} pixels a side, '
            'which gives the rest no class; import the weights with their common preset'
        )


def width(config: Config, whole: Config, layers: Sequence[int]) -> int:
    """Numbers of a place: a token for each block, and for each sensor that is given."""
    streams = 1 if whole.model.fusion.encoder == 'stack' else len(config.model.modalities)
    return whole.model.width * streams * len(layers)


def token_map(
    model: FusMAE, patches: Mapping[str, Patches], layers: Sequence[int], paths: Paths | None = None
) -> Features:
    """The tokens of some blocks by their place, after the final norm; traceable.

    Blocks stand side by side, and within each the sensors in the order of the model (one stream where they
    are stacked). A sensor without a valid pixel in a patch has zeros there.
    """
    deep = tuple(layers) != (model.model.depth,)
    encoded = model.encode(patches, paths=paths, capture=deep)
    names = [name for name in model.model.modalities if name in encoded.tokens]
    valid = {name: patches[name].any_valid for name in names}
    if model.model.fusion.encoder == 'stack':
        valid = {names[0]: jnp.any(jnp.stack(list(valid.values())), axis=0)}
        names = names[:1]
    parts = []
    for layer in layers:
        tokens = encoded.tokens if layer == model.model.depth else _of_block(model, encoded.stages, layer)
        parts += [jnp.where(valid[n][..., None], tokens[n].astype(jnp.float32), 0) for n in names]
    values, seen = jnp.concatenate(parts, axis=-1), jnp.any(jnp.stack([valid[n] for n in names]), axis=0)
    rows, columns = model.model.grid
    return Features(values.reshape(-1, rows, columns, values.shape[-1]), seen.reshape(-1, rows, columns))


def _of_block(model: FusMAE, stages: Mapping[str, Array], layer: int) -> dict[str, Array]:
    """The tokens of each stream after a block; they stand one stream after the other, CLS last."""
    x = stages['block1'] if layer == 1 else stages['blocks/x'][layer - 2]
    x = model.encoder.norm(x) if model.model.final_norm else x
    streams = [name.removeprefix('tokens/') for name in stages if name.startswith('tokens/')]
    count = model.model.num_patches
    tokens = {name: x[:, i * count : (i + 1) * count] for i, name in enumerate(streams)}
    if model.model.fusion.encoder == 'stack':
        return dict.fromkeys(model.model.modalities, tokens[streams[0]])
    return tokens


def _pixels(
    contract: Contract,
    modalities: Sequence[str],
    augment: Augment | None,
    grid: tuple[int, int],
    where: str,
) -> Reader:
    """The bands of each pixel, standardised with the statistics of the data, on the grid of the labels."""
    known = sorted({group.modality for group in contract.groups.values()})
    for name in modalities:
        if name not in known:
            raise InputError(f'encoder.modalities: {name!r} is not in {where}; {nearest(name, known)}')
    groups = {field: g for name in modalities for field, g in contract.groups.items() if g.modality == name}

    def run(params: Any, batch: Batch, keys: Array | None) -> Features:
        values, seen = [], []
        for field, group in groups.items():
            stored, valid = batch[field].astype(jnp.float32), validity(batch[field], group)
            measured = contract.statistics[field]
            mean = np.array(measured.mean, np.float32)
            std = np.maximum(np.array(measured.std, np.float32), 1e-6)
            image = jnp.where(valid, (stored - mean) / std, 0)
            box = resample.full_box(len(image))
            if augment is not None and keys is not None:
                box = resample.sample_box(keys, augment)
            image, valid = resample.resample(image, valid, box, grid, 'bilinear')
            values.append(image)
            seen.append(jnp.any(valid, axis=-1))
        return Features(jnp.concatenate(values, axis=-1), jnp.any(jnp.stack(seen), axis=0))

    bands = sum(len(group.bands) for group in groups.values())
    return Reader(run, tuple(groups), {}, bands, 1, None, 'bands of each pixel')


def scaled(features: Features, scale: Scale) -> Float[Array, 'b h w d']:
    """Standardised features; 0, the mean, where nothing was seen."""
    return jnp.where(features.seen[..., None], (features.values - scale.mean) / scale.std, 0)
