"""Coverage of images by tiles: how much these leave out or fill up, and a tile that wastes less."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from .layout import starts
from .settings import Archive

ENOUGH = 0.005  # a share that is worth a word
SIZES = 200  # sizes of images that a better tile is looked for with, the most frequent ones

Sizes = Mapping[tuple[int, int], int]  # (rows, columns) in pixels of the finest file -> images of that size


class Waste(NamedTuple):
    """Shares of pixels, 0 to 1."""

    lost: float  # of all images, that no tile has
    filled: float  # of all tiles, that no image has


def waste(archive: Archive, sizes: Sizes) -> Waste:
    """What the tiles of the images leave out and fill up."""
    seen = spanned = total = 0
    for (rows, columns), count in sizes.items():
        (high, down), (wide, across) = _side(archive, rows), _side(archive, columns)
        seen += count * high * wide
        spanned += count * down * across
        total += count * rows * columns
    return Waste(1 - seen / total, 1 - seen / spanned if spanned else 0.0)


def _side(archive: Archive, length: int) -> tuple[int, int]:
    """Pixels of a side of an image that are in a tile, and that the tiles span together."""
    corners = starts(archive, length)
    if not corners:
        return 0, 0
    span = len(corners) * archive.tile if archive.step >= archive.tile else corners[-1] + archive.tile
    return span - max(0, corners[-1] + archive.tile - length), span


def better(archive: Archive, sizes: Sizes, multiple: int = 1) -> int:
    """The multiple of `multiple` that wastes least as a tile; of those within 1 % the nearest to the tile."""
    some = dict(Counter(sizes).most_common(SIZES))
    largest = min(2 * archive.tile, max(max(size) for size in some))
    every = range(multiple, max(largest, multiple) + 1, multiple)
    tiles = [tile for tile in every if 2 * tile >= archive.tile] or [every[-1]]
    cost = {tile: max(waste(dataclasses.replace(archive, tile=tile), some)) for tile in tiles}
    least = min(cost.values())
    return min((t for t in tiles if cost[t] <= least + 0.01), key=lambda t: (abs(t - archive.tile), t))


def note(archive: Archive, sizes: Sizes, multiple: int = 1) -> str:
    """One sentence on what the tiles waste and which tile wastes less; '' where there is nothing to say."""
    share = waste(archive, sizes)
    if max(share) < ENOUGH:
        return ''
    (rows, columns), _ = Counter(sizes).most_common(1)[0]
    others = f' and {len(sizes) - 1} other sizes' if len(sizes) > 1 else ''
    facts = [
        f'leave out {share.lost:.1%} of the pixels' if share.lost >= ENOUGH else '',
        f'are filled up by {share.filled:.1%}' if share.filled >= ENOUGH else '',
    ]
    text = (
        f'tiles of {archive.tile} pixels (stride {archive.step}) in images of {rows} x {columns}{others} '
        f'{" and ".join(filter(None, facts))}'
    )
    tile = better(archive, sizes, multiple)
    less = waste(dataclasses.replace(archive, tile=tile), sizes)
    if max(less) > max(share) - ENOUGH:
        return text
    return f'{text}; config.archive.tile={tile} {_of(less)}'


def _of(share: Waste) -> str:
    return f'would waste {max(share):.1%}' if max(share) >= ENOUGH else 'would waste nothing'
