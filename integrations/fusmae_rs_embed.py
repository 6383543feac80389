"""An encoder of fusmae_jax as a model of rs-embed: a file to import, which needs torch and that package.

    python main.py export --checkpoint=runs/xae --to=torch --out=xae_torch

    import fusmae_rs_embed, rs_embed
    place = rs_embed.PointBuffer(lon=24.0, lat=60.2, buffer_m=600)
    when = rs_embed.TemporalSpec.range('2024-06-01', '2024-07-01')
    rs_embed.get_embedding('fusmae', spatial=place, temporal=when, modality='both', folder='xae_torch')

`modality` is s1, s2 or both. Sentinel-2 is the harmonised surface reflectance of Earth Engine in digital
numbers, without the offset of later baselines; Sentinel-1 is GRD in dB, VV then VH, and linear values are
turned into dB. What providers fill in, 0, counts as not measured. Where the channel that should be VV is the
darker one, an error says so: over land and sea it is the brighter one.
"""

import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np
import torch
from rs_embed.core.embedding import Embedding
from rs_embed.core.errors import ModelError
from rs_embed.core.registry import register
from rs_embed.core.specs import OutputSpec, SensorSpec, SpatialSpec, TemporalSpec
from rs_embed.core.types import EmbedderCapabilities, FetchResult
from rs_embed.embedders.base import EmbedderBase
from rs_embed.embedders.meta import build_meta, temporal_to_range
from rs_embed.embedders.shared import grid_to_dataarray
from rs_embed.providers.fetch import fetch_collection_patch_chw, fetch_s1_vvvh_raw_chw_with_meta
from rs_embed.tools.runtime import resolve_device_auto_torch
from rs_embed.tools.shape import crop_grid_to_roi, geo_roi_from_meta, roi_fetch_meta, roi_is_full
from rs_embed.tools.spatial import square_spatial

S1, S2 = 'COPERNICUS/S1_GRD', 'COPERNICUS/S2_SR_HARMONIZED'
RADAR = ('VV', 'VH')
OPTICAL = ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B9', 'B11', 'B12')
BANDS = {'s1': RADAR, 's2': OPTICAL, 'both': RADAR + OPTICAL}
COLLECTIONS = {'s1': S1, 's2': S2, 'both': f'{S1} and {S2}'}
SIZE = 120  # pixels of 10 m: the ground of BigEarthNet, from which encoders learn unless they are told other
DARKER = 1.0  # dB by which VV may lie below VH without being taken for it


@register('fusmae')
class FusMAEEmbedder(EmbedderBase):
    """Pooled features (width,) or a map of patch tokens (width, rows, columns)."""

    _requires_square_input = True
    capabilities = EmbedderCapabilities(
        input_chw=True,
        fetch_meta=True,
        batch_fetch_metas=True,
        model_config_single=True,
        model_config_batch=True,
        model_config_batch_inputs=True,
    )

    def describe(self) -> dict[str, Any]:
        """What it takes and gives, without opening an encoder."""
        return {
            'type': 'on_the_fly',
            'backend': ['provider', 'tensor'],
            'modalities': {
                name: {'collection': COLLECTIONS[name], 'bands': list(bands)} for name, bands in BANDS.items()
            },
            'temporal': {'mode': 'range'},
            'output': ['pooled', 'grid'],
            'defaults': {
                'modality': 'both',
                'scale_m': 10,
                'cloudy_pct': 30,
                'composite': 'median',
                'fill_value': 0.0,
                'use_float_linear': False,
                'image_size': SIZE,
            },
            'model_config': {
                'folder': {'type': 'string', 'default': None, 'description': 'what export --to=torch wrote'}
            },
        }

    def fetch_input(
        self,
        provider: Any,
        *,
        spatial: SpatialSpec,
        temporal: TemporalSpec | None,
        sensor: SensorSpec,
        square_input: bool = True,
    ) -> FetchResult:
        """Pixels (channels, rows, columns) in the order of BANDS, as the provider gives them."""
        when, window = temporal_to_range(temporal), (0.0, 1.0, 0.0, 1.0)
        if square_input:
            spatial, window = square_spatial(spatial)
        common = {'spatial': spatial, 'temporal': when, 'scale_m': sensor.scale_m}
        common |= {'composite': sensor.composite, 'fill_value': 0.0}
        parts, meta = [], dict(roi_fetch_meta(window) or {})
        if modality_of(sensor) != 's2':
            pixels, about = fetch_s1_vvvh_raw_chw_with_meta(
                provider,
                orbit=sensor.orbit,
                use_float_linear=sensor.use_float_linear,
                require_iw=sensor.s1_require_iw,
                relax_iw_on_empty=sensor.s1_relax_iw_on_empty,
                **common,
            )
            parts.append(pixels)
            meta |= about
        if modality_of(sensor) != 's1':
            what = {'collection': S2, 'bands': OPTICAL, 'cloudy_pct': sensor.cloudy_pct}
            parts.append(fetch_collection_patch_chw(provider, **what, **common))
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = [part.shape for part in parts]
            raise ModelError(f'fusmae: Sentinel-1 and Sentinel-2 of different sizes: {shapes}')
        return FetchResult(np.concatenate(parts), meta)

    def get_embedding(
        self,
        *,
        spatial: SpatialSpec,
        temporal: TemporalSpec | None,
        sensor: SensorSpec | None,
        output: OutputSpec,
        backend: str,
        device: str = 'auto',
        input_chw: np.ndarray | None = None,
        model_config: dict[str, Any] | None = None,
        fetch_meta: dict[str, Any] | None = None,
    ) -> Embedding:
        """The embedding of one place.

        Raises:
            ModelError: no folder, other channels than those of the modality, or VV and VH exchanged.
        """
        folder = (model_config or {}).get('folder')
        if not folder:
            raise ModelError("fusmae: give folder='xae_torch', what export --to=torch wrote")
        sensor = sensor or SensorSpec('', (), modality='both', use_float_linear=False)
        if input_chw is None:
            if backend.strip().lower() == 'tensor':
                raise ModelError("fusmae: backend='tensor' needs input_chw")
            fetched = self.fetch_input(
                self._get_provider(backend), spatial=spatial, temporal=temporal, sensor=sensor
            )
            input_chw, fetch_meta = fetched.data, fetched.meta
        encoder = opened(str(folder), resolve_device_auto_torch(device))
        images = images_of(input_chw, sensor, encoder.contract)
        vector, grid = encoded(encoder, images, geo_roi_from_meta(fetch_meta), output.pooling)
        meta = build_meta(
            model=self.model_name,
            kind='on_the_fly',
            backend=backend,
            source=COLLECTIONS[modality_of(sensor)],
            sensor=sensor,
            temporal=temporal_to_range(temporal) if temporal is not None else None,
            image_size=input_chw.shape[-1],
            extra={
                'sensors': list(images),
                'bands': list(BANDS[modality_of(sensor)]),
                'pooling': output.pooling,
            },
        )
        if output.mode == 'grid':
            return Embedding(grid_to_dataarray(grid, meta=meta), meta)
        return Embedding(vector, meta)


def modality_of(sensor: SensorSpec) -> str:
    """s1, s2 or both; raises ModelError for another one."""
    name = (sensor.modality or 'both').lower()
    if name not in BANDS:
        raise ModelError(f'fusmae: modality={name!r}, expected one of {", ".join(BANDS)}')
    return name


def images_of(pixels: np.ndarray, sensor: SensorSpec, contract: Any) -> dict[str, torch.Tensor]:
    """The images that the encoder takes, in its units and its order of bands, NaN where nothing was measured.

    Raises:
        ModelError: other channels, a unit that the encoder does not take, or VV and VH exchanged.
    """
    name = modality_of(sensor)
    names, pixels = BANDS[name], np.asarray(pixels, np.float32)
    if pixels.ndim != 3 or len(pixels) != len(names):
        raise ModelError(
            f'fusmae: input of {pixels.shape} for {name}, expected {len(names)} channels: {names}'
        )
    units = {entry['sensor']: entry['unit'] for entry in contract['inputs'].values()}
    there = {'s1': pixels[: len(RADAR)] if name != 's2' else None}
    there['s2'] = pixels[-len(OPTICAL) :] if name != 's1' else None
    images = {}
    for one, bands in (('s1', RADAR), ('s2', OPTICAL)):
        x = there[one]
        if x is None or one not in contract['sensors']:
            continue
        x = decibels(x, sensor.use_float_linear) if one == 's1' else np.where((x == 0).all(0), np.nan, x)
        if units[one] not in ('dB', 'DN', 'reflectance'):
            raise ModelError(f'fusmae: the encoder takes {one} in {units[one]}, which cannot be had here')
        x = x * 1e-4 if units[one] == 'reflectance' else x
        rows = {plain(band): row for band, row in zip(bands, x)}
        absent = np.full(x.shape[1:], np.nan, np.float32)
        wanted = contract['sensors'][one]['bands']
        images[one] = np.stack([rows.get(plain(band), absent) for band in wanted])
    if not images:
        raise ModelError(f'fusmae: {name}, but the encoder knows {list(contract["sensors"])}')
    return {key: torch.from_numpy(x.astype(np.float32))[None] for key, x in images.items()}


def decibels(x: np.ndarray, linear: bool) -> np.ndarray:
    """VV and VH in dB; raises ModelError where they seem to be exchanged, or in the other unit."""
    # Linear values that had their noise removed can lie below 0 here and there.
    if linear and np.mean(x < 0) > 0.5:
        raise ModelError('fusmae: Sentinel-1 is not linear; set use_float_linear=False for values in dB')
    with np.errstate(divide='ignore', invalid='ignore'):
        x = np.where(x == 0, np.nan, 10 * np.log10(x) if linear else x)
    # Of an image without a measurement nothing can be said.
    if not linear and np.isfinite(x).any() and np.nanmin(x) > -1:
        raise ModelError('fusmae: Sentinel-1 is not in dB; set use_float_linear=True for linear values')
    seen = np.isfinite(x).all(0)
    if seen.any() and (gap := float((x[0] - x[1])[seen].mean())) < -DARKER:
        raise ModelError(
            f'fusmae: VV is {-gap:.1f} dB below VH: the channels are exchanged; give VV, then VH'
        )
    return x


def plain(band: str) -> str:
    """B1 and B01 are the same band."""
    return band[0] + band[1:].lstrip('0')


@torch.inference_mode()
def encoded(
    encoder: Any, images: dict[str, torch.Tensor], window: tuple[float, ...], pooling: str
) -> tuple[np.ndarray, np.ndarray]:
    """The vector (width,) and the map (width, rows, columns) of the window of an image that was asked for."""
    images = {name: x.to(encoder.pos_embed.device) for name, x in images.items()}
    grid = crop_grid_to_roi(encoder.features(images)[0][0].cpu().numpy(), window)
    if pooling == 'max':
        return grid.max((1, 2)), grid
    if roi_is_full(window):
        return encoder(images)['pooled'][0].cpu().numpy(), grid
    return grid.mean((1, 2)), grid


@functools.lru_cache(maxsize=4)
def opened(folder: str, device: str) -> Any:
    """The module that `export --to=torch` wrote, with its weights."""
    file = pathlib.Path(folder) / 'fusmae_encoder.py'
    spec = importlib.util.spec_from_file_location('fusmae_encoder', file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ModelError(f'{folder}: no fusmae_encoder.py; write it with export --to=torch')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder).to(device)
