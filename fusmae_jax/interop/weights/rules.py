"""Tables of name rules between our parameter tree and a PyTorch state dict, applied in either direction.

A rule says which tensors of a file make one array of ours. Applying a table collects every difference
(missing and extra names, shapes, dtypes) and raises them in one message; nothing is filled in or cast.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fusmae_jax.config.run import Model
from fusmae_jax.errors import nearest, raise_all

Array = np.ndarray
State = Mapping[str, Array]
FLOATS = ('float32', 'float64')


@dataclasses.dataclass(frozen=True)
class Rule:
    """One array of ours, or one layer of a stacked one, and the tensors that it comes from."""

    ours: str  # '/'-joined path in our tree
    shape: tuple[int, ...]  # of ours, without the layer axis
    theirs: tuple[str, ...]  # joined along their first axis
    their_shape: tuple[int, ...]  # of each of them
    form: str  # key of FORMS
    layer: int | None = None  # index along the leading axis of a stacked array
    rows: tuple[int, int] | None = None  # part of the joined first axis; None is all of it


@dataclasses.dataclass
class ImportReport:
    """What an import did: nothing is dropped or kept without a line here."""

    imported: list[str] = dataclasses.field(default_factory=list)  # our paths that came from the file
    kept: list[str] = dataclasses.field(default_factory=list)  # our paths that stay as they were
    unused: list[str] = dataclasses.field(default_factory=list)  # names in the file without a place
    notes: list[str] = dataclasses.field(default_factory=list)  # conversions, in words

    def text(self) -> str:
        """The report as lines for a log."""
        lines = [f'{len(self.imported)} parameters imported']
        lines += [f'note: {note}' for note in self.notes]
        lines += [f'kept as it was (not in the file): {name}' for name in self.kept]
        lines += [f'unused (no place for it in this model): {name}' for name in self.unused]
        return '\n'.join(lines)


def _conv_to_ours(x: Array, shape: tuple[int, ...]) -> Array:
    return x.transpose(2, 3, 1, 0).reshape(shape)


def _conv_to_theirs(x: Array, shape: tuple[int, ...]) -> Array:
    width, channels, rows, columns = shape
    return x.reshape(rows, columns, channels, width).transpose(3, 2, 0, 1)


# name: (theirs -> ours of a shape, ours -> theirs of a shape)
FORMS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    'copy': (lambda x, shape: x.reshape(shape), lambda x, shape: x.reshape(shape)),  # (1, 1, d) to (d,) too
    'linear': (lambda x, _: x.T, lambda x, _: x.T),  # (out, in) to (in, out)
    'conv': (_conv_to_ours, _conv_to_theirs),  # (d, c, p, q) to (p*q*c, d)
}


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Array]:
    """{'a': {'b': x}} -> {'a/b': x}, with arrays as numpy."""
    flat: dict[str, Array] = {}
    for name, value in tree.items():
        path = f'{prefix}{name}'
        flat.update(flatten(value, f'{path}/') if isinstance(value, Mapping) else {path: np.asarray(value)})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a/b': x} -> {'a': {'b': x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def ours_shapes(rules: Iterable[Rule]) -> dict[str, tuple[int, ...]]:
    """Path -> full shape (layer axis included) of every array of ours in a table."""
    layers: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rule in rules:
        shapes[rule.ours] = rule.shape
        if rule.layer is not None:
            layers[rule.ours] = max(layers.get(rule.ours, 0), rule.layer + 1)
    return {path: (layers[path], *s) if path in layers else s for path, s in shapes.items()}


def check_state(
    rules: Iterable[Rule], state: State, ignore: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """All differences between a state dict and a table, and the extra names that `ignore` expects.

    Args:
        rules: the table.
        state: name -> array.
        ignore: regular expressions of whole names that a file of this kind may hold without a rule.

    Returns:
        Sentences, one a difference, and the names that match `ignore`.
    """
    wanted = {name: rule.their_shape for rule in rules for name in rule.theirs}
    extra = [name for name in state if name not in wanted]
    unused = [name for name in extra if any(re.fullmatch(pattern, name) for pattern in ignore)]
    unknown = [name for name in extra if name not in set(unused)]
    problems = [f'missing: {n} {s}' for n, s in wanted.items() if n not in state]
    missing = [name for name in wanted if name not in state]
    for name in unknown:
        hint = f'; {nearest(name, missing)}' if 0 < len(missing) <= 3 else ''
        problems.append(f'not part of this model: {name} {state[name].shape}{hint}')
    for name, shape in wanted.items():
        if name in state and state[name].shape != shape:
            turned = ' (it looks transposed)' if state[name].shape == shape[::-1] else ''
            problems.append(f'{name} has shape {state[name].shape}, expected {shape}{turned}')
    kinds = {name: str(state[name].dtype) for name in wanted if name in state}
    first = next(iter(kinds.values()), 'float32')
    expected = first if first in FLOATS else 'float32'
    problems += [
        f'{n} is {k}, expected {expected}; cast the file first' for n, k in kinds.items() if k != expected
    ]
    return problems, unused


def to_ours(rules: list[Rule], state: State) -> dict[str, Array]:
    """Path -> array of our tree from a state dict that `check_state` found nothing wrong with."""
    parts: dict[str, dict[int, Array]] = {}
    for rule in rules:
        joined = np.concatenate([state[name] for name in rule.theirs]) if len(rule.theirs) > 1 else None
        x = state[rule.theirs[0]] if joined is None else joined
        x = x[slice(*rule.rows)] if rule.rows else x
        # A transposed view would be copied again at every transfer to a device.
        value = np.ascontiguousarray(FORMS[rule.form][0](x, rule.shape))
        parts.setdefault(rule.ours, {})[-1 if rule.layer is None else rule.layer] = value
    return {
        path: layers[-1] if -1 in layers else np.stack([layers[i] for i in sorted(layers)])
        for path, layers in parts.items()
    }


def to_theirs(rules: list[Rule], params: Mapping[str, Any], title: str) -> dict[str, Array]:
    """The state dict of a table without `rows` from our tree of arrays.

    Raises:
        InputError: with every path that is missing, extra or of another shape.
    """
    flat, shapes = flatten(params), ours_shapes(rules)
    problems = [f'missing: {path} {shape}' for path, shape in shapes.items() if path not in flat]
    problems += [
        f'not part of this model: {path} {x.shape}' for path, x in flat.items() if path not in shapes
    ]
    problems += [
        f'{path} has shape {flat[path].shape}, expected {shape}'
        for path, shape in shapes.items()
        if path in flat and flat[path].shape != shape
    ]
    raise_all(title, problems)
    state: dict[str, Array] = {}
    for rule in rules:
        x = flat[rule.ours] if rule.layer is None else flat[rule.ours][rule.layer]
        full = (len(rule.theirs) * rule.their_shape[0], *rule.their_shape[1:])
        x = FORMS[rule.form][1](x, full)
        for name, piece in zip(rule.theirs, np.split(x, len(rule.theirs))):
            state[name] = np.ascontiguousarray(piece)
    return state


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What a layout cannot know from the file."""

    channels: tuple[str, ...] = ()  # bands of a stacked projection, in the file's order
    adapters: Mapping[str, str] = dataclasses.field(default_factory=dict)  # MultiMAE: modality -> its task
    grid: tuple[int, int] = (0, 0)  # of the file's positional table; (0, 0) is square
    drop_positions: bool = False  # leave a learned table out when the model has sine-cosine positions
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)  # MultiMAE: modality -> its decoder
    decoders: bool = True  # MultiMAE: the file's decoders too, if the model has such
    branch: str = 'teacher'  # DINO-MM: 'teacher' or 'student'


@dataclasses.dataclass
class ImportPlan:
    """What a layout makes of a file: rules for `state`, and what to do besides."""

    state: dict[str, np.ndarray]
    rules: list[Rule]
    ignore: tuple[str, ...] = ()  # regular expressions of names that may go unused
    table: str = ''  # name of the encoder's positional table in `state`
    decoder_table: str = ''
    grid: tuple[int, int] = (0, 0)  # of the tables, where the file says it
    cls_row: bool = False  # the tables start with a row for CLS
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


Importer = Callable[[State, Model, ImportOptions], ImportPlan]
