"""What a file is, by its first bytes, before GDAL sees it; and what GDAL would open beside it."""

import os
from pathlib import Path

from fusmae_jax.geo import UnusableError

TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
JP2 = (b'\0\0\0\x0cjP  \r\n\x87\n',)
MAKE = 'make it one: rio convert IN.tif OUT.tif'


def check_source(file: Path) -> None:
    """Raises UnusableError for what GDAL would not open as a GeoTIFF, or with something else beside it."""
    if not begins(file, *TIFF):
        raise UnusableError('', 'is no GeoTIFF', MAKE)
    check_beside(file)


def check_jp2(file: Path) -> None:
    """The same for JPEG 2000, which nothing but a product of Sentinel-2 may hold."""
    if not begins(file, *JP2):
        raise UnusableError('', f'{file.name} in it is no JPEG 2000', 'download the product again')
    check_beside(file)


def check_beside(file: Path) -> None:
    """Raises UnusableError for a file beside a raster that GDAL would open and that is no GeoTIFF."""
    # As text: this is done for every tile that is read.
    for other in (f'{file}.msk', f'{file}.MSK', f'{file}.ovr', f'{file}.OVR'):
        if os.path.isfile(other) and not begins(other, *TIFF):
            raise UnusableError('', f'{other} beside it is no GeoTIFF', f'remove {other}')
    # ERDAS files name further files.
    for other in (f'{file}.aux', f'{os.path.splitext(file)[0]}.aux'):
        if os.path.isfile(other) and begins(other, b'EHFA_HEADER_TAG'):
            raise UnusableError('', f'{other} beside it is of ERDAS', f'remove {other}')


def begins(file: Path | str, *starts: bytes) -> bool:
    """Whether a file begins with one of some bytes."""
    try:
        with open(file, 'rb') as stream:
            return stream.read(16).startswith(starts)
    except OSError as error:
        raise UnusableError('', f'{file} cannot be read: {error}', 'see to its permissions') from error
