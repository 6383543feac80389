"""Remedies for rasters as commands of `rio`: it comes with rasterio, gdalwarp and its relatives do not."""

import math
import shlex
from collections.abc import Sequence
from typing import NamedTuple

# Nothing of this can be passed through `rio warp` and `rio convert`; whoever follows a remedy must know.
LOST = 'band names, scale, offset and other tags are not kept: state them in the settings afterwards'


def warp(
    file: object = 'IN.tif',
    *,
    crs: str = '',
    bounds: Sequence[float] = (),
    step: float = 0.0,
    dtype: str = '',
    nodata: float | None = None,
    resampling: str = 'bilinear',
) -> str:
    """The command that puts a raster onto another grid.

    Args:
      file: what is warped; the result is OUT.tif.
      crs: of the result, such as 'EPSG:32632'; '' keeps it.
      bounds: left, bottom, right, top of the result; () covers the whole file.
      step: pixel size of the result; 0 leaves it to rio.
      dtype: of the file. Floats without nodata get NaN where the file has no ground, which else were 0.
      nodata: of the file.
      resampling: nearest for labels.
    """
    options = [f'--dst-crs {shlex.quote(crs)}'] if crs else []
    options += [f'--bounds {" ".join(f"{edge:.10g}" for edge in bounds)}'] if len(bounds) else []
    options += [f'--res {step:.10g}'] if step else []
    if nodata is None and dtype.startswith('float'):
        options.append('--src-nodata nan --dst-nodata nan')
    return f'rio warp {shlex.quote(str(file))} OUT.tif {" ".join(options)} --resampling {resampling} ({LOST})'


def mask_into_pixels(dtype: str, file: object = 'IN.tif', alpha: int = 0) -> str:
    """The commands that write a mask into the pixels, as NaN or as a value that is none of a measurement.

    Not `rio warp`, which leaves a mask aside where it is told a nodata value (rasterio 1.5). `alpha` is the
    number of the channel that is the mask: a nodata value would hide it, so that it comes last.
    """
    name = shlex.quote(str(file))
    if alpha:
        hide = f"rio calc --not-masked '(where (== (read 1 {alpha}) 0) VALUE (read 1))' {name} OUT.tif"
        return f'{hide} && rio edit-info --nodata VALUE OUT.tif ({LOST})'
    value = 'nan' if dtype.startswith('float') else 'VALUE'
    return f"rio edit-info --nodata {value} {name} && rio calc '(read 1)' {name} OUT.tif ({LOST})"


def georeference(file: object) -> str:
    """What to do about a raster without a reference system or a geotransform; no warping helps there."""
    return (
        'a raw product needs its terrain corrected and a map projection first; where only the place is not '
        'written down: rio edit-info --crs EPSG:CODE '
        f"--transform '[10, 0, LEFT, 0, -10, TOP]' {shlex.quote(str(file))}"
    )


def convert(dtype: str, file: object = 'IN.tif') -> str:
    """The command that writes a raster anew in another type."""
    return f'rio convert {shlex.quote(str(file))} OUT.tif --dtype {dtype} ({LOST})'


class Placed(NamedTuple):
    """A raster and its grid, north up, in square pixels."""

    file: object
    rows: int
    columns: int
    left: float
    top: float
    step: float


def wrong_transform(one: Placed, other: Placed) -> str:
    """The remedy for two rasters that show one piece of ground but cannot: '' if they can.

    As many pixels of another size are another ground, so one geotransform is wrong. It may be either one:
    both commands are named. Warping would only spread the error.
    """
    same = (one.rows, one.columns) == (other.rows, other.columns)
    if not same or math.isclose(one.step, other.step, rel_tol=1e-6):
        return ''
    fixes = [
        f'if {right.step:g} m is right: '
        + edit_transform(wrong.file, (right.step, 0, wrong.left, 0, -right.step, wrong.top))
        for wrong, right in ((one, other), (other, one))
    ]
    return (
        f'both have {one.rows} x {one.columns} pixels, so one geotransform is wrong. Warp nothing, correct '
        f'it in the file: {fixes[0]}; {fixes[1]}'
    )


def edit_transform(file: object, transform: Sequence[float]) -> str:
    """The command that corrects the geotransform (a, b, c, d, e, f as rasterio has them) in place."""
    numbers = ', '.join(f'{number:.10g}' for number in transform)
    return f"rio edit-info --transform '[{numbers}]' {shlex.quote(str(file))}"
