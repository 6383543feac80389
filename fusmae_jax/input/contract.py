"""The input contract: what a data set holds, in writing.

A contract travels with every data set (`contract.json` beside the shards) and every checkpoint. It is the
table that `prepare` is driven by: record field -> (modality, bands, grid, dtype, unit, nodata).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from fusmae_jax.config_build import from_dict, to_dict
from fusmae_jax.errors import InputError

FILE = 'contract.json'


@dataclasses.dataclass(frozen=True)
class Group:
    """One image field of a record: bands of one sensor that share a native grid.

    The physical value is `stored * scale + offset`, in `unit`.
    """

    modality: str = ''
    bands: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)  # rows, columns
    dtype: str = 'float32'
    unit: str = ''  # 'dB' | 'DN'
    resolution: float = 10.0  # metres a pixel
    scale: float = 1.0
    offset: float = 0.0
    nodata: tuple[float, ...] = ()  # stored values that mean "nothing here"; NaN and inf always do


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
    calibration: Mapping[str, str] = dataclasses.field(default_factory=dict)  # modality -> product, in words
    fingerprint: str = ''  # of the shards: names, sizes, record counts and features
    fields: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # other record fields -> meaning, unit
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # label field -> names
    split_aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # 'all' -> 'train+val'
    statistics: Mapping[str, Statistics] = dataclasses.field(default_factory=dict)  # record field -> measured
    statistics_split: str = ''  # the split that the statistics were measured on

    def modality_bands(self, modality: str) -> dict[str, str]:
        """band -> record field, for one modality."""
        return {b: name for name, g in self.groups.items() if g.modality == modality for b in g.bands}

    def to_json(self) -> str:
        """The text of `contract.json`."""
        return json.dumps(to_dict(self), indent=2)


def from_json(text: str, source: str) -> Contract:
    """Parses a contract; `source` names the file in the error message."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'{source}: not valid JSON ({error}); convert the data set again') from error
    return from_dict(Contract, values, source)


def read(path: epath.PathLike) -> Contract:
    """The contract of a converted data set in the folder `path`."""
    file = epath.Path(path) / FILE
    if not file.exists():
        raise InputError(
            f'{file}: no input contract here; `path` must be a folder written by `python main.py convert`'
        )
    return from_json(file.read_text(), str(file))


def fingerprint(parts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change when any of the (JSON-able) parts changes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
