"""The plan of a conversion, made before anything is read: which record goes into which shard.

A plan is a function of its inputs and settings alone, so that a conversion that was cut off goes on
where it stopped, on any number of workers, and ends with the same files.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import fingerprint

from .records import Item, RecordSource


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of the data set and the records that go into it, in order."""

    name: str
    split: str
    items: tuple[Item, ...]


def make_shards(source: RecordSource, records_per_shard: int) -> list[Shard]:
    """Assigns every item to a shard; raises InputError for a split without items.

    Within a split, records are ordered by a hash of their key: each shard, and each prefix of a split
    (`train[:1%]`), is then a random sample instead of one corner of the archive. Records that can only be
    read together (`Source.together`) stay neighbours, and it is these groups that are in random order.
    """
    if records_per_shard < 1:
        raise InputError(f'records_per_shard={records_per_shard} must be at least 1')
    if not any(source.splits.values()):
        raise InputError(f'{_inputs(source)}: no record that can be used was found; nothing to convert')
    parts = source.together or (lambda item: ())
    shards = []
    for split, items in source.splits.items():
        if not items:
            raise InputError(
                f"split '{split}' is empty: no record found in {_inputs(source)} belongs to it; give the "
                "whole archive, put every record into one split (splits='one'), or leave empty splits out "
                "(on_error='skip')"
            )
        ordered = sorted(items, key=lambda item: (*map(_hash, parts(item)), _hash(item.key), item.key))
        count = -(-len(ordered) // records_per_shard)
        shards += [
            Shard(
                f'{source.schema.name}-{split}.array_record-{index:05d}-of-{count:05d}',
                split,
                tuple(ordered[index * records_per_shard : (index + 1) * records_per_shard]),
            )
            for index in range(count)
        ]
    return shards


def _inputs(source: RecordSource) -> str:
    return ', '.join(f'{key}={value}' for key, value in source.inputs.items())


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def settings(source: RecordSource, shards: list[Shard], records_per_shard: int) -> dict[str, Any]:
    """Everything that decides what the files will hold; two conversions with equal settings are the same."""
    return {
        'dataset': source.schema.name,
        'version': source.schema.version,
        **source.inputs,
        'records': sum(len(shard.items) for shard in shards),
        'records_per_shard': records_per_shard,
        'records_digest': storage.digest(json.dumps(item) for shard in shards for item in shard.items),
        'schema_digest': fingerprint(to_dict(source.schema)),
    }


class Folder:
    """The folders of one conversion.

    `final` does not exist until the data set is complete. Until then shards grow in `data` and what is
    known about them in `state`, both inside `<version>.incomplete`.
    """

    def __init__(self, output: epath.PathLike, name: str, version: str):
        self.final = epath.Path(output) / name / version
        self.incomplete = self.final.parent / f'{version}.incomplete'
        self.data = self.incomplete / 'data'
        self.state = self.incomplete / 'state'
        self.settings = self.state / 'settings.json'
        self.stop = self.state / 'stop.json'

    def items_file(self, shard: str) -> epath.Path:
        """The records of a shard, for the worker that will read them."""
        return self.state / f'{shard}.items.json'

    def done_file(self, shard: str) -> epath.Path:
        """The sidecar of a finished shard: its statistics and skipped records."""
        return self.state / f'{shard}.done.json'

    def index_file(self, shard: str) -> epath.Path:
        """The fields, other than images, of the records of a finished shard."""
        return self.state / f'{shard}.index.npz'

    def open(self, wanted: Mapping[str, Any], shards: list[Shard]) -> list[str]:
        """Starts or resumes a conversion; returns the names of the shards that are still to be written.

        Raises InputError if the folder holds an unfinished conversion with other settings.
        """
        if self.settings.exists():
            self._compare(wanted)
            for leftover in (*self.data.glob('*.tmp'), *self.data.glob('*.part')):
                leftover.unlink()
        else:
            self.data.mkdir(parents=True, exist_ok=True)
            self.state.mkdir(parents=True, exist_ok=True)
            for shard in shards:
                write(self.items_file(shard.name), shard.items)
            # Written last: a folder with settings has all its lists of records.
            write(self.settings, wanted)
        self.stop.unlink(missing_ok=True)
        return [shard.name for shard in shards if not self.finished(shard.name)]

    def _compare(self, wanted: Mapping[str, Any]) -> None:
        earlier = read(self.settings)
        differences = [
            f'{key}: {earlier.get(key)!r} before, {wanted.get(key)!r} now'
            for key in sorted(earlier.keys() | wanted.keys())
            if earlier.get(key) != wanted.get(key)
        ]
        if differences:
            raise InputError(
                f'{self.incomplete}: an unfinished conversion with other inputs or settings lies here '
                f'({"; ".join(differences)}); run with the former ones to finish it, or delete the folder'
            )

    def finished(self, shard: str) -> bool:
        """Whether a shard is complete and can be kept.

        A shard that left records out is converted again: its input may have been repaired since.
        """
        sidecar, file = self.done_file(shard), self.data / shard
        if not (sidecar.exists() and file.exists()):
            return False
        values = read(sidecar)
        return values['bytes'] == file.stat().length and not values['skips']


def read(file: epath.Path) -> Any:
    """The JSON in a file."""
    return storage.read_json(file, 'delete the folder of the conversion and convert again')


def write(file: epath.Path, values: Any) -> None:
    """Writes JSON so that the file is never seen half-written."""
    storage.write_json(file, values, None if isinstance(values, tuple) else 2, shared=True)
