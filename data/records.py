"""What a record is: its image groups, its other fields, and the errors of reading one.

A builder describes its data set once, as a `Schema`; the TFDS features, the input contract and the
report of a conversion all follow from it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract, Group, Product, Statistics
from fusmae_jax.input.units import validity as validity
from fusmae_jax.paths import check_text, escaped

Record = dict[str, Any]


class RecordError(InputError):
    """A record that cannot be read: which file and field, what was found there, and what to do."""

    def __init__(self, file: object, field: str, found: str, advice: str):
        # A name may be bytes that are no text; the message goes to terminals, the rest of it into the report.
        self.file, self.field, self.found, self.advice = map(escaped, (file, field, found, advice))
        super().__init__(f'{self.file}: {self.field}: {self.found}; {self.advice}')

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled with the arguments of its base class, which are not those of __init__.
        return type(self), (self.file, self.field, self.found, self.advice)

    def skip(self, record: str) -> dict[str, str]:
        """The entry of the conversion report for a record that is left out."""
        return {'record': escaped(record), 'file': self.file, 'field': self.field, 'reason': self.found}


@dataclasses.dataclass(frozen=True)
class Field:
    """A record field that is not an image."""

    dtype: str  # a NumPy name, or 'text'
    meaning: str  # in words, with the unit
    shape: tuple[int, ...] = ()
    indexed: bool = True  # False: too large for the index, such as a map of labels


@dataclasses.dataclass(frozen=True)
class Schema:
    """A data set as its records show it; the same for every way of building it."""

    name: str
    version: str
    groups: Mapping[str, Group]
    fields: Mapping[str, Field]
    products: Mapping[str, Product]  # modality -> how its values came about
    key: str  # the text field that is unique and names a record
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict
    )  # multi-hot field -> names
    split_aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ''
    homepage: str = ''
    citation: str = ''
    license: str = ''


class Item(NamedTuple):
    """One record still to be read: its unique key, and whatever `Source.read` needs (JSON-able)."""

    key: str
    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """An archive that was listed: what will become records, and how to read one.

    `read` travels to worker processes, so it must be an importable function (or a partial of one). It
    raises RecordError for a record that cannot be used.
    """

    schema: Schema
    splits: Mapping[str, Sequence[Item]]
    read: Callable[[Item], Record]
    inputs: Mapping[str, str]  # what was read, for the report and for recognising a resumed conversion
    skips: Sequence[Mapping[str, str]] = ()  # records already left out while listing
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)  # split -> records, whole archive
    published_labels: Mapping[str, Mapping[str, Mapping[str, int]]] = dataclasses.field(
        default_factory=dict
    )  # split -> label field -> class -> records, whole archive
    notes: Sequence[str] = ()  # sentences that a person should read before the records are written
    together: Callable[[Item], tuple[str, ...]] | None = None  # what is read at once, coarsest part first


def folder(path: str, setting: str) -> Path:
    """The folder that a setting of an archive names, resolved; raises InputError if there is none."""
    if not path:
        raise InputError(f"config.archive.{setting}='': give the folder of the unpacked archive")
    check_text(path)
    if not Path(path).is_dir():
        raise InputError(f'{path}: {setting}: no such folder; give that of the unpacked archive')
    return Path(path).resolve()


def features(schema: Schema) -> tfds.features.FeaturesDict:
    """The TFDS features of a record; images are stored as plain bytes, which read three times faster."""
    images = {
        name: tfds.features.Tensor(
            shape=(*group.size, len(group.bands)),
            dtype=np.dtype(group.dtype),
            encoding=tfds.features.Encoding.BYTES,
        )
        for name, group in schema.groups.items()
    }
    twice = images.keys() & schema.fields.keys()
    if twice:
        raise InputError(f'{schema.name}: {", ".join(sorted(twice))}: both an image group and a field')
    return tfds.features.FeaturesDict({**images, **{n: _feature(f) for n, f in schema.fields.items()}})


def _feature(field: Field) -> tfds.features.FeatureConnector:
    if field.dtype == 'text':
        return tfds.features.Text()
    # A float64 becomes a float32 in an Example, which is 0.25 m of a northing; bytes keep it. A map reads in
    # less than half the time.
    as_bytes = field.dtype == 'float64' or not field.indexed
    kind = tfds.features.Encoding.BYTES if as_bytes else tfds.features.Encoding.NONE
    return tfds.features.Tensor(shape=field.shape, dtype=np.dtype(field.dtype), encoding=kind)


def dataset_info(schema: Schema) -> dict[str, Any]:
    """What TFDS's DatasetInfo says about the data set, as its keyword arguments."""
    return {
        'description': schema.description,
        'homepage': schema.homepage,
        'citation': schema.citation,
        'license': schema.license,
    }


def contract(
    schema: Schema, statistics: Mapping[str, Statistics], statistics_split: str, fingerprint: str
) -> Contract:
    """The input contract that is written beside the shards."""
    return Contract(
        dataset=schema.name,
        version=schema.version,
        groups=schema.groups,
        products=schema.products,
        key=schema.key,
        fingerprint=fingerprint,
        fields={name: field.meaning for name, field in schema.fields.items()},
        classes=schema.classes,
        split_aliases=schema.split_aliases,
        statistics=statistics,
        statistics_split=statistics_split,
    )
