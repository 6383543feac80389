"""Use from Python: load a pretrained model and encode arrays in sensor units."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.config.build import build
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import compatibility, normalise, units
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.compatibility import Difference
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.prepare import make_prepare
from fusmae_jax.models import fusmae


class Embedding(NamedTuple):
    """Features of a batch of images."""

    tokens: dict[str, np.ndarray]  # per given modality (b, n, d), patches in raster order
    cls: np.ndarray  # (b, d)
    pooled: np.ndarray  # (b, d), mean over the valid patch tokens of the given modalities


class Field(NamedTuple):
    """One array of images, and what it holds."""

    values: np.ndarray  # (b, rows, columns, bands) float32, NaN where nothing was measured
    group: Group


class Pretrained:
    """A pretrained encoder with the input contract it was trained under."""

    def __init__(self, config: Config, contract: Contract, params: Any, dtype: Any):
        self.config, self.contract, self.params, self.dtype = config, contract, params, jnp.dtype(dtype)

    @functools.cached_property
    def run(self) -> Any:
        """The jitted function (params, patches) -> tokens, CLS, pooled."""
        graphdef = fusmae.graph(self.config.model, self.dtype)

        def encode(params: Any, patches: Any) -> Any:
            tokens, cls, pooled, _ = nnx.merge(graphdef, params).encode(patches)
            return tokens, cls, pooled

        return jax.jit(encode)

    def encode(
        self,
        images: Mapping[str, Any],
        *,
        units: Mapping[str, str],
        resolution: float | Mapping[str, float] | None = None,
        accept: Sequence[str] = (),
    ) -> Embedding:
        """Encodes images of any non-empty subset of the modalities; nothing is masked or augmented.

        Values are looked at first: what cannot be right is refused, and a UserWarning says what looks wrong.

        Args:
            images: modality -> (b, rows, columns, bands) or one image without b, in the band order of
                `config.model.modalities[name].bands`; NaN, or masked, where nothing was measured. Or, for
                native grids, a mapping from record field (`s2_10m`, ...) to such arrays.
            units: modality -> 'dB', 'linear' (power) or 'amplitude' for S1, 'DN' or 'reflectance' for S2.
            resolution: metres a pixel (of the finest bands), for all or by modality or record field; by
                default as in training.
            accept: what is meant: 'resolution' for another ground than that of a training image, and
                the names that an error or a warning gives.

        Raises:
            InputError: unknown modality, unit or shape; another ground than the model knows; values that
                cannot be in the declared unit, or bands in another order.
        """
        if not images:
            raise InputError(f'images is empty; give one or more of {list(self.config.model.modalities)}')
        if not isinstance(units, Mapping):
            raise InputError(f"units={units!r} must name each modality, such as {{'s1': 'dB', 's2': 'DN'}}")
        metres = _metres(resolution, self.contract)
        fields = {name: self._fields(name, image, units.get(name, '')) for name, image in images.items()}
        sizes = {name: len(x.values) for name, parts in fields.items() for x in parts.values()}
        if len({len(x.values) for parts in fields.values() for x in parts.values()}) > 1:
            raise InputError(f'images: the modalities differ in their number of images: {sizes}')
        differences = []
        for name, parts in fields.items():
            differences += _extents(name, parts, self.contract, metres)
            values = {field: x.values for field, x in parts.items()}
            groups = {field: x.group for field, x in parts.items()}
            differences += compatibility.look(name, values, groups, self.contract)
        notes = compatibility.check(differences, accept, 'images')
        for line in notes:
            if line.startswith('likely'):
                warnings.warn(f'images: {line}; `accept` silences this', UserWarning, stacklevel=2)
        patches: dict[str, Any] = {}
        for name, parts in fields.items():
            patches |= _prepare(self.config, name, parts)
        return Embedding(*jax.device_get(self.run(self.params, patches)))

    def _fields(self, name: str, image: Any, unit: str) -> dict[str, Field]:
        """The arrays of a modality by record field, or by its own name for one array on one grid."""
        modalities = self.config.model.modalities
        if name not in modalities:
            raise InputError(f'images[{name!r}] is not a modality of this model; {nearest(name, modalities)}')
        stored = self.contract.first.groups
        groups = {field: group for field, group in stored.items() if group.modality == name}
        if not groups:
            raise InputError(f'images[{name!r}]: the contract of the model does not say what it holds')
        finest = min(groups.values(), key=lambda group: group.resolution)
        known = units.accepted(normalise.target_unit(modalities[name], finest))
        if unit not in known:
            raise InputError(f'units[{name!r}]={unit!r}; {nearest(unit, known)}')
        if not isinstance(image, Mapping):
            # One array on one grid: a single group with the model's own bands.
            bands = modalities[name].bands
            image, groups = {name: image}, {name: dataclasses.replace(finest, bands=bands)}
        fields = {}
        for field, values in image.items():
            where = f'images[{name!r}]' + (f'[{field!r}]' if field != name else '')
            if field not in groups:
                raise InputError(f'{where} is not a field; {nearest(field, groups)}')
            # Values are physical already, and what means nothing in stored ones may be a measurement here.
            group = dataclasses.replace(groups[field], unit=unit, scale=1.0, offset=0.0, nodata=())
            fields[field] = Field(_batch(where, values, group.bands), group)
        missing = set(modalities[name].bands) - {b for field in fields.values() for b in field.group.bands}
        if missing:
            raise InputError(f'images[{name!r}]: bands {sorted(missing)} are missing')
        return fields


def _metres(resolution: float | Mapping[str, float] | None, contract: Contract) -> dict[str, float]:
    """Metres a pixel by modality or record field, where they were stated; '' for all."""
    stated = dict(resolution) if isinstance(resolution, Mapping) else {'': resolution}
    groups = contract.first.groups
    known = {'', *groups, *(group.modality for group in groups.values())}
    for name, value in stated.items():
        if name not in known:
            raise InputError(f'resolution[{name!r}]: {nearest(name, known - {""})}')
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise InputError(f'resolution={value!r} must be metres a pixel, such as 10.0')
    return {name: float(value) for name, value in stated.items() if value is not None}


def _batch(where: str, values: Any, bands: tuple[str, ...]) -> np.ndarray:
    """A float32 batch, NaN where there is no data; refuses what is no such array."""
    array = _array(where, values)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != len(bands):
        hint = '; L1C has 13: leave out B10' if array.shape[-1:] == (13,) and len(bands) == 12 else ''
        raise InputError(
            f'{where} has shape {array.shape}; expected (b, rows, columns, {len(bands)}) with the '
            f'bands {", ".join(bands)} last{hint}'
        )
    if not array.size:
        raise InputError(f'{where} has shape {array.shape}: there is nothing in it; give at least one image')
    return array


def _array(where: str, values: Any) -> np.ndarray:
    """Any array as float32; masked values, of arrays in a list too, become NaN."""
    if isinstance(values, (list, tuple)) and any(np.ndim(part) for part in values):
        parts = [_array(where, part) for part in values]
        if len({part.shape for part in parts}) > 1:
            raise InputError(f'{where}: images of different shapes {sorted({part.shape for part in parts})}')
        return np.stack(parts)
    masked = np.ma.isMaskedArray(values)
    try:
        array = np.asarray(np.ma.getdata(values) if masked else values)
        if array.dtype.kind in 'cOSUmM':
            raise TypeError(f'its values are {array.dtype}')
        array = array.astype(np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f'{where} is {type(values).__name__}, not an array of numbers ({error}); give a NumPy array, of '
            'a tensor `tensor.detach().cpu().numpy()`'
        ) from error
    if masked:
        array[np.ma.getmaskarray(values)] = np.nan
    return array


def _extents(
    name: str, fields: Mapping[str, Field], contract: Contract, metres: Mapping[str, float]
) -> list[Difference]:
    """The ground that an image covers: another one would be squeezed, or stretched, onto the model's grid."""
    trained = [g for part in contract.each.values() for g in part.groups.values() if g.modality == name]
    known = {(g.size[0] * g.resolution, g.size[1] * g.resolution) for g in trained}
    if not all(min(size) > 0 for size in known):
        return []  # the training data do not say
    finest = min(g.resolution for g in trained)
    for field, (values, group) in fields.items():
        # What is said of a modality is said of its finest bands.
        pixel = metres.get(name, metres.get('', finest)) * group.resolution / finest
        pixel = metres.get(field, pixel)
        rows, columns = values.shape[1:3]
        ground = rows * pixel, columns * pixel
        # Metres a pixel that are rounded, such as 5.357 for 1200 / 224, add up to less than half of one.
        if any(max(abs(a - b) for a, b in zip(ground, size)) < pixel / 2 for size in known):
            continue
        size = min(known, key=lambda size: abs(size[0] - ground[0]))
        cut = ' x '.join(f'{length / pixel:g}' for length in size)
        one = f'{size[0] / rows:.4g}'
        where = f'[{field!r}]' if field != name else ''
        message = (
            f'images[{name!r}]{where} covers {ground[0]:g} x {ground[1]:g} m ({rows} x {columns} pixels of '
            f'{pixel:g} m), the model knows {size[0]:g} x {size[1]:g} m: cut windows of {cut} pixels, or '
            f'state resolution={one} if a pixel has {one} m'
        )
        return [Difference('shift', 'resolution', name, message)]
    return []


def _prepare(config: Config, name: str, fields: Mapping[str, Field]) -> dict[str, Any]:
    only = {name: config.model.modalities[name]}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=only))
    contract = Contract(groups={field: x.group for field, x in fields.items()})
    arrays: dict[str, Any] = {field: x.values for field, x in fields.items()}
    return make_prepare(config, contract, None)(arrays, None)


def load(path: epath.PathLike, step: int | None = None, *, average: bool = False) -> Pretrained:
    """The pretrained model of a working directory, its checkpoints folder, or one checkpoint in it.

    Args:
        path: what `pretrain --workdir` wrote.
        step: which checkpoint; the newest by default, or the one that `path` names.
        average: the average of the weights in place of the last ones, of a run with `train.ema`.

    Raises:
        InputError: nothing there, no average, or weights that do not fit the stored configuration.
    """
    checkpoints, step = open_step(path, step)
    try:
        meta = checkpoints.meta(step)
        if 'dino' in meta['config']:
            raise InputError(f'{path}: a DINO-MM run; its encoder cannot be loaded by this function yet')
        config = build(meta['config'])
        contract = contracts.from_values(meta['contract'], f'{path}: contract')
        shapes = jax.eval_shape(lambda key: fusmae.init_params(config.model, key), jax.random.key(0))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
        params = checkpoints.params(abstract, step, 'ema' if average else 'params')
    finally:
        checkpoints.close()
    on_cpu = jax.default_backend() == 'cpu' and meta['dtype'] == 'bfloat16'
    return Pretrained(config, contract, params, 'float32' if on_cpu else meta['dtype'])
