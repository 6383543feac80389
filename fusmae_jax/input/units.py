"""Units of stored values, which of them are measurements, and how units become each other.

One table and one rule for training, statistics and use, on the host and inside jit alike.

Radar backscatter: `linear` is power, `amplitude` its square root, `dB` 10 log10 of the power. Optical: `DN`
is reflectance x 10,000, as Sentinel-2 products store it (the sensor's offset already taken off).
"""

from typing import Any

import numpy as np

from fusmae_jax.input.contract import Group

Values = Any  # an array of NumPy or of jax

SCALES = {('reflectance', 'DN'): 1e4, ('DN', 'reflectance'): 1e-4}  # what a value is multiplied with
LOGARITHMS = {('linear', 'dB'): 10.0, ('amplitude', 'dB'): 20.0}  # or its log10
CONVERSIONS = (*LOGARITHMS, *SCALES)  # pairs of unit given and unit wanted


def convertible(given: str, wanted: str) -> bool:
    """Whether values in one unit can be turned into another."""
    return given == wanted or (given, wanted) in CONVERSIONS


def convert(values: Values, given: str, wanted: str) -> Values:
    """Values in the unit `wanted`; the pair must be `convertible`.

    A power of 0 or less has no decibels and becomes NaN, which is invalid.
    """
    if given == wanted:
        return values
    xp = values.__array_namespace__()
    dtype = values.dtype
    if factor := SCALES.get((given, wanted)):
        return values * xp.asarray(factor, dtype=dtype)
    positive = values > 0
    # The inner `where` keeps log10 away from them, so that no -inf arises even for an instant.
    logarithm = xp.log10(xp.where(positive, values, xp.ones_like(values)))
    return xp.where(positive, logarithm * xp.asarray(LOGARITHMS[given, wanted], dtype=dtype), np.nan)


def accepted(wanted: str) -> list[str]:
    """The units that can be given where `wanted` is needed."""
    return [wanted, *(given for given, target in CONVERSIONS if target == wanted)]


def validity(stored: Values, group: Group) -> Values:
    """Which stored values are a measurement, bool like `stored`; NaN, inf and nodata are none."""
    xp, dtype = stored.__array_namespace__(), np.dtype(stored.dtype)
    decimals = dtype.kind == 'f'
    valid = xp.isfinite(stored) if decimals else xp.ones(stored.shape, dtype=bool)
    for value in group.nodata:
        # As the stored type: against a float, integers of a whole image would be turned into floats first.
        if decimals or (value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max):
            valid = valid & (stored != xp.asarray(value if decimals else int(value), dtype=dtype))
    return valid
