"""`python main.py encode`: embeds a georeferenced pair, or one sensor alone, of any size.

Windows are as large on the ground as the records that the model learned from, resampled as they were. The
input contract is checked first. The output gets its name when it is complete.
"""

import contextlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from fusmae_jax import __version__, storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.embed import check, ground, stac, windows
from fusmae_jax.embed.geoparquet import GeoParquet
from fusmae_jax.embed.geotiff import GeoTiff
from fusmae_jax.embed.geozarr import GeoZarr
from fusmae_jax.embed.quantise import MOST_CLIPPED, Quantiser, scale_of
from fusmae_jax.embed.settings import EncodeConfig, check_settings
from fusmae_jax.embed.stream import EncodeJob, calibrate, make_encoder, rows_of_cells
from fusmae_jax.embed.windows import Layout
from fusmae_jax.encoders.load import load_one
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.geo import raster
from fusmae_jax.geo.grid import Grid

# MiB of blocks that GDAL keeps; its own default is 5 % of all memory. A row of blocks of a Sentinel-2 tile,
# 512 x 10,980 pixels of 12 bands, takes 130.
_CACHE = 256
WRITERS: dict[str, type[GeoTiff] | type[GeoParquet] | type[GeoZarr]] = {
    '.tif': GeoTiff,
    '.tiff': GeoTiff,
    '.parquet': GeoParquet,
    '.geoparquet': GeoParquet,
    '.zarr': GeoZarr,
}


def encode(config: EncodeConfig, files: Mapping[str, str], checkpoint: str, out: str) -> int:
    """Embeds the files of one place, modality -> file, with a checkpoint; returns the exit code.

    `out` ends in .tif, .zarr or .parquet; the file `out`.json beside it says how the numbers came about.

    Raises:
        InputError: settings, files, model and output do not fit together; nothing is written then.
    """
    if not files:
        raise InputError('give --s1=FILE, --s2=FILE, --dem=FILE, --file.NAME=FILE or several of them')
    check_settings(config)
    _target(out, config, files)  # before a model is loaded for nothing
    embed(config, files, load_one(checkpoint), checkpoint, out)
    return 0


def embed(config: EncodeConfig, files: Mapping[str, str], model: Pretrained, source: str, out: str) -> None:
    """Embeds the files of one place, modality -> file, with a model that is loaded already.

    `source` says where the model came from. Otherwise as `encode`.
    """
    check_settings(config)
    target = _target(out, config, files)
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options()))
        job, grid, description = _settle(config, model, files, source, stack)
        if config.stac:
            times = stac.moments(config.datetime, {r.file.name: r.tags() for r in job.rasters.values()})
        start = time.perf_counter()
        scale = calibrate(job) if config.dtype == 'int8' and target.suffix != '.zarr' else None
        description = _write(job, grid, target, description, scale)
        if config.stac:
            item = stac.item(target, grid, config, model, files, job.groups, description, times)
            storage.write_json(_stac_file(target), item)
    _summary(job, grid, target, description, time.perf_counter() - start)


def gdal_options() -> dict[str, Any]:
    """Options of GDAL while files of a user are read."""
    # A user's own limit is left to GDAL, which knows 5% and 512MB too.
    return raster.BESIDE | ({} if 'GDAL_CACHEMAX' in os.environ else {'GDAL_CACHEMAX': _CACHE})


def _summary(
    job: EncodeJob, grid: Grid, target: Path, description: Mapping[str, Any], seconds: float
) -> None:
    count = job.layout.rows.windows * job.layout.columns.windows
    # In bytes on macOS, in KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == 'darwin' else 20)
    print(f'{count:,} windows in {seconds:.1f} s, {count / seconds:.1f} a second; peak memory {peak:.2f} GiB')
    if 'int8' in description:
        print('int8: ' + ', '.join(f'{key} {value:.6g}' for key, value in description['int8'].items()))
    cells = grid.rows * grid.columns
    print(
        f'wrote {target} and {target.name}.json: {description["valid_cells"]:,} of {cells:,} cells hold data'
    )


def _target(name: str, config: EncodeConfig, files: Mapping[str, str]) -> Path:
    """The output as a path; raises InputError unless it and its description can be written."""
    out = Path(name)
    if out.suffix.lower() not in WRITERS:
        raise InputError(f'--out={out}: ends in {out.suffix!r}; {nearest(out.suffix, WRITERS)}')
    if not out.parent.is_dir():
        raise InputError(f'--out={out}: the folder {out.parent} does not exist')
    if any(out.exists() and Path(f).exists() and out.samefile(f) for f in files.values()):
        raise InputError(f'--out={out} is one of the inputs')
    beside = _beside(out)
    for file in (out, beside, *([_stac_file(out)] if config.stac else [])):
        if os.path.lexists(file) and not config.overwrite:
            purpose = '' if file == out else f', where the description of --out={out} belongs'
            raise InputError(f'{file} exists{purpose}; name another file, or set --config.overwrite=True')
    _check_own(beside)
    return out


def _check_own(beside: Path) -> None:
    """Raises InputError for a file in place of the description that `encode` did not write."""
    if os.path.lexists(beside) and not _describes(beside):
        raise InputError(f'{beside} exists and is not by `encode`; move it away, or name another --out')


def _beside(out: Path) -> Path:
    """The file that says how the numbers of an output came about."""
    return out.with_name(f'{out.name}.json')


def _stac_file(out: Path) -> Path:
    """The item of a catalogue that describes an output."""
    return out.with_name(f'{out.name}.stac.json')


def _describes(file: Path) -> bool:
    """Whether a file is a description that `encode` wrote."""
    try:
        return json.loads(file.read_text()).keys() >= {'fusmae_jax', 'checkpoint', 'settings'}
    except (OSError, ValueError, AttributeError):
        return False


def _settle(
    config: EncodeConfig,
    model: Pretrained,
    files: Mapping[str, str],
    source: str,
    stack: contextlib.ExitStack,
) -> tuple[EncodeJob, Grid, dict[str, Any]]:
    """Opens and checks the files, lays out the windows, compiles; prints what is about to happen."""
    if config.output == 'cls' and not model.config.model.cls:
        raise InputError(f"output='cls': {source} has no CLS token; take 'tokens' or 'pooled'")
    restricted = check.restrict(model.config, files, source)
    rasters = ground.open_rasters(config, files, stack)
    ground.check_apart(rasters)
    extent, lines = ground.align(rasters)
    size = check.window_ground(model, restricted, config.window)
    pixels = {name: check.window_pixels(raster, size) for name, raster in rasters.items()}
    fitted = check.fit(model, restricted, rasters, pixels, size, config)
    cells = model.config.model.grid if config.output == 'tokens' else (1, 1)
    layout = lay_out(config, extent, size, cells, list(pixels.values()))
    cell = (size[0] / cells[0], size[1] / cells[1])
    grid = ground.output_grid(extent, cell, layout.rows, layout.columns)
    batch = layout.batch[0] * layout.batch[1]
    fixed = [line.fixed(config.merge) for line in (layout.rows, layout.columns)]
    notes = [*lines, *fitted.notes, *anchor_notes(config, layout, 'embeddings')]
    overlap = [line.grid - line.stride for line in (layout.rows, layout.columns)]
    for line in notes:
        print(line)
    print(
        f'{layout.rows.windows} x {layout.columns.windows} windows of {size[0]:g} x {size[1]:g} m that share '
        f'{overlap[0]} x {overlap[1]} cells, {batch} a batch; {grid.rows} x {grid.columns} cells of '
        f'{cell[0]:.3f} x {cell[1]:.3f} m'
    )
    encoder = make_encoder(model, fitted.config, fitted.contract, batch, config.output)
    job = EncodeJob(config, rasters, fitted.contract.groups, layout, encoder, model.config.model.width)
    description = {
        'fusmae_jax': __version__,
        'model': model.config.name,
        'checkpoint': source,
        'trained_on': {'dataset': model.contract.dataset, 'fingerprint': model.contract.fingerprint},
        'settings': to_dict(config),
        'inputs': to_dict(fitted.contract.groups),
        'differences': notes,
        'window': size,
        'overlap': overlap,
        'cells': (grid.rows, grid.columns),
        # Cells from the first of these to before the second are the same in any cut of the scene.
        'fixed_cells': {'rows': fixed[0], 'columns': fixed[1]},
    }
    return job, grid, description


def anchor_notes(config: EncodeConfig, layout: Layout, what: str) -> list[str]:
    """Says if another cut has other ones of `what` is written; raises InputError if no cell is left."""
    fixed = [line.fixed(config.merge) for line in (layout.rows, layout.columns)]
    placed = config.georeference == 'required'
    if config.anchor == 'ground' and placed and (layout.rows.inner is None or layout.columns.inner is None):
        note = 'note: the image is too small for a whole window of the grid of the ground: windows begin at '
        note += f'its corner, and another cut of the scene gives other {what}'
    else:
        note = ''
    if config.edges == 'drop' and not all(high > low for low, high in fixed):
        raise InputError(
            "edges='drop' leaves nothing: no cell lies in whole windows of the ground's grid alone; give "
            "a larger cut of the scene (two windows a side always do), anchor='ground', or edges='keep'"
        )
    return [note] if note else []


def lay_out(
    config: EncodeConfig,
    extent: Grid,
    size: tuple[float, float],
    cells: tuple[int, int],
    pixels: Sequence[tuple[int, int]],
) -> Layout:
    """The windows over the common extent of the inputs.

    Args:
        config: overlap, anchor and batch.
        extent: of the inputs.
        size: ground of a window, metres.
        cells: rows and columns of the output in a window.
        pixels: rows and columns of a window in each input.

    Raises:
        InputError: windows would start between pixels.
    """
    lengths = extent.rows * extent.resolution, extent.columns * extent.resolution
    axes = []
    # Rows grow to the south.
    for i, (begin, length, window, grid) in enumerate(zip((-extent.top, extent.left), lengths, size, cells)):
        counts = [count[i] for count in pixels]
        overlap = windows.choose_overlap(config.overlap if config.output == 'tokens' else 0, grid, counts)
        if config.anchor == 'image' or extent.crs is None:
            axes.append(windows.axis(length, window, grid, overlap))
            continue
        steps = windows.common_steps(grid, overlap, counts)
        axes.append(windows.on_ground(begin, length, window, grid, overlap, steps))
    rows, columns = axes
    return Layout(rows, columns, windows.batch_shape(rows.windows, columns.windows, config.batch))


def _write(
    job: EncodeJob, grid: Grid, target: Path, description: Mapping[str, Any], scale: np.ndarray | None
) -> dict[str, Any]:
    """Encodes everything into a file under another name, which gets its own when it is complete."""
    # Of this process alone: two runs with one output would mix their files.
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    beside_part = _beside(part)
    try:
        quantise = None if scale is None else Quantiser(scale)
        whole = _copy(job, grid, target, part, description, quantise)
        if quantise is not None and quantise.clipped > MOST_CLIPPED * quantise.values:
            print(f'{quantise.clipped / quantise.values:.2%} of the values lie beyond the sample; once more')
            quantise = Quantiser(scale_of(quantise.largest, complete=True))
            whole = _copy(job, grid, target, part, description, quantise)
        beside_part.write_text(json.dumps(whole, indent=2) + '\n')
        # Encoding takes hours, in which somebody may have put a file there.
        _check_own(_beside(target))
        _publish(part, beside_part, target, job.config.overwrite)
    finally:
        for path in (part, beside_part):
            _remove(path)
    return whole


def _remove(path: Path) -> None:
    """Removes a file, or the folder that a store is, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _publish(part: Path, beside_part: Path, target: Path, overwrite: bool) -> None:
    """Gives an output and its description their names; a description never stands beside another output."""
    beside = _beside(target)
    if overwrite:
        # A kill in between leaves an output without a description, which is in its metadata as well.
        beside.unlink(missing_ok=True)
        if part.is_dir():
            # A folder is not replaced in one step: a kill in between leaves none.
            _remove(target)
        os.replace(part, target)
        os.replace(beside_part, beside)
        return
    _name_new(part, target)
    try:
        _name_new(beside_part, beside)
    except BaseException:
        _remove(target)
        raise


def _name_new(part: Path, target: Path) -> None:
    """Names a file; raises InputError if the name was taken since the run began."""
    try:
        if part.is_dir():
            # Unlike one of a file, the renaming of a folder replaces nothing but an empty one.
            os.rename(part, target)
            return
        # Unlike a renaming, a link never replaces anything.
        os.link(part, target)
    except FileExistsError as error:
        raise InputError(f'{target} was written by something else meanwhile; name another file') from error
    except OSError:
        # A file system without links.
        if os.path.lexists(target):
            raise InputError(f'{target} was written by something else meanwhile; name another file') from None
        os.replace(part, target)


def _copy(
    job: EncodeJob,
    grid: Grid,
    target: Path,
    part: Path,
    description: Mapping[str, Any],
    quantise: Quantiser | None,
) -> dict[str, Any]:
    """Writes all rows of cells to `part`; returns the description with what was counted on the way."""
    scale = None if quantise is None else quantise.scale
    known = {**description, **({} if scale is None else {'scale': scale.tolist()})}
    writer = _writer(job, grid, target, part, known, scale)
    valid_cells = 0
    try:
        for vectors, valid in rows_of_cells(job):
            valid_cells += int(valid.sum())
            writer.write(vectors if quantise is None else quantise(vectors, valid), valid)
        if not valid_cells:
            files = ', '.join(str(raster.file) for raster in job.rasters.values())
            raise InputError(f'{files}: not one valid pixel, nothing to embed; are the nodata values right?')
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    loss = {} if quantise is None else quantise.report()
    if isinstance(writer, GeoZarr) and job.config.dtype == 'int8':
        loss = writer.report.summary()
    return known | {'valid_cells': valid_cells} | ({'int8': loss} if loss else {})


def _writer(
    job: EncodeJob,
    grid: Grid,
    target: Path,
    part: Path,
    description: Mapping[str, Any],
    scale: np.ndarray | None,
) -> GeoTiff | GeoParquet | GeoZarr:
    kind, config = WRITERS[target.suffix.lower()], job.config
    if kind is GeoZarr:
        return GeoZarr(part, grid, config.dtype == 'int8', job.width, config.compress, description)
    if kind is GeoTiff:
        return GeoTiff(part, grid, scale, job.width, config.compress, description, config.cog)
    return GeoParquet(part, grid, scale, job.width, config.compress, description)
