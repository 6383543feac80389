"""Evidence of the doctor: images as they are stored, what is said about them, and the list of records.

Openers (`open_*.py`) gather it from whatever a path holds; the checks see nothing else.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusmae_jax.geo.grid import Grid
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.sensors import Product

from .findings import Finding
from .summary import Summary, summarise

Image = Mapping[str, np.ndarray]  # band -> (rows, columns), as stored


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the data say about one sensor; an unknown fact is '' or empty."""

    bands: tuple[str, ...] = ()
    unit: str = ''  # dB, linear, amplitude; DN, reflectance
    scale: Mapping[str, float] = dataclasses.field(default_factory=dict)  # band -> factor; 1 if absent
    offset: Mapping[str, float] = dataclasses.field(default_factory=dict)  # band -> summand; 0 if absent
    dtype: Mapping[str, str] = dataclasses.field(default_factory=dict)  # band -> stored type
    nodata: tuple[float, ...] = ()
    product: Product = dataclasses.field(default_factory=Product)
    baselines: tuple[int, ...] = ()  # processing baselines that names give, such as 400 for 04.00

    def linear(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset of each band: physical = stored x scale + offset."""
        scale = np.array([self.scale.get(band, 1.0) for band in self.bands])
        return scale, np.array([self.offset.get(band, 0.0) for band in self.bands])


@dataclasses.dataclass(frozen=True)
class Sensor:
    """The sample of one sensor: one entry a patch, and what is declared about it."""

    modality: str  # 's1' | 's2'
    declared: Declared
    images: tuple[Image, ...]
    grids: tuple[Mapping[str, Grid], ...] = ()  # empty where nothing is known of the ground

    @functools.cached_property
    def summary(self) -> Summary:
        """Numbers for every patch and band; see `Summary`."""
        return summarise(self.images, self.declared.bands, self.declared.nodata)

    def band(self, name: str) -> int:
        """The position of a band in the summary."""
        return self.declared.bands.index(name)


@dataclasses.dataclass(frozen=True)
class Split:
    """The list of one split, without its images."""

    records: int
    ids: np.ndarray | None = None  # unique names
    places: np.ndarray | None = None  # (records, 3): EPSG, left, top
    s1_hours: np.ndarray | None = None  # local solar time of Sentinel-1, hours; NaN where unknown


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything that the checks see."""

    path: str
    kind: str  # what the path holds, in words
    sensors: Mapping[str, Sensor] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ()  # of the patches in the sample
    total: int | None = None  # patches there are; None if they were not counted
    splits: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, Sequence[Any] | np.ndarray] = dataclasses.field(
        default_factory=dict
    )  # field -> one a patch
    classes: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)  # field -> valid values
    contract: Contract | None = None
    slack: float = 0.5  # pixels that the extents of a pair may lie apart
    findings: tuple[Finding, ...] = ()  # what opening it brought to light


def declared(
    modality: str,
    groups: Mapping[str, Group],
    products: Mapping[str, Product],
    baselines: tuple[int, ...] = (),
) -> Declared:
    """What a contract, or the schema of a builder, says about a sensor."""
    of_sensor = [group for group in groups.values() if group.modality == modality]
    return Declared(
        bands=tuple(band for group in of_sensor for band in group.bands),
        unit=of_sensor[0].unit if of_sensor else '',
        scale={band: group.scale for group in of_sensor for band in group.bands},
        offset={band: group.offset for group in of_sensor for band in group.bands},
        dtype={band: group.dtype for group in of_sensor for band in group.bands},
        nodata=tuple(sorted({value for group in of_sensor for value in group.nodata})),
        product=products.get(modality, Product()),
        baselines=baselines,
    )


def solar_hour(seconds: np.ndarray, epsg: np.ndarray) -> np.ndarray:
    """Local solar time in hours, of Unix seconds and the EPSG codes of UTM zones; NaN without a zone.

    The middle of the zone stands for the place: an error of 12 minutes at most.
    """
    epsg = np.asarray(epsg, np.int64)
    utm = ((epsg > 32600) & (epsg <= 32660)) | ((epsg > 32700) & (epsg <= 32760))
    longitude = np.where(utm, (epsg % 100) * 6.0 - 183.0, np.nan)
    return (np.asarray(seconds) / 3600.0 + longitude / 15.0) % 24.0
