"""Positional tables of files: recognising sine-cosine ones, changing their grid, and turning their halves.

The first half of our features holds the row, as in MultiMAE; MAE and its descendants hold the column
first. The two differ by a fixed order of the features only, and every layer of a pre-norm transformer can
be written in another order of its residual features. So a column-first file is imported exactly, by
turning the residual features of all its weights by half the width.
"""

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

from fusmae_jax.models.positions import cubic_matrix, sincos_2d

Kind = Literal['row_first', 'column_first', 'learned']
TABLE = 'encoder/position_table'  # its path in our tree

# Our path (regular expression) -> axes that run over the residual features of encoder (e) and decoder (d).
_STREAMS: tuple[tuple[str, Mapping[int, str]], ...] = (
    (r'encoder/(patch/.*|position_table|cls)', {-1: 'e'}),
    (r'encoder/(norm/.*|(block1|blocks)/(norm\d?|attention/out|mlp/down)/.*)', {-1: 'e'}),
    (r'encoder/(block1|blocks)/(attention/qkv|mlp/up)/kernel', {-2: 'e'}),
    (r'decoders/[^/]+/project/kernel', {-2: 'e', -1: 'd'}),
    (r'decoders/[^/]+/(project/bias|mask_token|norm/.*)', {-1: 'd'}),
    (r'decoders/[^/]+/blocks/(norm\d|attention/out|mlp/down)/.*', {-1: 'd'}),
    (r'decoders/[^/]+/(modality/[^/]+|cross/(query|context)_norm|norm2|cross/out|mlp/down)/.*', {-1: 'd'}),
    (r'decoders/[^/]+/(cross/(query|kv)|mlp/up)/kernel', {-2: 'd'}),
    (r'decoders/[^/]+/(blocks/(attention/qkv|mlp/up)|predict)/kernel', {-2: 'd'}),
    (r'(encoder/block1/cross/[^/]+|xad/[^/]+/cross)/((query|context)_norm|out)/.*', {-1: 'e'}),
    (r'(encoder/block1/cross/[^/]+|xad/[^/]+/cross)/(query|kv)/kernel', {-2: 'e'}),
    (r'xad/[^/]+/(norm|mlp/down)/.*', {-1: 'e'}),
    (r'xad/[^/]+/mlp/up/kernel', {-2: 'e'}),
)


def recognise(table: np.ndarray, grid: tuple[int, int]) -> Kind:
    """Whether a table (n, d) on `grid` is sine-cosine, and in which order its halves are."""
    n, width = table.shape
    if width % 4 == 0 and n == grid[0] * grid[1]:
        ours = sincos_2d(grid, width)
        if np.allclose(table, ours, atol=1e-5):
            return 'row_first'
        if np.allclose(table, np.roll(ours, width // 2, axis=1), atol=1e-5):
            return 'column_first'
    return 'learned'


def turn(params: Mapping[str, np.ndarray], streams: str) -> dict[str, np.ndarray]:
    """Flat parameters with the residual features of the named streams ('e', 'd' or 'ed') turned by half."""
    turned = {}
    for path, x in params.items():
        for pattern, axes in _STREAMS:
            if re.fullmatch(pattern, path):
                for axis, stream in axes.items():
                    if stream in streams:
                        x = np.roll(x, x.shape[axis] // 2, axis)
                break
        turned[path] = x
    return turned


def interpolate(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """A table (rows*columns, d) on another grid, bicubic as `torch.nn.functional.interpolate` does it.

    Cubic convolution with a = -0.75, half-pixel centres, clamped borders, no antialiasing; float64 inside,
    the table's dtype outside. The same grid returns the table itself.
    """
    if tuple(old) == tuple(new):
        return table
    rows, columns = (cubic_matrix(a, b) for a, b in zip(old, new))
    x = table.astype(np.float64).reshape(*old, -1)
    x = np.einsum('ir,jc,rcd->ijd', rows, columns, x)
    return x.reshape(new[0] * new[1], -1).astype(table.dtype)
