"""Patches from GeoTIFFs of any size: whole images if they are small, else windows spread over them."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rasterio.windows import Window

from fusmae_jax.geo.grid import Grid, common, window_onto

from . import tiffs
from .raw import Item, Loaded, spread
from .tiffs import Header

WINDOW = 128  # pixels a side of a window
WHOLE = 512  # images up to this many pixels a side are looked at whole

Files = Mapping[str, Sequence[Header]]  # modality -> the files of one piece of ground


class Piece(NamedTuple):
    """A part of a file."""

    file: Header
    window: Window


def items(name: str, files: Files, most: int) -> list[Item]:
    """Up to `most` patches of one piece of ground (twice that where its images share none).

    The grids of the whole files stand beside the first patch, whatever that shows.
    """
    every = [head for heads in files.values() for head in heads]
    if all(max(head.grid.rows, head.grid.columns) <= WHOLE for head in every):
        whole = {
            m: [Piece(h, Window(0, 0, h.grid.columns, h.grid.rows)) for h in heads]
            for m, heads in files.items()
        }
        return [Item(name, load=functools.partial(_load, whole, files), sensors=tuple(files))]
    patches = _patches(files, most)
    return [
        Item(
            f'{name} window {i}'.strip(),
            load=functools.partial(_load, patch, {} if i else files),
            sensors=tuple(files),
        )
        for i, patch in enumerate(patches)
    ]


def _load(pieces: Mapping[str, Sequence[Piece]], whole: Files) -> Loaded:
    images: dict[str, dict[str, np.ndarray]] = {}
    for modality, parts in pieces.items():
        for file, window in parts:
            images.setdefault(modality, {}).update(tiffs.load_window(file, window))
    grids = {m: {band: head.grid for head in heads for band in head.bands} for m, heads in whole.items()}
    return images, grids


def _patches(files: Files, most: int) -> list[dict[str, list[Piece]]]:
    shared = common([head.grid for heads in files.values() for head in heads])
    if shared is None:
        # Each sensor by itself: their images show nothing together.
        return [
            {modality: [Piece(head, window_onto(head.grid, grid, window)) for head in heads]}
            for modality, heads in files.items()
            if (grid := common([head.grid for head in heads]) or heads[0].grid)
            for window in _windows(grid, most)
        ]
    return [
        {
            m: [Piece(head, window_onto(head.grid, shared, window)) for head in heads]
            for m, heads in files.items()
        }
        for window in _windows(shared, most)
    ]


def _windows(grid: Grid, most: int) -> list[Window]:
    """Up to `most` windows, evenly spread."""
    height, width = min(WINDOW, grid.rows), min(WINDOW, grid.columns)
    corners = itertools.product(
        range(0, grid.rows - height + 1, height), range(0, grid.columns - width + 1, width)
    )
    return [Window(column, row, width, height) for row, column in spread(list(corners), most)]
