"""A serialised record, read where its bytes lie.

A record is a `tf.train.Example`: a protocol buffer in which a map of names to features is a list of
entries, each with its length in front. Building its objects copies every image twice, under Python's lock;
here the lengths are followed, and an image becomes a view of the bytes that were read. Only the one spelling
that serialisers write is followed; any other of the same message is first written anew by protobuf itself.
"""

import math

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from fusmae_jax.input.contract import Group, LabelMap, NumberMap

# A tag is a field's number times 8, and 2 for "a length and as many bytes". Example.features,
# Features.feature, the key of an entry, Feature.bytes_list and the values of a list are all field 1.
_FIRST, _VALUE, _INTEGERS = 0x0A, 0x12, 0x1A  # field 1; the value of an entry; Feature.int64_list


class Image:
    """An image field or a map: its name, and the bytes that begin and end it, which its size decides."""

    def __init__(self, name: str, group: Group | LabelMap | NumberMap):
        self.name, self.dtype = name.encode(), np.dtype(group.dtype)
        self.shape = (*group.size, len(group.bands)) if isinstance(group, Group) else group.size
        self.count = math.prod(self.shape)
        self.size = self.count * self.dtype.itemsize
        header, length = b'', self.size
        # From the inside out: the value, the list of values, the feature.
        for tag in (_FIRST, _FIRST, _VALUE):
            header = bytes([tag]) + _length(length) + header
            length = self.size + len(header)
        self.header = header


class Example:
    """The features of one record by name.

    Each method raises ValueError, IndexError or KeyError for a feature that is not there or not of its kind.
    """

    def __init__(self, data: bytes):
        """Raises ValueError or IndexError for bytes that are no Example."""
        try:
            self._data, self._values = data, _values(data)
        except (ValueError, IndexError):
            self._data = _rewritten(data)
            self._values = _values(self._data)

    def __contains__(self, name: str) -> bool:
        return name.encode() in self._values

    def image(self, image: Image) -> np.ndarray:
        """(rows, columns, bands), or (rows, columns) of a map: a read-only view of the stored bytes."""
        at, end = self._values[image.name]
        start = end - image.size
        if self._data[at:start] != image.header:
            start, stop = self._bytes(image.name)
            if stop - start != image.size:
                raise ValueError(f'{image.name.decode()}: {stop - start:,} bytes, not {image.size:,}')
        return np.frombuffer(self._data, image.dtype, image.count, start).reshape(image.shape)

    def text(self, name: str) -> bytes:
        """The bytes of a text."""
        start, stop = self._bytes(name.encode())
        return self._data[start:stop]

    def label(self, name: str) -> np.ndarray:
        """A text or a whole number, as an array without dimensions; an empty text where nothing is stored."""
        start, stop = self._value(name.encode())
        if start < stop and self._data[start] == _INTEGERS:
            first, last = _content(self._data, start, _INTEGERS)
            if first == last:
                return np.asarray(b'')
            return np.asarray(_signed(_varint(self._data, _content(self._data, first, _FIRST)[0])[0]))
        return np.asarray(self.text(name) if start < stop else b'')

    def _bytes(self, name: bytes) -> tuple[int, int]:
        """Where the one value of a list of bytes lies: its first byte, and the one after its last."""
        start, stop = self._value(name)
        start, end = _content(self._data, start, _FIRST)
        start, last = _content(self._data, start, _FIRST)
        if not last == end == stop:
            raise ValueError(f'{name.decode()}: not one value')
        return start, last

    def _value(self, name: bytes) -> tuple[int, int]:
        """Where the Feature message of an entry lies."""
        at, end = self._values[name]
        start, stop = _content(self._data, at, _VALUE)
        if stop != end:
            raise ValueError(f'{name.decode()}: no value after the name')
        return start, stop


def _values(data: bytes) -> dict[bytes, tuple[int, int]]:
    """Name -> where its entry lies behind the name; ValueError or IndexError for another spelling."""
    at, end = _content(data, 0, _FIRST)
    if end != len(data):
        raise ValueError(f'{len(data):,} bytes, and the message has {end:,}')
    values, count = {}, 0
    # Written out: a record has some twenty entries, and calls for each would take as long as all the rest.
    while at < end:
        length, name = data[at + 1], at + 2
        if length >= 0x80:
            length, name = _varint(data, at + 1)
        stop = name + length
        if data[at] != _FIRST or data[name] != _FIRST or data[name + 1] >= 0x80 or stop > end:
            raise ValueError(f'byte {at:,} begins no entry')
        value = name + 2 + data[name + 1]
        values[data[name + 2 : value]] = value, stop
        at, count = stop, count + 1
    if count != len(values):
        raise ValueError('a name comes twice')
    return values


def _content(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where the content of the field at a position lies; raises ValueError for another field."""
    if data[at] != tag:
        raise ValueError(f'byte {at:,} is {data[at]}, not {tag}')
    length, start = _varint(data, at + 1)
    return start, start + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position after it."""
    value = shift = 0
    while (byte := data[at]) >= 0x80:
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | byte << shift, at + 1


def _length(value: int) -> bytes:
    """The varint of a number."""
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def _signed(value: int) -> int:
    """The int64 of a varint, which is written without a sign."""
    return value - 2**64 if value >= 2**63 else value


def _rewritten(data: bytes) -> bytes:
    """The same message in the spelling that is followed; raises ValueError for bytes that are no Example."""
    try:
        example = tf_example_pb2.Example.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    example.DiscardUnknownFields()
    return example.SerializeToString(deterministic=True)
