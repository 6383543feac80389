"""Compatibility of data and model: every difference between two input contracts, in three classes.

`converted`: the values become the same (unit, scale, offset, band order, more bands than needed); done and
logged. `shift`: they stay different in kind (L1C for L2A, gamma0 for sigma0, other statistics) or are not
what was declared; refused unless named in `accept`. `fatal`: nobody can tell what the values are, or bands
are missing. A `note` is what cannot be compared, because one side does not say; `likely` what looks wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fusmae_jax import sensors
from fusmae_jax.config.run import Config, Modality
from fusmae_jax.errors import InputError, nearest, raise_all
from fusmae_jax.input import plausible, ranges, units
from fusmae_jax.input.contract import Contract, Group, Product
from fusmae_jax.input.normalise import measured, resolve, statistics, target_unit
from fusmae_jax.installed import program

# Facts of a product whose difference is a shift; the rest of a Product is told but changes no decision.
SHIFTS = (
    'calibration',
    'terrain_correction',
    'orbit',
    'speckle_filter',
    'border_noise',
    'thermal_noise',
    'level',
)
NOTES = ('dem', 'baseline', 'processor', 'platforms')
ACCEPTABLE = tuple(dict.fromkeys((*SHIFTS, 'resolution', 'statistics', *plausible.NAMES)))
# A band whose measured mean lies this many of the model's standard deviations from the model's mean, or
# whose spread differs by this factor, was not measured like the model's: an offset of 1000 left in (1.8), a
# decibel for a power (2.5). Other regions and seasons stay below 1.
FAR, WIDE = 1.5, 3.0
MIN_IMAGES = 64  # fewer say nothing of a region: snow or a cloud in one of six moves every optical mean
FAR_FEW = 3.0  # with fewer, and for radar alone: calm water is 2 away, and nothing that exists is further


class Difference(NamedTuple):
    """One difference between what a model expects and what a data set holds."""

    kind: Literal['converted', 'shift', 'fatal', 'note', 'likely']
    name: str  # 'unit', 'bands', or one of ACCEPTABLE and NOTES
    modality: str
    message: str


class Fitted(NamedTuple):
    """How a model reads a data set."""

    config: Config  # the model's, statistics settled
    notes: list[str]  # how the data differ from what the model knows, in words
    shifts: tuple[str, ...]  # the declared shifts among these, all of them accepted


def settle(
    config: Config,
    data: Contract,
    accept: Sequence[str],
    source: str,
    trained: Contract | None = None,
    looks: Sequence[Difference] = (),
) -> Fitted:
    """The configuration under which a model reads a data set.

    Args:
        config: the model's.
        data: the contract of what shall go in.
        accept: the declared shifts that are let through.
        source: what the error message calls the data.
        trained: the contract of what the model learned from; see `compare`.
        looks: what is wrong with the pixels (see `look`), weighed together with the contracts.

    Raises:
        InputError: with all that is fatal or a shift not accepted.
    """
    differences = [*looks, *compare(config, data, trained)]
    notes = check(differences, accept, source)
    shifts = tuple(dict.fromkeys(d.name for d in differences if d.kind == 'shift'))
    return Fitted(resolve(config, data), notes, shifts)


def check(differences: Iterable[Difference], accept: Sequence[str], source: str) -> list[str]:
    """Raises InputError with all that is fatal or a shift not accepted; returns the rest as lines to log."""
    for name in accept:
        if name not in ACCEPTABLE:
            raise InputError(f'accept: {name!r} is not a declared shift; {nearest(name, ACCEPTABLE)}')
    problems, lines = [], []
    for d in differences:
        if d.kind == 'fatal':
            problems.append(f'{d.modality}: {d.message}')
        elif d.kind == 'shift' and d.name not in accept:
            problems.append(f'{d.modality}: {d.message}; if that is meant, add {d.name!r} to `accept`')
        else:
            accepted = d.kind == 'shift' or (d.kind == 'likely' and d.name in accept)
            lines.append(f'{"accepted" if accepted else d.kind}: {d.modality}: {d.message}')
    raise_all(f'{source}: these data do not fit the model', problems)
    return lines


def compare(config: Config, data: Contract, trained: Contract | None = None) -> list[Difference]:
    """What differs between a model and a data set.

    Args:
        config: the model's modalities, statistics and `data.absent_bands`.
        data: the contract of the data that shall go in.
        trained: the contract of the data that the model learned from; None for a model yet to be trained,
            which is compared with the products that the sensor tables were measured on.
    """
    differences: list[Difference] = []
    for name, modality in config.model.modalities.items():
        groups = {field: g for field, g in data.groups.items() if g.modality == name}
        if not groups:
            known = sorted({g.modality for g in data.groups.values()})
            differences.append(Difference('fatal', 'bands', name, f'not in the data, which hold {known}'))
            continue
        differences += _bands(name, modality, groups, config.data.absent_bands)
        differences += _values(name, modality, groups)
        differences += _ranges(name, modality, groups, data)
        expected = _expected(name, modality, config.data.stats, trained)
        if expected is not None:
            differences += _products(name, expected, data.products.get(name, Product()))
        if trained is not None:
            differences += _resolutions(name, modality, trained, groups)
        differences += _statistics(name, modality, config.data.stats, data, trained)
    return differences


def look(
    name: str,
    images: Mapping[str, np.ndarray],
    groups: Mapping[str, Group],
    trained: Contract,
    noun: str = 'image',
) -> list[Difference]:
    """What is wrong, or looks so, with the pixels of a modality.

    Args:
        name: the modality.
        images: field -> stored (images, rows, columns, bands).
        groups: what each field holds.
        trained: the contract of the data that the model learned from.
        noun: what messages call one of the images.
    """
    samples = [ranges.sample(values, groups[field]) for field, values in images.items()]
    levels = {part.products[name].level for part in trained.each.values() if name in part.products}
    level = levels.pop() if len(levels) == 1 else ''
    return [
        Difference('shift' if doubt.certain else 'likely', doubt.name, name, doubt.message)
        for doubt in plausible.doubts(images, samples, level, noun)
    ]


def _bands(name: str, modality: Modality, groups: Mapping[str, Group], policy: str) -> list[Difference]:
    there = [band for group in groups.values() for band in group.bands]
    differences = []
    for band in modality.bands:
        if band in there:
            continue
        if policy == 'error':
            hint = f"{nearest(band, there)} (or choose data.absent_bands='mean' or 'drop')"
            differences.append(
                Difference('fatal', 'bands', name, f'band {band!r} is not in the data; {hint}')
            )
        else:
            done = 'filled with the mean' if policy == 'mean' else 'taken out of the model'
            differences.append(
                Difference('converted', 'bands', name, f'band {band!r} is not in the data: {done}')
            )
    if not set(modality.bands) & set(there):
        differences.append(Difference('fatal', 'bands', name, 'not one of its bands is in the data'))
    if extra := [band for band in there if band not in modality.bands]:
        differences.append(Difference('converted', 'bands', name, f'left out: {", ".join(extra)}'))
    return differences


def _values(name: str, modality: Modality, groups: Mapping[str, Group]) -> list[Difference]:
    """Unit, scale and offset of each group that the model reads."""
    differences = []
    for field, group in groups.items():
        if not set(group.bands) & set(modality.bands):
            continue
        wanted = target_unit(modality, group)
        if not group.unit:
            differences.append(Difference('fatal', 'unit', name, f'field {field!r} does not say its unit'))
        elif not units.convertible(group.unit, wanted):
            known = ', '.join(units.accepted(wanted))
            message = f'field {field!r} is in {group.unit!r}, the model needs {wanted!r} (from {known})'
            differences.append(Difference('fatal', 'unit', name, message))
        elif group.unit != wanted:
            message = f'field {field!r}: {group.unit} to {wanted}'
            differences.append(Difference('converted', 'unit', name, message))
        if group.scale != 1 or group.offset != 0:
            message = f'field {field!r}: stored value x {group.scale:g} {group.offset:+g}'
            differences.append(Difference('converted', 'scale', name, message))
    return differences


def _ranges(name: str, modality: Modality, groups: Mapping[str, Group], data: Contract) -> list[Difference]:
    """Bands whose mean no image of that unit can have."""
    differences = []
    for field, group in groups.items():
        limits, there = ranges.RANGES.get(group.unit), data.statistics.get(field)
        if limits is None or there is None:
            continue
        for band, mean, valid in zip(group.bands, there.mean, there.valid):
            physical = mean * group.scale + group.offset
            wanted = valid and band in modality.bands
            if wanted and not limits.lowest <= physical <= limits.highest:
                hint = limits.below if physical < limits.lowest else limits.above
                message = f'field {field!r}: the mean of {band} is {physical:.4g} {group.unit}; {hint}'
                differences.append(Difference('shift', 'range', name, message))
                break
    return differences


def _expected(name: str, modality: Modality, stats: str, trained: Contract | None) -> Product | None:
    """How the values were made that the model's statistics are of; None where nothing was stated."""
    if trained is not None:
        return trained.first.products.get(name)
    if stats == 'dataset' or modality.mean or not modality.sensor:
        return None  # the statistics are of these data, or of the user's own
    return sensors.SENSORS[modality.sensor].product


def _products(name: str, expected: Product, declared: Product) -> list[Difference]:
    result = []
    for fact in SHIFTS:
        wanted, there = getattr(expected, fact), getattr(declared, fact)
        if wanted == there or not wanted or (fact == 'orbit' and wanted == 'mixed'):
            continue
        if not there:
            message = f'{fact} is not stated in the data; the model knows {wanted}'
            result.append(Difference('note', fact, name, message))
        else:
            message = f'{fact} is {there} in the data, the model knows {wanted}'
            result.append(Difference('shift', fact, name, message))
    for fact in NOTES:
        wanted, there = getattr(expected, fact), getattr(declared, fact)
        if wanted and there and not (wanted == there or (fact == 'platforms' and set(there) <= set(wanted))):
            result.append(Difference('note', fact, name, f'{fact}: {there}, the model knows {wanted}'))
    return result


def _resolutions(
    name: str, modality: Modality, trained: Contract, groups: Mapping[str, Group]
) -> list[Difference]:
    """The ground that one image covers: a model's tokens have the size that they were trained at."""

    def extent(contract_groups: Iterable[Group]) -> set[tuple[float, float]]:
        return {
            (g.size[0] * g.resolution, g.size[1] * g.resolution)
            for g in contract_groups
            if g.modality == name and set(g.bands) & set(modality.bands)
        }

    seen = {size for part in trained.each.values() for size in extent(part.groups.values())}
    there = extent(groups.values())
    if not seen or there <= seen:
        return []
    message = f'an image covers {sorted(there)} m, the model knows {sorted(seen)} m'
    return [Difference('shift', 'resolution', name, message)]


def _statistics(
    name: str, modality: Modality, stats: str, data: Contract, trained: Contract | None
) -> list[Difference]:
    """Measured against used: the last guard against an offset, a unit or a scale that nobody declared."""
    if stats == 'dataset':
        message = "normalised with the data's own statistics, the model knows those of its training data"
        return [Difference('shift', 'statistics', name, message)] if trained is not None else []
    used_mean, used_std = statistics(modality)
    far = []
    for band, mean, std in zip(modality.bands, used_mean, used_std):
        there = measured(data, name, modality, band)
        if there is None or not there.images or not there.std > 0:
            continue
        few = there.images < MIN_IMAGES
        if few and modality.unit != 'dB' and modality.sensor != 's1':
            continue
        distance, ratio = abs(there.mean - mean) / std, max(there.std / std, std / there.std)
        if distance > (FAR_FEW if few else FAR) or (ratio > WIDE and not few):
            far.append(f'{band} {there.mean:.1f} +- {there.std:.1f} against {mean:.1f} +- {std:.1f}')
    if not far:
        return []
    message = (
        f'the data are not distributed as the statistics in use say ({"; ".join(far[:4])}): is the unit, an '
        f"offset or the scale wrong? `{program()} doctor` looks closer; stats='dataset' uses measured ones"
    )
    return [Difference('shift', 'statistics', name, message)]
