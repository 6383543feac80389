"""Checks of an input contract alone: what its statistics give away without a single pixel.

They serve where no pixels are at hand, as with a checkpoint. Where there are some, the other checks see more.
"""

from collections.abc import Iterator
from typing import NamedTuple

from fusmae_jax.input.contract import Contract
from fusmae_jax.input.plausible import OFFSET_LIMIT

from .evidence import Evidence
from .findings import Finding
from .radar import RATIO, USUAL
from .summary import WRAPPED

LOST = 0.05  # share of invalid pixels over a split that is worth a warning


class Band(NamedTuple):
    """The statistics of one band, in its unit (scale and offset of the contract applied)."""

    name: str
    unit: str
    mean: float
    std: float
    minimum: float
    maximum: float
    valid: int
    invalid: int


def check(evidence: Evidence) -> Iterator[Finding]:
    """Findings about units and statistics of the contract."""
    if evidence.contract is None:
        return
    for contract in evidence.contract.each.values():
        yield from _units(contract)
        s1, s2 = bands(contract, 's1'), bands(contract, 's2')
        yield from _spread([*s1.values(), *s2.values()])
        if not any(sensor.images for sensor in evidence.sensors.values()):
            yield from _radar(s1)
            yield from _optical(s2)


def bands(contract: Contract, modality: str) -> dict[str, Band]:
    """Statistics of the bands of a sensor, as far as the contract has any."""
    result = {}
    for field, group in contract.groups.items():
        measured = contract.statistics.get(field)
        if group.modality != modality or measured is None or not measured.mean:
            continue
        for i, name in enumerate(group.bands):
            level = (measured.mean[i], measured.minimum[i], measured.maximum[i])
            mean, low, high = (value * group.scale + group.offset for value in level)
            std, counts = measured.std[i] * abs(group.scale), (measured.valid[i], measured.invalid[i])
            result[name] = Band(name, group.unit, mean, std, low, high, *counts)
    return result


def _units(contract: Contract) -> Iterator[Finding]:
    silent = [field for field, group in contract.groups.items() if group.modality and not group.unit]
    if silent:
        yield Finding(
            'contract.unit',
            'error',
            'The contract does not say the unit of the values',
            ', '.join(silent),
            'state it (dB, linear or amplitude; DN or reflectance) where the data set is converted',
            needs='metadata',
        )


def _spread(bands: list[Band]) -> Iterator[Finding]:
    flat = [band.name for band in bands if band.valid > 1 and band.std == 0]
    empty = [band.name for band in bands if not band.valid]
    for names, words in (
        (flat, 'one value in the whole split'),
        (empty, 'no valid pixel in the whole split'),
    ):
        if names:
            yield Finding(
                'contract.statistics',
                'error',
                f'Bands with {words}',
                ', '.join(names),
                'convert again from data that have these bands; normalising with these statistics divides '
                'by zero',
                needs='metadata',
            )
    lost = [b for b in bands if b.valid and b.invalid > LOST * (b.valid + b.invalid)]
    if lost:
        shares = ', '.join(f'{b.name} {b.invalid / (b.valid + b.invalid):.1%}' for b in lost)
        yield Finding(
            'contract.invalid',
            'warning',
            'Many pixels are invalid (NaN, infinite or nodata)',
            shares,
            'leave out records with few valid pixels, or find out why they are missing',
            needs='metadata',
        )


def _radar(bands: dict[str, Band]) -> Iterator[Finding]:
    decibel = {name: band for name, band in bands.items() if band.unit == 'dB'}
    for name, band in decibel.items():
        low, high = USUAL.get(name, (-35.0, 0.0))
        if not low - 5 <= band.mean <= high + 3:
            wrapped = ': negative dB wrapped into unsigned integers' if band.mean > WRAPPED else ''
            yield Finding(
                's1.unit',
                'error',
                f'Sentinel-1: {name} is not in dB{wrapped}',
                f'mean {band.mean:.4g}, from {band.minimum:.4g} to {band.maximum:.4g}; land lies between '
                f'{low:g} and {high:g} dB',
                'find the unit of the data and state it; convert again',
                needs='metadata',
            )
    if {'VV', 'VH'} <= decibel.keys():
        ratio = decibel['VV'].mean - decibel['VH'].mean
        if not RATIO[0] <= ratio <= RATIO[1]:
            swapped = ratio < 0
            yield Finding(
                's1.order' if swapped else 's1.ratio',
                'error' if swapped else 'warning',
                'Sentinel-1: VV and VH are swapped'
                if swapped
                else 'Sentinel-1: VV and VH do not stand in the relation that land has',
                f'mean VV - VH is {ratio:.1f} dB over the split; {RATIO[0]:g} to {RATIO[1]:g} dB is usual',
                'name the bands in the order in which they are stored, and convert again',
                needs='metadata',
            )


def _optical(bands: dict[str, Band]) -> Iterator[Finding]:
    numbers = [band for name, band in bands.items() if band.unit == 'DN' and band.valid and name != 'B10']
    if not numbers:
        return
    means, lowest = [band.mean for band in numbers], min(band.minimum for band in numbers)
    if max(means) < 50 or max(means) > 20_000:
        yield Finding(
            's2.scale',
            'error',
            'Sentinel-2: the values are not reflectance x 10,000',
            f'means from {min(means):.4g} to {max(means):.4g}; land has hundreds to thousands',
            'state the unit and scale of the data, and convert again',
            needs='metadata',
        )
    elif lowest >= OFFSET_LIMIT:
        yield Finding(
            's2.offset',
            'error',
            'Sentinel-2: the offset of +1000 (processing baseline 04.00 and later) is in the values',
            f'no pixel of any band lies below {lowest:.0f}',
            'declare offset=-1000, and convert again',
            needs='metadata',
        )
