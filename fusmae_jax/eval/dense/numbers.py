"""Maps of numbers to predict: how a head learns them, and the measure of a split.

As `eval/regression.py` has it for whole images: a head learns numbers of mean 0 and deviation 1 over the
pixels of its labelled records, and says them in the units of the data from then on, on disk too. RMSE, MAE
and R2 are over all pixels of a split that have a number. What has to be known of the truth are its moments by
record (`input/number_maps.py`), which are in the index; a record is reduced to two sums of errors, whatever
its size.
"""

from typing import Any

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense.heads import Kind
from fusmae_jax.eval.dense.metrics import Regression
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.regression import Predicted
from fusmae_jax.input.number_maps import joined


def scale_of(moments: np.ndarray, name: str) -> Scale:
    """Mean and deviation of the numbers of the labelled records.

    Args:
        moments: (records, 3), of each.
        name: of the quantity.

    Raises:
        InputError: no two different numbers to learn from.
    """
    pixels, mean, squares = joined(moments)
    if not pixels or not squares:
        what = f'{mean:g} alone' if pixels else 'no number'
        raise InputError(
            f'{name}: {len(moments):,} labelled records have {what}, so there is nothing to learn; take more '
            'labels'
        )
    return Scale(*(np.asarray(x, np.float32) for x in (mean, np.sqrt(squares / pixels))))


def in_units(head: Any, kind: Kind, scale: Scale) -> Any:
    """A head of standardised numbers as one that says them in the units of the data.

    Of one head, or of several along the first axis. All kinds end in a linear layer, and interpolation leaves
    a constant what it is.
    """
    last = head if kind in ('linear', 'shuffle') else head['out']
    moved = {
        'kernel': last['kernel'] * scale.std,
        'bias': last['bias'] * scale.std + scale.mean,
    }
    return moved if last is head else {**head, 'out': moved}


def measured(errors: Any, moments: np.ndarray, name: str) -> Predicted:
    """RMSE, MAE and R2 of a split.

    Args:
        errors: (records, 2) sums of squared and of absolute errors.
        moments: (records, 3) of the truth.
        name: of the quantity.

    Raises:
        InputError: errors that are not finite, or no pixel with a number.
    """
    errors = np.asarray(errors, np.float64)
    if not np.isfinite(errors).all():
        raise InputError(f'{name}: errors are not finite; has the model diverged?')
    total, mean, _ = joined(moments)
    if not total:
        raise InputError(f'{name}: no pixel has a number')
    pixels, values = moments[:, 0], moments[:, 0] * (moments[:, 1] - mean)
    squares = moments[:, 2] + pixels * (moments[:, 1] - mean) ** 2
    truth = Regression(errors[:, 0], values, squares, pixels.astype(np.int64))
    return Predicted((name,), (truth,), errors[:, 1:])
