"""A pretrained encoder for use from Python: arrays in sensor units to features."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import compatibility, normalise, units
from fusmae_jax.input.compatibility import Difference
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.rules import Params


class Embedding(NamedTuple):
    """Features of a batch of images."""

    tokens: dict[str, np.ndarray]  # per given modality (b, n, d), patches in raster order
    cls: np.ndarray  # (b, d), or (b, 0) of a model without a CLS token
    pooled: np.ndarray  # (b, d), mean over the valid patch tokens of the given modalities


class Field(NamedTuple):
    """One array of images, and what it holds."""

    values: np.ndarray  # (b, rows, columns, bands) float32, NaN where nothing was measured
    group: Group


class Pretrained:
    """A pretrained encoder with the input contract it was trained under, and the preset of its input."""

    def __init__(self, config: Config, contract: Contract, params: Params, dtype: DTypeLike):
        self.config, self.contract, self.params, self.dtype = config, contract, params, jnp.dtype(dtype)
        self._inputs: dict[Any, Any] = {}  # jitted, by the record fields that were given and what they hold

    @functools.cached_property
    def run(self) -> Any:
        """The jitted function (params, patches) -> tokens, CLS, pooled."""
        graphdef = fusmae.graph(self.config.model, self.dtype)

        def encode(params: Params, patches: Any) -> Any:
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
        contract: Contract | None = None,
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
            contract: of the data set whose record fields are given, where the model knows others or none
                (imported weights).

        Raises:
            InputError: unknown modality, unit or shape; another ground than the model knows; values that
                cannot be in the declared unit, or bands in another order.
        """
        if not images:
            raise InputError(f'images is empty; give one or more of {list(self.config.model.modalities)}')
        if not isinstance(units, Mapping):
            raise InputError(f"units={units!r} must name each modality, such as {{'s1': 'dB', 's2': 'DN'}}")
        metres = _metres(resolution, self.contract)
        groups = (contract or self.contract).first.groups
        fields = {name: self._fields(name, x, units.get(name, ''), groups) for name, x in images.items()}
        sizes = {name: len(x.values) for name, parts in fields.items() for x in parts.values()}
        if len({len(x.values) for parts in fields.values() for x in parts.values()}) > 1:
            raise InputError(f'images: the modalities differ in their number of images: {sizes}')
        differences = []
        for name, parts in fields.items():
            differences += _extents(name, parts, self.contract, metres)
            values = {field: x.values for field, x in parts.items()}
            held = {field: x.group for field, x in parts.items()}
            differences += compatibility.look(name, values, held, self.contract)
        notes = compatibility.check(differences, accept, 'images')
        for line in notes:
            if line.startswith('likely'):
                warnings.warn(f'images: {line}; `accept` silences this', UserWarning, stacklevel=2)
        return Embedding(*jax.device_get(self.run(self.params, self._patches(fields))))

    def _fields(self, name: str, image: Any, unit: str, known: Mapping[str, Group]) -> dict[str, Field]:
        """The arrays of a modality by record field, or by its own name for one array on one grid."""
        modalities = self.config.model.modalities
        if name not in modalities:
            raise InputError(f'images[{name!r}] is not a modality of this model; {nearest(name, modalities)}')
        groups = {field: group for field, group in known.items() if group.modality == name}
        if not groups and known:
            raise InputError(f'images[{name!r}]: the contract of the model does not say what it holds')
        # Imported weights know no records: one array with the bands of the model is all that can be meant.
        groups = groups or {name: Group(name, modalities[name].bands)}
        finest = min(groups.values(), key=lambda group: group.resolution)
        accepted = units.accepted(normalise.target_unit(modalities[name], finest))
        if unit not in accepted:
            raise InputError(f'units[{name!r}]={unit!r}; {nearest(unit, accepted)}')
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

    def _patches(self, fields: Mapping[str, Mapping[str, Field]]) -> Any:
        """The inputs of the model from what was given, as an evaluation makes them."""
        arrays = {field: x for parts in fields.values() for field, x in parts.items()}
        groups = {field: x.group for field, x in arrays.items()}
        key = tuple(groups.items())
        if key not in self._inputs:
            given = {name: m for name, m in self.config.model.modalities.items() if name in fields}
            model = dataclasses.replace(self.config.model, modalities=given)
            inputs = make_inputs(dataclasses.replace(self.config, model=model), Contract(groups=groups))
            self._inputs[key] = jax.jit(inputs)
        return self._inputs[key]({field: x.values for field, x in arrays.items()}, None)


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
    if not known or not all(min(size) > 0 for size in known):
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
        suited = f'{size[0] / rows:.4g}'
        where = f'[{field!r}]' if field != name else ''
        message = (
            f'images[{name!r}]{where} covers {ground[0]:g} x {ground[1]:g} m ({rows} x {columns} pixels of '
            f'{pixel:g} m), the model knows {size[0]:g} x {size[1]:g} m: cut windows of {cut} pixels, or '
            f'state resolution={suited} if a pixel has {suited} m'
        )
        return [Difference('shift', 'resolution', name, message)]
    return []
