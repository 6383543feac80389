"""A graph under construction: values that are known, values that are computed, and nodes between them.

Shapes are those of jax, in which one symbol, the number of images, may stand. A value may be `thin`: some of
its axes have length 1 where its shape says more, as a broadcast would leave them. Element-wise operations of
ONNX stretch such axes by themselves; for the others `full` does. What depends on no input is known, and has
length 1 along the symbol.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError

Dim = Any  # an int, or an expression of jax in the number of images


@dataclasses.dataclass(frozen=True)
class Value:
    """A value: its array where it is known, its name in the graph where it is computed."""

    shape: tuple[Dim, ...]  # what it stands for
    held: tuple[Dim, ...]  # what it has: 1 in thin axes
    array: np.ndarray | None = None
    name: str = ''

    @property
    def thin(self) -> tuple[int, ...]:
        """Axes of length 1 that stand for more."""
        return tuple(i for i, (a, b) in enumerate(zip(self.shape, self.held)) if not same(a, b))


def same(a: Dim, b: Dim) -> bool:
    """Whether two lengths are the same for every number of images."""
    return bool(a == b)


def is_static(dim: Dim) -> bool:
    """Whether a length does not depend on the number of images."""
    return isinstance(dim, int | np.integer)


class Graph:
    """Nodes and constants; `batch_of` is an input whose first axis is the number of images."""

    def __init__(self, helper: Any, batch_of: str):
        self.helper, self.nodes = helper, list[Any]()
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._batch_of, self._count = batch_of, 0

    def node(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; the name of its output, or of each of several."""
        key = (kind, *inputs, outputs, *((name, repr(x)) for name, x in sorted(attributes.items())))
        if key in self._names:
            return self._names[key]
        names = [self._fresh(kind) for _ in range(outputs)]
        self.nodes.append(self.helper.make_node(kind, [*inputs], names, name=names[0], **attributes))
        result = names[0] if outputs == 1 else tuple(names)
        self._names[key] = result  # type: ignore[assignment]
        return result

    def constant(self, array: Any, dtype: Any = None) -> str:
        """The name of a constant; the same one for the same content."""
        array = np.ascontiguousarray(np.asarray(array, dtype))
        key = ('constant', array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = self._fresh('constant')
            self.constants[self._names[key]] = array
        return self._names[key]

    def name(self, value: Value) -> str:
        """The name of a value, which becomes a constant if it is known."""
        return value.name or self.constant(value.array)

    def known(self, shape: tuple[Dim, ...], array: Any) -> Value:
        """A value that is known."""
        array = np.asarray(array)
        return Value(shape, tuple(int(n) for n in array.shape), array)

    def computed(self, shape: tuple[Dim, ...], name: str, held: tuple[Dim, ...] | None = None) -> Value:
        """A value that a node gives."""
        return Value(shape, shape if held is None else held, None, name)

    def full(self, value: Value) -> Value:
        """The value with every axis as long as it stands for; a known one may stay of length 1 in images."""
        if not value.thin:
            return value
        if value.array is not None:
            target = tuple(n if is_static(n) else 1 for n in value.shape)
            array = np.broadcast_to(value.array, target)
            return Value(value.shape, target, array)
        return self.computed(value.shape, self.node('Expand', [value.name, self.lengths(value.shape)]))

    def stretched(self, value: Value) -> Value:
        """`full`, in images too."""
        value = self.full(value)
        if not value.thin:
            return value
        name = self.node('Expand', [self.name(value), self.lengths(value.shape)])
        return self.computed(value.shape, name)

    def lengths(self, shape: tuple[Dim, ...]) -> str:
        """A vector of int64 with the lengths of a shape."""
        if all(map(is_static, shape)):
            return self.constant(shape, np.int64)
        parts = [self.constant([n], np.int64) if is_static(n) else self.length(n) for n in shape]
        return self.node('Concat', parts, axis=0)

    def length(self, dim: Dim) -> str:
        """A vector of one int64: a multiple of the number of images."""
        lengths = self.node('Shape', [self._batch_of])
        batch = self.node('Slice', [lengths, self.constant([0], np.int64), self.constant([1], np.int64)])
        (symbol,) = dim._get_vars()
        factor = int(dim._evaluate({symbol: 1}))
        if int(dim._evaluate({symbol: 3})) != 3 * factor:
            raise InputError(f'a length of {dim} in the number of images cannot be written as ONNX')
        return batch if factor == 1 else self.node('Mul', [batch, self.constant([factor], np.int64)])

    def reshape(self, value: Value, shape: tuple[Dim, ...]) -> Value:
        """The same numbers in another shape."""
        value = self.stretched(value) if value.array is None else self.full(value)
        if value.array is not None and (not value.thin or (shape and shape[0] is value.shape[0])):
            target = tuple(n if is_static(n) else 1 for n in shape)
            return self.known(shape, value.array.reshape(target))
        value = self.stretched(value)
        free = [i for i, n in enumerate(shape) if not is_static(n)]
        # One length that is not known follows from the others.
        target_name = (
            self.constant([n if is_static(n) else -1 for n in shape], np.int64)
            if len(free) <= 1
            else self.lengths(shape)
        )
        return self.computed(shape, self.node('Reshape', [self.name(value), target_name]))

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f'{kind}_{self._count}'
