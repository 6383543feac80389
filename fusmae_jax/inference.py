"""Use from Python: load a pretrained model and encode arrays in sensor units."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from fusmae_jax.checkpoint import open_step
from fusmae_jax.config import Config
from fusmae_jax.config_build import build
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import normalise, units
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.prepare import make_prepare
from fusmae_jax.models import fusmae


class Embedding(NamedTuple):
    """Features of a batch of images."""

    tokens: dict[str, np.ndarray]  # per given modality (b, n, d), patches in raster order
    cls: np.ndarray  # (b, d)
    pooled: np.ndarray  # (b, d), mean over the valid patch tokens of the given modalities


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

    def encode(self, images: Mapping[str, Any], *, units: Mapping[str, str]) -> Embedding:
        """Encodes images of any non-empty subset of the modalities; nothing is masked or augmented.

        Args:
            images: modality -> (b, rows, columns, bands) or one image without b, in the band order of
                `config.model.modalities[name].bands`, NaN where nothing was measured. Or, for native
                grids, a mapping from record field (`s2_10m`, ...) to such arrays.
            units: modality -> 'dB', 'linear' (power) or 'amplitude' for S1, 'DN' or 'reflectance' for S2.

        Raises:
            InputError: unknown modality, unit or shape; values that cannot be in the declared unit.
        """
        if not images:
            raise InputError(f'images is empty; give one or more of {list(self.config.model.modalities)}')
        if not isinstance(units, Mapping):
            raise InputError(f"units={units!r} must name each modality, such as {{'s1': 'dB', 's2': 'DN'}}")
        patches: dict[str, Any] = {}
        for name, image in images.items():
            patches |= self._patches(name, image, units.get(name, ''))
        sizes = {name: p.values.shape[0] for name, p in patches.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f'images: the modalities differ in their number of images: {sizes}')
        return Embedding(*jax.device_get(self.run(self.params, patches)))

    def _patches(self, name: str, image: Any, unit: str) -> dict[str, Any]:
        modalities = self.config.model.modalities
        if name not in modalities:
            raise InputError(f'images[{name!r}] is not a modality of this model; {nearest(name, modalities)}')
        stored = self.contract.first.groups
        groups = {field: group for field, group in stored.items() if group.modality == name}
        first = next(iter(groups.values()))
        known = units.accepted(normalise.target_unit(modalities[name], first))
        if unit not in known:
            raise InputError(f'units[{name!r}]={unit!r}; {nearest(unit, known)}')
        if not isinstance(image, Mapping):
            # One array on one grid: a single group with the model's own bands.
            bands = modalities[name].bands
            image, groups = {name: image}, {name: dataclasses.replace(first, bands=bands)}
        arrays, used = {}, {}
        for field, values in image.items():
            if field not in groups:
                raise InputError(f'images[{name!r}][{field!r}] is not a field; {nearest(field, groups)}')
            arrays[field] = _check(f'images[{name!r}]', values, groups[field], unit)
            used[field] = dataclasses.replace(groups[field], unit=unit, scale=1.0, offset=0.0, nodata=())
        missing = set(modalities[name].bands) - {b for group in used.values() for b in group.bands}
        if missing:
            raise InputError(f'images[{name!r}]: bands {sorted(missing)} are missing')
        return _prepare(self.config, name, Contract(groups=used), arrays)


def _check(path: str, values: Any, group: Group, unit: str) -> np.ndarray:
    """A float32 batch, NaN where there is no data; refuses shapes and ranges that cannot be right."""
    array = np.asarray(values)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != len(group.bands):
        raise InputError(
            f'{path} has shape {np.shape(values)}; expected (b, rows, columns, {len(group.bands)}) with the '
            f'bands {", ".join(group.bands)} last'
        )
    array = array.astype(np.float32)
    for nodata in group.nodata:
        array = np.where(array == np.float32(nodata), np.nan, array)
    finite = array[np.isfinite(array)]
    if finite.size:
        check_range(path, finite, unit)
    return array


def check_range(path: str, finite: np.ndarray, unit: str) -> None:
    """Raises InputError for values that cannot be in the unit that they are declared in."""
    low, high, middle = float(finite.min()), float(finite.max()), float(np.median(finite))
    found = f'found {low:.4g} to {high:.4g}, median {middle:.4g}'
    if unit == 'dB' and (low >= 0 or middle > 0):
        raise InputError(
            f"{path}: backscatter in dB is mostly negative, {found}; is it linear power? units='linear'"
        )
    if unit == 'dB' and middle < -60:
        raise InputError(
            f'{path}: backscatter below -60 dB is not physical, {found}; is it dB x 100? divide it'
        )
    if unit in ('linear', 'amplitude') and low < 0:
        raise InputError(f"{path}: {unit} backscatter cannot be negative, {found}; is it dB? units='dB'")
    if unit == 'DN' and high <= 2:
        raise InputError(
            f"{path}: digital numbers reach thousands, {found}; is it reflectance? units='reflectance'"
        )
    if unit == 'DN' and low < -10_000:
        raise InputError(
            f'{path}: digital numbers of surface reflectance, {found}; was an integer type wrapped?'
        )
    if unit == 'reflectance' and middle > 20:
        raise InputError(
            f"{path}: reflectance lies around 0 to 1, {found}; is it digital numbers? units='DN'"
        )


def _prepare(config: Config, name: str, contract: Contract, arrays: Mapping[str, Any]) -> dict[str, Any]:
    only = {name: config.model.modalities[name]}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=only))
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
