"""The input contract: what a data set holds, in writing.

A contract travels with every data set (`contract.json` beside the shards) and every checkpoint. It is the
table that `prepare` is driven by: record field -> (modality, bands, grid, dtype, unit, nodata).
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.build import from_dict, to_dict
from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError
from fusmae_jax.installed import program
from fusmae_jax.sensors import Product

FILE = 'contract.json'
FORMAT = 2  # of this file; 1 had the calibration as a sentence only


@dataclasses.dataclass(frozen=True)
class Group:
    """One image field of a record: bands of one sensor that share a native grid.

    The physical value is `stored * scale + offset`, in `unit` (see `input/units.py`).
    """

    modality: str = ''
    bands: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)  # rows, columns
    dtype: str = 'float32'
    # radar: dB, linear, amplitude; optical: DN (reflectance x 10,000), reflectance; elevation: m
    unit: str = ''
    resolution: float = 10.0  # metres a pixel
    scale: float = 1.0
    offset: float = 0.0
    nodata: tuple[float, ...] = ()  # stored values that mean "nothing here"; NaN and inf always do


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """One label field of a record: a class for each pixel, on a grid of its own over the same ground.

    Its numbers are names. Nothing normalises or interpolates them; between pixels the nearest one counts
    (`input/label_maps.py`).
    """

    classes: tuple[str, ...] = ()
    values: tuple[int, ...] = ()  # the stored value of each class
    ignore: tuple[int, ...] = ()  # stored values of pixels without a label
    size: tuple[int, int] = (0, 0)  # rows, columns
    dtype: str = 'uint8'
    resolution: float = 10.0  # metres a pixel


@dataclasses.dataclass(frozen=True)
class NumberMap:
    """One field of a record with a number for each pixel, on a grid of its own over the same ground.

    Its values are predicted, not given to a model: nothing normalises or interpolates what is stored
    (`input/number_maps.py`). A number is `stored * scale + offset`, in `unit`.
    """

    quantity: str = ''  # what it is: biomass, height
    unit: str = ''  # '' where it is not known
    scale: float = 1.0
    offset: float = 0.0
    nodata: tuple[float, ...] = ()  # stored values that mean "no number here"; NaN and inf always do
    size: tuple[int, int] = (0, 0)  # rows, columns
    dtype: str = 'float32'
    resolution: float = 10.0  # metres a pixel


@dataclasses.dataclass(frozen=True)
class Targets:
    """One label field of a record with numbers to predict, one for each name; NaN is a missing one."""

    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()  # '' where it is not known


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What was measured over one image field; one number a band, in the order of the group's bands.

    All but `invalid` are of valid pixels, as stored, at the native resolution. A band without a single
    valid pixel has zeros.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()  # of the population, not of a sample
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()
    valid: tuple[int, ...] = ()  # pixels
    invalid: tuple[int, ...] = ()  # pixels that are NaN, inf or nodata


@dataclasses.dataclass(frozen=True)
class Contract:
    """Everything about a data set that, if it were wrong, would spoil a run silently."""

    dataset: str = ''
    version: str = ''
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)  # record field -> group
    products: Mapping[str, Product] = dataclasses.field(default_factory=dict)  # modality -> how it was made
    key: str = ''  # the record field whose value is unique and names the record
    fingerprint: str = ''  # of the shards: their records' content, their order, and the features
    # other record fields -> meaning, unit
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # label field -> names
    maps: Mapping[str, LabelMap] | None = setting(None, sparse=True)  # record field -> classes of its pixels
    # record field -> numbers of its pixels
    number_maps: Mapping[str, NumberMap] | None = setting(None, sparse=True)
    targets: Mapping[str, Targets] | None = setting(None, sparse=True)  # record field -> numbers to predict
    split_aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # 'all' -> 'train+val'
    statistics: Mapping[str, Statistics] = dataclasses.field(default_factory=dict)  # record field -> measured
    statistics_split: str = ''  # the split that the statistics were measured on
    parts: Mapping[str, 'Contract'] = dataclasses.field(default_factory=dict)  # of a mixture; no groups then
    format: int = FORMAT

    def modality_bands(self, modality: str) -> dict[str, str]:
        """band -> record field, for one modality."""
        return {b: name for name, g in self.groups.items() if g.modality == modality for b in g.bands}

    @property
    def each(self) -> dict[str, 'Contract']:
        """The contracts by the prefix of their fields in a batch: those of a mixture, or this one for ''."""
        return {f'{name}/': part for name, part in self.parts.items()} or {'': self}

    @property
    def first(self) -> 'Contract':
        """This contract, or the first one of a mixture."""
        return next(iter(self.each.values()))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change with the records, or with what their numbers mean.

        `fingerprint` is of the shards alone: a corrected offset leaves it as it is.
        """
        parts = {name: part.digest for name, part in self.parts.items()}
        about = {'records': self.fingerprint, 'groups': self.groups, 'statistics': self.statistics}
        about |= {'maps': self.maps} if self.maps else {}
        about |= {'number_maps': self.number_maps} if self.number_maps else {}
        about |= {'targets': self.targets} if self.targets else {}
        return fingerprint({'parts': parts} | {name: to_dict(value) for name, value in about.items()})

    def to_json(self) -> str:
        """The text of `contract.json`."""
        return json.dumps(to_dict(self), indent=2)


def from_json(text: str, source: str) -> Contract:
    """Parses a contract; `source` names the file in the error message."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'{source}: not valid JSON ({error}); convert the data set again') from error
    return from_values(values, source)


def from_values(values: Any, source: str) -> Contract:
    """A contract from plain data, as JSON files and checkpoints hold it; `source` names where it stood."""
    if isinstance(values, Mapping) and (version := values.get('format', 1)) != FORMAT:
        raise InputError(
            f'{source}: an input contract of format {version}, this version reads {FORMAT}; convert the data '
            'set again, or use the version of fusmae_jax that wrote it'
        )
    return from_dict(Contract, values, source)


def read(path: epath.PathLike) -> Contract:
    """The contract of a converted data set in the folder `path`."""
    file = epath.Path(path) / FILE
    if not file.exists():
        raise InputError(
            f'{file}: no input contract here; `path` must be a folder written by `{program()} convert`'
        )
    return from_json(file.read_text(), str(file))


def fingerprint(parts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change when any of the (JSON-able) parts changes."""
    return storage.digest([json.dumps(parts, sort_keys=True)])
