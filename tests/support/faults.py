"""Evidence without a fault in the form of each layout, and named faults that spoil it.

A fault takes evidence, a strength and a random generator, and returns spoilt evidence. What a strength means
stands at each fault; `share` is that of the patches that are hit. Rules were developed on the seeds and
strengths of `DEVELOPED`, and are judged on those of `JUDGED` alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fusmae_jax.shipped.data.bigearthnet_mm.labels import CLASSES_43
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA as BIGEARTHNET
from fusmae_jax.shipped.data.doctor.evidence import Declared, Evidence, Grid, Sensor, Split, declared
from fusmae_jax.shipped.data.generate.classes import CLASSES
from fusmae_jax.shipped.data.generate.scene import Scene, SceneConfig, labels, resampled, scene
from fusmae_jax.shipped.data.sen12ms.schema import SCHEMA as SEN12MS
from fusmae_jax.shipped.data.ssl4eo_s12.schema import OFFSET
from fusmae_jax.shipped.data.ssl4eo_s12.schema import schema as ssl4eo

LAYOUTS = ('bigearthnet', 'sen12ms', 'ssl4eo_s12_1.1', 'ssl4eo_s12_1.0', 'paired_folder')
SEEDS = {'developed': (1, 2, 3), 'judged': (8101, 8102, 8103)}
USER_BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')


def clean(layout: str, seed: int, patches: int = 64, size: int = 120) -> Evidence:
    """Evidence of generated scenes in the form of a layout. BigEarthNet v1 and v2 have the same images."""
    level = 'L1C' if layout == 'sen12ms' else 'L2A'
    scenes = [scene(SceneConfig(seed=seed, size=size, level=level), i) for i in range(patches)]
    makers = {'s1': _radar, 's2': _optical}
    sensors = {}
    for modality, about in _declared(layout).items():
        images = tuple(makers[modality](layout, about, one) for one in scenes)
        grids = tuple(_grids(image, index, size) for index, image in enumerate(images))
        sensors[modality] = Sensor(modality, about, images, grids)
    named = 'classes' if layout == 'sen12ms' else 'labels'
    return Evidence(
        layout,
        f'generated, as {layout}',
        sensors,
        tuple(f'patch {i}' for i in range(patches)),
        total=patches,
        splits=_splits(seed),
        labels={named: [tuple(CLASSES[i].corine for i in labels(one)) for one in scenes]},
        classes={named: CLASSES_43},
        slack=26.0 if layout == 'ssl4eo_s12_1.0' else 0.5,
    )


def _declared(layout: str) -> dict[str, Declared]:
    if layout == 'paired_folder':
        return {'s1': Declared(('VV', 'VH')), 's2': Declared(USER_BANDS)}
    schemas = {
        'bigearthnet': BIGEARTHNET,
        'sen12ms': SEN12MS,
        'ssl4eo_s12_1.1': ssl4eo('1.1', 'S2L2A'),
        'ssl4eo_s12_1.0': ssl4eo('1.0', 'S2L2A'),
    }
    about = schemas[layout]
    return {m: declared(m, about.groups, about.products) for m in ('s1', 's2')}


def _radar(layout: str, about: Declared, one: Scene) -> dict[str, np.ndarray]:
    dtype = np.float16 if layout == 'ssl4eo_s12_1.1' else np.float32
    return {band: one.s1[band].astype(dtype) for band in about.bands}


def _optical(layout: str, about: Declared, one: Scene) -> dict[str, np.ndarray]:
    images = one.s2 if layout in ('bigearthnet', 'ssl4eo_s12_1.0') else resampled(one)
    if layout == 'ssl4eo_s12_1.1':
        images = {band: (image.astype(np.int32) + OFFSET).astype(np.int16) for band, image in images.items()}
    return {band: images[band] for band in about.bands}


def _grids(image: Mapping[str, np.ndarray], index: int, size: int) -> dict[str, Grid]:
    left, top, extent = 300_000.0 + index * size * 10, 5_900_040.0, size * 10
    return {
        band: Grid(32633, left, top, extent / len(pixels[0]), extent / len(pixels), *pixels.shape)
        for band, pixels in image.items()
    }


def _splits(seed: int) -> dict[str, Split]:
    """Splits of their own ground; 45 % of passes are descending, by chance, in all of them."""
    rng = np.random.default_rng((seed, 7))
    splits, first = {}, 0
    for name, records in (('train', 600), ('val', 200), ('test', 200)):
        ids = np.array([f'r{i}' for i in range(first, first + records)])
        places = np.stack(
            [np.full(records, 32633), 1200.0 * np.arange(first, first + records), np.zeros(records)], 1
        )
        hours = np.where(rng.random(records) < 0.45, 6.0, 18.0) + rng.normal(0, 0.3, records)
        splits[name] = Split(records, ids, places, hours)
        first += records
    return splits


# ---- how faults are made

Images = dict[str, np.ndarray]
Apply = Callable[[Evidence, float, np.random.Generator], Evidence]


class Strengths(NamedTuple):
    """What a fault is tried with; None: there is no marginal form of it."""

    plain: float
    marginal: float | None = None


@dataclasses.dataclass(frozen=True)
class Fault:
    """A named fault, the findings that count as having found it, and its strengths."""

    name: str
    codes: tuple[str, ...]
    apply: Apply
    unit: str  # of the strength, in words
    developed: Strengths
    judged: Strengths
    layouts: tuple[str, ...] = LAYOUTS

    def strengths(self, stage: str) -> Strengths:
        """Those of 'developed' or 'judged'."""
        return self.developed if stage == 'developed' else self.judged


def found(fault: Fault, findings: Any) -> bool:
    """Whether one of the fault's findings is a warning or an error."""
    return any(f.code in fault.codes and f.severity in ('warning', 'error') for f in findings)


def with_sensor(evidence: Evidence, modality: str, **changes: Any) -> Evidence:
    """The evidence with other images, grids or declarations of one sensor."""
    sensor = dataclasses.replace(evidence.sensors[modality], **changes)
    return dataclasses.replace(evidence, sensors={**evidence.sensors, modality: sensor})


def hit(evidence: Evidence, share: float, rng: np.random.Generator) -> set[int]:
    """Which patches a fault hits: that share of them, at least one."""
    patches = len(evidence.names)
    return set(rng.permutation(patches)[: max(1, round(share * patches))].tolist())


def on_images(modality: str, change: Callable[..., Images], by_share: bool = True) -> Apply:
    """A fault that changes the images of patches: `change(image, declared, strength, rng)`."""

    def apply(evidence: Evidence, strength: float, rng: np.random.Generator) -> Evidence:
        sensor = evidence.sensors[modality]
        at = hit(evidence, strength if by_share else 1.0, rng)
        images = tuple(
            change(dict(image), sensor.declared, strength, rng) if i in at else image
            for i, image in enumerate(sensor.images)
        )
        return with_sensor(evidence, modality, images=images)

    return apply


def each(change: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]) -> Callable[..., Images]:
    """A change of every band by itself."""

    def every(image: Images, about: Declared, strength: float, rng: np.random.Generator) -> Images:
        return {band: change(pixels, strength, rng) for band, pixels in image.items()}

    return every


def border(image: np.ndarray, width: float, value: float) -> np.ndarray:
    """Fills `width` (share of a side) at the left edge."""
    result = image.copy()
    result[:, : max(1, round(width * image.shape[1]))] = value
    return result


def with_split(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    """The evidence with other facts about one split."""
    splits = {**evidence.splits, name: dataclasses.replace(evidence.splits[name], **changes)}
    return dataclasses.replace(evidence, splits=splits)


def normalised(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """With statistics near those of the bands of a sensor in BigEarthNet."""
    mean, std = (-16.0, 5.3) if x.min() < 0 else (1400.0, 1100.0)
    return ((x.astype(np.float32) - mean) / std).astype(np.float32)


def own_range(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Each band of each image from 0 to 1 by its own extremes."""
    values = x.astype(np.float32)
    return (values - values.min()) / (values.max() - values.min())


SHARE = 'of the patches'
SIDE = 'of the side'


def fault(name: str, code: str, apply: Apply, unit: str, developed: tuple, judged: tuple, **more) -> Fault:
    """A fault of one finding; `developed` and `judged` are (plain, marginal) or (plain,)."""
    return Fault(name, (code,), apply, unit, Strengths(*developed), Strengths(*judged), **more)


def whole(name: str, codes: tuple[str, ...], change: Callable, **more) -> Fault:
    """A fault of whole patches of the sensor of `codes`: plain in all or half of them, marginal in a few."""
    apply = on_images(codes[0][:2], change)
    return Fault(name, codes, apply, SHARE, Strengths(1.0, 0.06), Strengths(0.7, 0.04), **more)


def in_all(
    name: str, code: str, change: Callable, unit: str, developed: tuple, judged: tuple, **more
) -> Fault:
    """A fault of every band of every patch of the sensor of `code`; the strength is that of the change."""
    apply = on_images(code[:2], each(change), by_share=False)
    return fault(name, code, apply, unit, developed, judged, **more)


def along_border(name: str, code: str, change: Callable) -> Fault:
    """A fault that fills one side: plain in a tenth of it, marginal in a pixel or two."""
    return in_all(name, code, change, SIDE, (0.1, 0.01), (0.08, 0.015))
