"""Records: their image groups, their other fields, and the errors of reading one.

A builder describes its data set once, as a `Schema`; the TFDS features, the input contract and the
report of a conversion all follow from it.

Names that come from outside must stay inside the folder that they are looked up in. What every image of a
unit must satisfy is checked while it is converted; the doctor looks closer. The index of a data set holds
every field but the images, so that no image is read to know what is where, and a digest of the images of each
sensor, by which `leaks` recognises a record under any name. It is gathered shard by shard and stored as one
NumPy archive for each split; reading it is `fusmae_jax.input.source`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fusmae_jax.config.setting import SPARSE
from fusmae_jax.errors import InputError
from fusmae_jax.input import label_maps, number_maps, ranges
from fusmae_jax.input.contract import Contract, Group, LabelMap, NumberMap, Product, Statistics, Targets
from fusmae_jax.input.source import CONTENT, PIXELS
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
    maps: Mapping[str, LabelMap] = dataclasses.field(default_factory=dict)  # field -> classes of its pixels
    # By field. Sparse, so that the digest of a schema without them is that of before: its conversions go on.
    number_maps: Mapping[str, NumberMap] = dataclasses.field(default_factory=dict, metadata=SPARSE)
    targets: Mapping[str, Targets] = dataclasses.field(default_factory=dict, metadata=SPARSE)
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
class RecordSource:
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
        maps=schema.maps or None,
        number_maps=schema.number_maps or None,
        targets=schema.targets or None,
        split_aliases=schema.split_aliases,
        statistics=statistics,
        statistics_split=statistics_split,
    )


def check_name(name: str, source: object, field: str = 'name') -> None:
    """Raises RecordError for a name that is not UTF-8, which no record and no report can hold."""
    if (text := escaped(name)) != name:
        advice = 'rename the file or the folder that it is in'
        raise RecordError(source, field, f"'{text}' is not UTF-8", advice)


def inside(root: Path, name: str, source: object = '', field: str = 'name') -> Path:
    """`root / name`, where `name` is relative and leads nowhere else, not even through a link.

    Args:
      root: the folder that the archive was unpacked to.
      name: as a table, an archive or a JSON file gives it; `/` parts folders.
      source: the file that the name stands in, for the error.
      field: the column or key that it stands in.

    Raises:
      RecordError: a name that is empty, absolute or not UTF-8, one with `..`, or a link that leaves `root`.
    """
    check_name(name, source or root, field)
    parts = PurePosixPath(name.replace('\\', '/')).parts
    escapes = not parts or parts[0] == '/' or '..' in parts or ':' in parts[0] or '\0' in name
    path = root / Path(*parts) if not escapes else root
    if not escapes and not path.resolve().is_relative_to(root.resolve()):
        escapes = True
    if escapes:
        raise RecordError(
            source or root,
            field,
            f'{name!r} leads out of {root}',
            'names are relative to that folder, without `..`; repair the table or move the files there',
        )
    return path


def read_checked(reader: Callable[[Item], Record], item: Item, schema: Schema) -> Record:
    """The record of an item, whatever archive it comes from; raises RecordError for impossible values."""
    record = reader(item)
    for modality in dict.fromkeys(group.modality for group in schema.groups.values()):
        groups = {field: group for field, group in schema.groups.items() if group.modality == modality}
        problem = ranges.check_image({field: record[field] for field in groups}, groups)
        if problem is not None:
            where = f'{modality} {problem.band or "unit"}'
            raise RecordError(record[schema.key], where, problem.found, problem.advice)
    for field, about in schema.maps.items():
        if (unknown := label_maps.unknown(record[field], about)) is not None:
            raise RecordError(record[schema.key], field, unknown, 'name the value, or ignore it')
    return record


def check_decibel(file: Path, image: np.ndarray) -> None:
    """Raises RecordError for backscatter without a negative value: power and amplitude have none, dB does."""
    finite = image[np.isfinite(image)]
    if finite.size and finite.min() >= 0:
        raise RecordError(
            file,
            's1 (VV, VH)',
            f'no negative value (from {finite.min():.4g} to {finite.max():.4g}): not dB',
            'linear power or digital numbers? Convert with 10 log10(power), or unpack the original patch',
        )


_DIGEST = 6  # bytes: among a million records by chance none is like another


class IndexRows:
    """The index of the records of one shard, in their order."""

    def __init__(self, schema: Schema):
        self._fields = {name: field for name, field in schema.fields.items() if field.indexed}
        self._maps, self._number_maps = schema.maps, schema.number_maps
        self._groups: dict[str, list[str]] = {}
        for name, group in sorted(schema.groups.items()):
            self._groups.setdefault(group.modality, []).append(name)
        self._rows: list[Record] = []
        self._content: dict[str, list[bytes]] = {modality: [] for modality in self._groups}
        names = (*schema.maps, *schema.number_maps)
        self._pixels: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def add(self, record: Record) -> None:
        """Takes in one record."""
        self._rows.append({name: record[name] for name in self._fields})
        for modality, groups in self._groups.items():
            self._content[modality].append(content_digest([record[name] for name in groups]))
        for name, about in self._maps.items():
            self._pixels[name].append(label_maps.count(record[name], about))
        for name, numbers in self._number_maps.items():
            stored = number_maps.to_numbers(record[name], numbers)
            self._pixels[name].append(number_maps.moments(stored))

    def arrays(self) -> dict[str, np.ndarray]:
        """field -> array over the records; text as UTF-8 bytes."""
        contents: dict[str, np.ndarray] = {
            f'{CONTENT}{name}': np.array(rows, np.bytes_) for name, rows in self._content.items()
        }
        for name, about in self._maps.items():
            shape = (-1, len(about.classes))
            contents[f'{PIXELS}{name}'] = np.array(self._pixels[name], np.int32).reshape(shape)
        for name in self._number_maps:
            contents[f'{PIXELS}{name}'] = np.array(self._pixels[name], np.float64).reshape(-1, 3)
        return contents | {
            name: np.array([row[name].encode() for row in self._rows], np.bytes_)
            if field.dtype == 'text'
            else np.array([row[name] for row in self._rows], field.dtype).reshape(-1, *field.shape)
            for name, field in self._fields.items()
        }


def content_digest(images: Sequence[np.ndarray]) -> bytes:
    """The digest of the images of one sensor, 12 hexadecimal digits.

    Empty where every image has one value in each band: such records, mostly without a measurement, are alike
    without being the same.
    """
    if all((image == image[:1, :1]).all() or (image != image).all() for image in images):
        return b''
    total = hashlib.blake2b(digest_size=_DIGEST)
    for image in images:
        total.update(f'{image.dtype.name} {image.shape} '.encode())
        total.update(np.ascontiguousarray(image).data)
    return total.hexdigest().encode()


def join_indexes(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The index of several shards, in their order; of the fields that all have.

    Shards that an earlier version converted, before it was cut off, have no digests of images.
    """
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
