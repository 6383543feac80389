"""A STAC item beside the embeddings: where, when, of which numbers, and by which model.

STAC 1.1 with the extensions projection, raster, processing and MLM, and the public draft for embeddings
(geo-embeddings/embeddings-stac-specification, 0.0.1), whose fields begin with `emb:`.
"""

import datetime
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rasterio.warp

from fusmae_jax import __version__
from fusmae_jax.embed.quantise import NODATA
from fusmae_jax.embed.settings import EncodeConfig
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid
from fusmae_jax.input import normalise
from fusmae_jax.input.contract import Group

EXTENSIONS = [
    'https://stac-extensions.github.io/projection/v2.0.0/schema.json',
    'https://stac-extensions.github.io/raster/v2.0.0/schema.json',
    'https://stac-extensions.github.io/processing/v1.2.0/schema.json',
    'https://stac-extensions.github.io/mlm/v1.5.2/schema.json',
    'https://stac-extensions.github.io/embeddings/v0.0.1/schema.json',
]
MEDIA = {
    '.tif': 'image/tiff; application=geotiff; profile=cloud-optimized',
    '.tiff': 'image/tiff; application=geotiff; profile=cloud-optimized',
    '.zarr': 'application/vnd.zarr; version=3',
    '.parquet': 'application/vnd.apache.parquet',
    '.geoparquet': 'application/vnd.apache.parquet',
}
# Tags in which products state when they were sensed. TIFFTAG_DATETIME is when a file was written.
TAGS = ('ACQUISITIONDATETIME', 'DATATAKE_1_DATATAKE_SENSING_START', 'PRODUCT_START_TIME', 'SENSING_TIME')


def moments(text: str, tags: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """One time, or the two ends of an interval, as STAC writes them.

    Args:
        text: `config.datetime`: ISO 8601, two with a slash between them, or ''.
        tags: input file -> its tags, which count without a text.

    Raises:
        InputError: no time is known, or it is none.
    """
    where = 'config.datetime'
    if not text:
        stated = {name: tags[name][tag] for name in tags for tag in TAGS if tags[name].get(tag)}
        if not stated:
            raise InputError(
                'config.stac: an item needs the time of acquisition, and the files do not say it (tags '
                f'{", ".join(TAGS)}); give it: --config.datetime=2024-05-01T10:20:31Z, or two with a slash'
            )
        # Sensors of a pair are hours or days apart.
        text, where = '/'.join(sorted({_moment(value, name) for name, value in stated.items()})), 'tags'
        ends = text.split('/')
        return ends[0], *ends[-1:][: len(ends) > 1]
    ends = [_moment(part, where) for part in text.split('/')]
    if len(ends) > 2 or ends != sorted(ends):
        raise InputError(f'{where}={text}: give one time, or an earlier and a later one with a slash between')
    return tuple(ends)


def _moment(text: str, where: str) -> str:
    try:
        time = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(f'{where}: {text!r} is no time; write it as 2024-05-01T10:20:31Z') from None
    time = time.replace(tzinfo=time.tzinfo or datetime.UTC).astimezone(datetime.UTC)
    return time.isoformat().replace('+00:00', 'Z')


def item(
    target: Path,
    grid: Grid,
    config: EncodeConfig,
    model: Pretrained,
    files: Mapping[str, str],
    groups: Mapping[str, Group],
    description: Mapping[str, Any],
    times: tuple[str, ...],
) -> dict[str, Any]:
    """The item of one output, with links relative to it.

    Args:
        target: the output, beside which the item lies.
        grid: its cells.
        config: the settings of the run.
        model: the encoder.
        files: modality -> input file.
        groups: field -> what was read of it.
        description: what lies beside the output as JSON.
        times: from `moments`.
    """
    geometry, bbox = _footprint(grid)
    span = dict(zip(('start_datetime', 'end_datetime'), times)) if len(times) == 2 else {}
    return {
        'type': 'Feature',
        'stac_version': '1.1.0',
        'stac_extensions': EXTENSIONS,
        'id': target.stem,
        'geometry': geometry,
        'bbox': bbox,
        'properties': {
            'datetime': None if span else times[0],
            **span,
            'gsd': max(grid.step_x, grid.step_y),
            **_projection(grid),
            'processing:datetime': _moment(datetime.datetime.now(datetime.UTC).isoformat(), ''),
            'processing:software': {'fusmae_jax': __version__, 'jax': jax.__version__},
            **_model(model, config, groups),
            **_embeddings(config, target, groups, description),
        },
        'links': [
            {'rel': 'emb:source-data', 'href': _relative(file, target), 'title': name}
            for name, file in files.items()
        ],
        'assets': _assets(target, config, model, description),
    }


def _assets(
    target: Path, config: EncodeConfig, model: Pretrained, description: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        'embeddings': _asset(target, config, model.config.model.width, description),
        # MLM asks for the model itself.
        'model': {
            'href': _relative(description['checkpoint'], target),
            'roles': ['mlm:model', 'mlm:weights'],
            'mlm:artifact_type': 'orbax.checkpoint',
            'title': 'the checkpoint; open it with fusmae_jax.load',
        },
        'description': {
            'href': f'./{target.name}.json',
            'type': 'application/json',
            'roles': ['metadata'],
            'title': 'how the numbers came about',
        },
    }


def _relative(file: str, target: Path) -> str:
    return Path(os.path.relpath(Path(file).resolve(), target.resolve().parent)).as_posix()


def _footprint(grid: Grid) -> tuple[dict[str, Any], list[float]]:
    """The outline in longitude and latitude, with points along its sides, and its box."""
    left, bottom, right, top = grid.bounds
    part = np.linspace(0, 1, 9)[:-1]
    x = [left + part * (right - left), right + 0 * part, right - part * (right - left), left + 0 * part]
    y = [bottom + 0 * part, bottom + part * (top - bottom), top + 0 * part, top - part * (top - bottom)]
    xs, ys = np.concatenate(x).tolist(), np.concatenate(y).tolist()
    ring = {'type': 'Polygon', 'coordinates': [[*zip(xs, ys), (xs[0], ys[0])]]}
    # From rasterio 1.5 on it is cut at the 180th meridian without being asked, and to ask is deprecated.
    cut = {'antimeridian_cutting': True, 'antimeridian_offset': 10.0} if _older_than_1_5() else {}
    shape = rasterio.warp.transform_geom(grid.crs, 'EPSG:4326', ring, precision=7, **cut)
    parts = shape['coordinates'] if shape['type'] == 'MultiPolygon' else [shape['coordinates']]
    points = [np.array(rings[0])[:, :2] for rings in parts]
    south, north = (
        float(end(p[:, 1].min() if end is min else p[:, 1].max() for p in points)) for end in (min, max)
    )
    # Across the 180th meridian a box has its west in the east (RFC 7946).
    west = float(max(p[:, 0].min() for p in points))
    east = float(min(p[:, 0].max() for p in points))
    return {'type': shape['type'], 'coordinates': shape['coordinates']}, [west, south, east, north]


def _older_than_1_5() -> bool:
    return tuple(map(int, rasterio.__version__.split('.')[:2])) < (1, 5)


def _projection(grid: Grid) -> dict[str, Any]:
    assert grid.crs is not None
    code = grid.crs.to_epsg()
    system = {'proj:code': f'EPSG:{code}'} if code else {'proj:wkt2': grid.crs.to_wkt(version='WKT2_2019')}
    return {
        **system,
        'proj:shape': [grid.rows, grid.columns],
        'proj:transform': list(grid.transform)[:6],
        'proj:bbox': list(grid.bounds),
    }


def _model(model: Pretrained, config: EncodeConfig, groups: Mapping[str, Group]) -> dict[str, Any]:
    """The fields of MLM, from the checkpoint's settings and the contract of its data."""
    settings, trained = model.config, model.contract
    inputs, names = [], []
    for name in dict.fromkeys(group.modality for group in groups.values()):
        modality = settings.model.modalities[name]
        known = [g for g in trained.first.groups.values() if g.modality == name]
        known = known or [g for g in groups.values() if g.modality == name]
        finest = min(known, key=lambda group: group.resolution)
        unit = normalise.target_unit(modality, finest)
        names += [band for band in modality.bands if band not in names]
        inputs.append(
            {
                'name': name,
                'description': f'{unit}, pixels of {finest.resolution:g} m',
                'bands': list(modality.bands),
                'input': {
                    'shape': [-1, *finest.size, len(modality.bands)],
                    'dim_order': ['batch', 'height', 'width', 'bands'],
                    'data_type': 'float32',
                },
            }
        )
    width, grid = settings.model.width, settings.model.grid
    tokens = config.output == 'tokens'
    result = {
        'shape': [-1, *grid, width] if tokens else [-1, width],
        'dim_order': ['batch', 'height', 'width', 'embedding'] if tokens else ['batch', 'embedding'],
        'data_type': 'float32',
    }
    return {
        'bands': [{'name': name, 'description': 'input of the model'} for name in names],
        'mlm:name': settings.name or 'Fus-MAE',
        'mlm:architecture': f'Vision Transformer (Fus-MAE, encoder {settings.model.fusion.encoder})',
        'mlm:tasks': ['similarity-search'],
        'mlm:framework': 'JAX',
        'mlm:framework_version': jax.__version__,
        'mlm:pretrained': True,
        'mlm:pretrained_source': trained.dataset or None,
        'mlm:total_parameters': int(sum(math.prod(x.shape) for x in jax.tree.leaves(model.params))),
        'mlm:input': inputs,
        'mlm:output': [{'name': config.output, 'tasks': ['similarity-search'], 'result': result}],
        'mlm:hyperparameters': {
            'depth': settings.model.depth,
            'width': width,
            'patch_size': settings.model.patch_size,
        },
    }


def _embeddings(
    config: EncodeConfig, target: Path, groups: Mapping[str, Group], description: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of the draft for embeddings."""
    fields: dict[str, Any] = {
        'emb:runtime_parameters': {
            'bands': {name: list(group.bands) for name, group in groups.items()},
            'output': config.output,
            'window': list(description['window']),
            'overlap': list(description['overlap']),
            'merge': config.merge,
            'anchor': config.anchor,
            'fixed_cells': {name: list(ends) for name, ends in description['fixed_cells'].items()},
        }
    }
    if config.dtype == 'int8':
        scale = {'scale': list(description['scale'])} if 'scale' in description else {}
        method = 'symmetric, one scale for each ' + ('channel' if scale else 'cell, in the array `scale`')
        fields['emb:quantization'] = {
            'method': method,
            'original_dtype': 'float32',
            'quantized_dtype': 'int8',
            **scale,
        }
    return fields


def _asset(target: Path, config: EncodeConfig, width: int, description: Mapping[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = {'data_type': config.dtype}
    if config.dtype == 'float32':
        common['nodata'] = 'nan'
    elif target.suffix != '.zarr':
        common['nodata'] = NODATA
    scales = description.get('scale')
    bands: list[dict[str, Any]] = [{'name': f'embedding_{i}'} for i in range(width)]
    if scales:
        bands = [band | {'raster:scale': scale} for band, scale in zip(bands, scales)]
    return {
        'href': f'./{target.name}',
        'type': MEDIA[target.suffix.lower()],
        'roles': ['data'],
        'title': f'{width} numbers a cell',
        'raster:sampling': 'area',
        **common,
        'bands': bands,
    }
