"""Whether an artefact gives what `encode` gives: the inputs of the comparison, and its report."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fusmae_jax.encoders.inputs import fields
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.export.function import given_fields, subsets
from fusmae_jax.input.compatibility import ACCEPTABLE
from fusmae_jax.input.contract import Group

LIMIT = 1e-5  # of the largest error of an output, relative to its largest value
Images = dict[str, np.ndarray]  # field -> (b, rows, columns, bands) float32
Run = Callable[[tuple[str, ...], Images], Mapping[str, np.ndarray]]  # sensors given, images -> features


class Samples(NamedTuple):
    """Real images to compare with: record fields, and what they hold."""

    title: str
    images: Mapping[str, np.ndarray]  # field -> (b, rows, columns, bands)
    groups: Mapping[str, Group]


@dataclasses.dataclass(frozen=True)
class Row:
    """One output of one case."""

    sensors: str
    case: str
    output: str
    max_abs: float
    relative: float  # to the largest value of what `encode` gives

    @property
    def ok(self) -> bool:
        """Within the limit; NaN is not."""
        return self.relative <= LIMIT


def make_images(model: Pretrained, samples: Samples | None) -> tuple[Images, str]:
    """The inputs of all sensors, and in words what they are.

    A band that the samples lack is made up; another grid than theirs gets their nearest pixels.
    """
    rng, notes, images = np.random.default_rng(0), [], {}
    for field, group in fields(model).items():
        count = len(next(iter(samples.images.values()))) if samples else 2
        bands = []
        for band in group.bands:
            real = _real(samples, group, band)
            if real is None:
                notes.append(f'{group.modality} {band} made up')
                shape, mean, std = (count, *group.size), *_statistics(model, group, band)
                real = rng.normal(mean, std, shape)
                real = np.maximum(real, 1.0) if group.unit in ('DN', 'reflectance', 'linear') else real
            elif real.shape[1:] != group.size:
                notes.append(f'{field} by the nearest pixels')
                rows, columns = (
                    np.arange(new) * old // new for new, old in zip(group.size, real.shape[1:], strict=True)
                )
                real = real[:, rows][:, :, columns]
            bands.append(real)
        images[field] = np.stack(bands, axis=-1).astype(np.float32)
    made_up = sum('made up' in note for note in notes) == sum(len(g.bands) for g in fields(model).values())
    if samples is None or made_up:
        return images, 'generated images'
    notes = [*dict.fromkeys(notes)]
    return images, samples.title + (f' ({", ".join(notes)})' if notes else '')


def _real(samples: Samples | None, group: Group, band: str) -> np.ndarray | None:
    """A band of the samples in the unit of the model, (b, rows, columns)."""
    for field, held in (samples.groups if samples else {}).items():
        if held.modality == group.modality and band in held.bands and held.unit == group.unit:
            assert samples is not None
            values = samples.images[field][..., held.bands.index(band)].astype(np.float32)
            return values * held.scale + held.offset
    return None


def _statistics(model: Pretrained, group: Group, band: str) -> tuple[float, float]:
    from fusmae_jax.input.normalise import statistics

    modality = model.config.model.modalities[group.modality]
    if band not in modality.bands:
        return 1.0, 0.1
    index, (mean, std) = modality.bands.index(band), statistics(modality)
    return float(mean[index]), float(std[index])


def cases(model: Pretrained, images: Images) -> list[tuple[tuple[str, ...], str, Images]]:
    """(sensors given, name, images): every set of sensors, a batch of one, pixels and a sensor missing."""
    result = []
    every = subsets(model)[-1]
    for given in subsets(model):
        of_these = {field: images[field] for field in given_fields(model, given)}
        result.append((given, 'whole', of_these))
    result.append((every, 'one image', {field: x[:1] for field, x in images.items()}))
    holes, groups = {field: x.copy() for field, x in images.items()}, fields(model)
    for field, x in holes.items():
        x[:, : math.ceil(x.shape[1] / 2), : math.ceil(x.shape[2] / 2)] = np.nan
        # The first image lacks one sensor, where there are several.
        if len(every) > 1 and groups[field].modality == every[0]:
            x[0] = np.nan
    return [*result, (every, 'parts missing', holes)]


def expected(model: Pretrained, images: Images) -> dict[str, np.ndarray]:
    """What `encode` gives for images by field; a float32 computation."""
    held = fields(model)
    by_sensor: dict[str, Any] = {}
    for field, x in images.items():
        # By field alone where the model knows fields; a sensor without records has one array.
        group = held[field]
        if field == group.modality and field not in model.contract.first.groups:
            by_sensor[field] = x
        else:
            by_sensor.setdefault(group.modality, {})[field] = x
    units = {group.modality: group.unit for group in held.values()}
    features = model.encode(by_sensor, units=units, accept=ACCEPTABLE)
    tokens = {f'tokens/{name}': x for name, x in features.tokens.items()}
    return {'cls': features.cls, 'pooled': features.pooled} | tokens


def compare(model: Pretrained, images: Images, run: Run) -> list[Row]:
    """A row for each output of each case."""
    rows = []
    for given, case, part in cases(model, images):
        reference, result = expected(model, part), run(given, part)
        missing = sorted(reference.keys() - result.keys())
        if missing:
            raise InputError(f'the artefact lacks the outputs {missing}')
        for name, x in reference.items():
            if not x.size:
                continue
            worst = float(np.max(np.abs(np.asarray(result[name], np.float64) - x)))
            size = max(float(np.max(np.abs(x))), float(np.finfo(np.float32).tiny))
            rows.append(Row('+'.join(given), case, name, worst, worst / size))
    return rows


def report(rows: list[Row], inputs: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The rows as JSON holds them, with what they were measured on."""
    # NaN is the worst of all, and max() would pass it over.
    relative = [math.inf if math.isnan(row.relative) else row.relative for row in rows]
    return {
        **about,
        'inputs': inputs,
        'limit': LIMIT,
        'max_abs': max(row.max_abs for row in rows),
        'max_relative': max(relative),
        'ok': all(row.ok for row in rows),
        'rows': [dataclasses.asdict(row) | {'ok': row.ok} for row in rows],
    }


def lines(content: Mapping[str, Any]) -> list[str]:
    """A few lines on a report, one for each set of sensors."""
    by_sensors: dict[str, list[dict[str, Any]]] = {}
    for row in content['rows']:
        by_sensors.setdefault(row['sensors'], []).append(row)
    result = [f'parity with encode on {content["inputs"]}; limit {content["limit"]:g} of the largest value']
    for sensors, rows in by_sensors.items():
        absolute, relative = (max(row[key] for row in rows) for key in ('max_abs', 'relative'))
        result.append(f'  {sensors:<12} max abs error {absolute:.1e}, relative {relative:.1e}')
    return result
