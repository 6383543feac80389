"""Units of stored values and how they become each other; the same table for training and for use.

Radar backscatter: `linear` is power, `amplitude` its square root, `dB` 10 log10 of the power. Optical: `DN`
is reflectance x 10,000, as Sentinel-2 products store it (the sensor's offset already taken off).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Values = Float[Array, '...']


def _decibel(values: Values, factor: float) -> Values:
    """`factor` log10 of positive values; the others have no logarithm and become NaN, which is invalid."""
    positive = values > 0
    # The inner `where` keeps log10 away from them, so that no -inf arises even for an instant.
    logarithm = jnp.log10(jnp.where(positive, values, jnp.ones_like(values)))
    return jnp.where(positive, logarithm * jnp.asarray(factor, values.dtype), jnp.nan)


def _scaled(factor: float) -> Callable[[Values], Values]:
    return lambda values: values * jnp.asarray(factor, values.dtype)


CONVERSIONS: dict[tuple[str, str], Callable[[Values], Values]] = {
    ('linear', 'dB'): lambda values: _decibel(values, 10.0),
    ('amplitude', 'dB'): lambda values: _decibel(values, 20.0),
    ('reflectance', 'DN'): _scaled(10_000.0),
    ('DN', 'reflectance'): _scaled(1e-4),
}


def convertible(given: str, wanted: str) -> bool:
    """Whether values in one unit can be turned into another."""
    return given == wanted or (given, wanted) in CONVERSIONS


def convert(values: Values, given: str, wanted: str) -> Values:
    """Values in the unit `wanted`; the pair must be `convertible`."""
    return values if given == wanted else CONVERSIONS[given, wanted](values)


def accepted(wanted: str) -> list[str]:
    """The units that can be given where `wanted` is needed."""
    return [wanted, *(given for given, target in CONVERSIONS if target == wanted)]
