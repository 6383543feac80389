"""The map of a scene from all of its windows in memory, which `predict` has to give too."""

import jax
import numpy as np

from fusmae_jax.embed.stream import _read
from fusmae_jax.embed.windows import taper


def whole(job):
    """All windows in memory, merged in one array of the size of the scene."""
    layout, results = job.layout, {}
    for row, column in layout.positions:
        windows = _read(job, row, column)
        encoded = None if windows is None else jax.device_get(job.encoder(windows))
        for k in range(layout.batch[0] * layout.batch[1]):
            at = row + k // layout.batch[1], column + k % layout.batch[1]
            if encoded is not None and layout.inside(*at):
                results[at] = encoded[0][k], encoded[1][k]
    rows, columns = layout.rows, layout.columns
    shape = tuple((a.windows - 1) * a.stride + a.grid for a in (rows, columns))
    sums, weights = np.zeros((*shape, job.width), np.float32), np.zeros(shape, np.float32)
    for row, column in sorted(results):
        values, valid = results[row, column]
        weight = taper(rows, row, 'mean')[:, None] * taper(columns, column, 'mean')[None] * valid
        here = np.s_[row * rows.stride :, column * columns.stride :]
        sums[here][: rows.grid, : columns.grid] += values * weight[..., None]
        weights[here][: rows.grid, : columns.grid] += weight
    inside = np.s_[rows.lead : rows.lead + rows.cells, columns.lead : columns.lead + columns.cells]
    valid = weights[inside] > 0
    divisor = np.where(valid, weights[inside], np.float32(np.nan))[..., None]
    return sums[inside] / divisor, valid
