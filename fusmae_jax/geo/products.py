"""Products that hold an image in several files: which rasters they stand for, one for each pixel size.

A raster of a product has a path like a file in it, `NAME.SAFE/s2_10m` or `item.json/s1_10m`, so that whatever
passes paths on, to another process too, need know nothing of products.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from fusmae_jax.geo import UnusableError, item, safe
from fusmae_jax.geo.stack import Stack

_PART = re.compile(r'(.+)_([^_]+)')  # a sensor, and the name of one of its stacks


def is_product(path: Path) -> bool:
    """Whether a path is a product of several files: a folder .SAFE, or an item of STAC."""
    return safe.is_safe(path) or item.is_item(path)


def rasters_of(path: Path, modality: str) -> list[Path]:
    """The rasters of one sensor that a path of a user stands for: itself, if it is no product.

    Raises UnusableError for a product without bands of the sensor.
    """
    return [path / f'{modality}_{stack.name}' for stack in _stacks(path, modality)] or [path]


def check_part(file: Path) -> None:
    """Raises UnusableError for a measurement of Sentinel-1 taken out of its product, as for the product."""
    if file.parent.name == 'measurement' and safe.is_safe(file.parent.parent):
        safe.stacks(file.parent.parent)


def stack_of(path: Path) -> Stack | None:
    """What a path among those of `rasters_of` stands for; None for a path of a file."""
    match = _PART.fullmatch(path.name)
    if not match or path.exists() or not is_product(path.parent):
        return None
    for stack in _stacks(path.parent, match[1]):
        if stack.name == match[2]:
            return stack
    raise UnusableError('', f'no bands of {match[2]} in {path.parent.name}', 'give the product itself')


def _stacks(path: Path, modality: str) -> Sequence[Stack]:
    if safe.is_safe(path):
        stacks = safe.stacks(path)
        if modality != 's2':
            raise UnusableError('', 'a product of Sentinel-2', 'give it as Sentinel-2')
        return stacks
    return item.stacks(path, modality) if item.is_item(path) else ()
