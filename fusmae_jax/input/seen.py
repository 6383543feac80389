"""Records that a model has learned from, and how many of a test set are among them.

A record is recognised in five ways, each of which finds what the ones before cannot:

`id`    its own name, in the same data set, and not on other ground: a name such as `0001` comes again
        elsewhere.
`twin`  the name of its BigEarthNet v1 patch. Version 2 was cut from the same acquisitions, so a v2 patch and
        its twin are the same image processed twice (60,886 of the 119,825 v2 test patches are v1 training
        patches).
`cell`  its MGRS tile and grid cell: the same 1.2 km of ground, perhaps on another day. Both versions of
        BigEarthNet count cells alike.
`place` overlapping ground, by EPSG code, corner and size, on any day; across reference systems too. That
        finds a set under another name, and the overlap of two neighbouring tiles.
`content`
        its pixels: an image of a sensor that is the same to the last bit, under whatever name and place.
        Sets converted before the index had the fields `content_<sensor>` are not recognised so.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import InputError
from fusmae_jax.input import place
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.source import CONTENT, Source

FORMAT = 2  # of the packed bytes; 1 had neither places nor content
# Fields of the index that are looked at, where there are any.
_FIELDS = ('s2_name', 's2v1_name', 'tile', 'grid_cell', 'epsg', 'upper_left')
_AT = b'\t'  # between a name and the digest of its place
_V1 = re.compile(rb'S2[AB]_MSIL2A_\d{8}T\d{5,6}_\d+_\d+')  # a v2 name has its tile before the cell
_MGRS = re.compile(rb'T?(\d{1,2}[A-Z]{3})')


class RecordNames(NamedTuple):
    """How the records of a split are recognised, in their order; bytes, empty where there is no such name."""

    id: np.ndarray  # '<data set>/<key>', and where the place is known its digest
    twin: np.ndarray  # name of the BigEarthNet v1 patch
    cell: np.ndarray  # '33UUP_26_57': tile, column H, row V
    place: np.ndarray  # see `place.describe`
    content: np.ndarray  # (records, sensors): digests of images; in a list of what was seen (digests,)


class Seen(NamedTuple):
    """What a model has learned from."""

    names: RecordNames  # each of the five sorted and once
    sources: tuple[str, ...] = ()  # in words: what for, data set, split, number of records


def identify(contract: Contract, index: Mapping[str, np.ndarray]) -> RecordNames:
    """The names by which the records of an index are recognised."""
    keys = index[contract.key].tolist()
    if 's2v1_name' in index:
        twins = index['s2v1_name'].tolist()
    else:
        names = index['s2_name'].tolist() if 's2_name' in index else keys
        twins = [name if _V1.fullmatch(name) else b'' for name in names]
    cells = places = [b''] * len(keys)
    if 'tile' in index and 'grid_cell' in index:
        cells = [
            _cell(tile, h, v) for tile, (h, v) in zip(index['tile'].tolist(), index['grid_cell'].tolist())
        ]
    if 'epsg' in index and 'upper_left' in index:
        places = place.describe(contract, index['epsg'], index['upper_left'])
    ids = [_id(contract.dataset, key, where) for key, where in zip(keys, places)]
    contents = [index[name] for name in sorted(index) if name.startswith(CONTENT)]
    content = np.stack(contents, axis=1) if contents else np.zeros((len(keys), 0), np.bytes_)
    return RecordNames(_bytes(ids), _bytes(twins), _bytes(cells), _bytes(places), content)


def _id(dataset: str, key: bytes, where: bytes) -> bytes:
    name = f'{dataset}/'.encode() + key
    return name + _AT + hashlib.blake2b(where, digest_size=4).hexdigest().encode() if where else name


def _cell(tile: bytes, column: int, row: int) -> bytes:
    match = _MGRS.fullmatch(tile)
    return b'%s_%d_%d' % (match[1].zfill(5), column, row) if match and min(column, row) >= 0 else b''


def _bytes(names: list[bytes]) -> np.ndarray:
    return np.array(names, np.bytes_)


def read_records(path: epath.PathLike, split: str) -> tuple[Source, RecordNames]:
    """The names of the records of a split, an alias, or a part such as `train[:10%]`; and where they are.

    Raises:
        InputError: no such data set or split, no index, or shards that are damaged or not those of the index.
    """
    source = Source(str(path), split, ())
    contract = source.contract
    sensors = sorted({group.modality for group in contract.groups.values()})
    fields = [contract.key, *(f for f in _FIELDS if f in contract.fields and f != contract.key)]
    index = source.index(fields, [f'{CONTENT}{sensor}' for sensor in sensors])
    return source, identify(contract, index)


def collect(
    path: epath.PathLike, split: str, purpose: str = 'pretraining', positions: np.ndarray | None = None
) -> Seen:
    """What a model has seen that learned from a split.

    Args:
        path: the folder of a converted data set.
        split: a split, an alias or a part of one.
        purpose: what the model learned, in words.
        positions: of the records that were used, such as a label fraction; all by default.
    """
    source, records = read_records(path, split)
    if positions is not None:
        records = RecordNames(*(names[positions] for names in records))
    contract = source.contract
    line = f'{purpose}: {contract.dataset} {contract.version}, split {split}, {len(records.id):,} records'
    return Seen(once(records), (line,))


def once(records: RecordNames) -> RecordNames:
    """Every name once, in order; the empty ones left out."""
    unique = (np.unique(names) for names in records)
    return RecordNames(*(names[names != b''] for names in unique))


def union(*several: Seen) -> Seen:
    """What was seen in any of several trainings."""
    names = RecordNames(*(np.concatenate(parts) for parts in zip(*(seen.names for seen in several))))
    sources = dict.fromkeys(line for seen in several for line in seen.sources)
    return Seen(once(names), tuple(sources))


def nothing() -> Seen:
    """Of an encoder that has learned from no records at all."""
    nobody = np.array([], np.bytes_)
    return Seen(RecordNames(*[nobody] * len(RecordNames._fields)))


def digest(seen: Seen) -> str:
    """16 hexadecimal digits that change with any name; not with the order in which they were seen."""
    return storage.digest(
        b'%d\0' % len(names) + b'\0'.join(names.tolist())
        for way, names in seen.names._asdict().items()
        # What lists of format 1 did not have leaves their digests as they were.
        if len(names) or way in ('id', 'twin', 'cell')
    )


def to_bytes(seen: Seen) -> bytes:
    """Packed for a checkpoint: a compressed NumPy archive, about 25 bytes a record of two sensors."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {'sources': np.array(seen.sources, np.str_), 'format': np.array(FORMAT)}
    np.savez_compressed(stream, **seen.names._asdict(), **arrays)
    return stream.getvalue()


def from_bytes(packed: bytes, where: str) -> Seen:
    """What `to_bytes` packed; `where` names the checkpoint in the error message."""
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
            arrays = dict(archive)
    except storage.DAMAGED as error:
        raise InputError(f'{where}: the list of seen records is damaged ({error}); restore it') from error
    if int(arrays.get('format', 0)) not in (1, FORMAT):
        raise InputError(
            f'{where}: the list of seen records has format {arrays.get("format")}, this version reads '
            f'1 and {FORMAT}; use the version of fusmae_jax that wrote it'
        )
    names = RecordNames(*(arrays.get(way, _bytes([])) for way in RecordNames._fields))
    return Seen(names, tuple(arrays['sources'].tolist()))


def recognise(records: RecordNames, seen: Seen) -> dict[str, np.ndarray]:
    """Which records were seen, in each of the ways and in `any` of them; each (records,) bool."""
    there = seen.names
    matches: dict[str, np.ndarray] = {
        'id': _same_name(records.id, there.id),
        'twin': np.isin(records.twin, there.twin),
        'cell': np.isin(records.cell, there.cell),
        'place': place.overlap(records.place, there.place),
        'content': np.asarray(np.isin(records.content, there.content).any(axis=1)),
    }
    return matches | {'any': np.logical_or.reduce(list(matches.values()))}


def same_records(records: RecordNames, seen: Seen) -> int:
    """How many records are themselves among those seen, by their names or their pixels."""
    content = np.isin(records.content, seen.names.content[seen.names.content != b'']).any(axis=1)
    return int((_same_name(records.id, seen.names.id) | content).sum())


def _same_name(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which names are in the other list, and not with another place."""
    if not (len(here) and len(there)):  # np.char takes no empty lists
        return np.zeros(len(here), bool)
    (name, at, _), (other, other_at, _) = (np.char.partition(ids, _AT).T for ids in (here, there))
    placeless = (at == b'') & np.isin(name, other)
    return np.isin(here, there) | placeless | np.isin(name, other[other_at == b''])


def count(records: RecordNames, seen: Seen) -> dict[str, int]:
    """How many records were seen, by way of recognition, and how many could have been recognised so.

    Returns:
        `records`; `id`, `twin`, `cell`, `place`, `content`, `any`: seen records; `with_twin`, `with_cell`,
        `with_place`, `with_content`: records that have such a name at all.
    """
    return {
        'records': len(records.id),
        **{way: int(matches.sum()) for way, matches in recognise(records, seen).items()},
        'with_twin': int((records.twin != b'').sum()),
        'with_cell': int((records.cell != b'').sum()),
        'with_place': int((records.place != b'').sum()),
        'with_content': int((records.content != b'').any(axis=1).sum()),
    }
