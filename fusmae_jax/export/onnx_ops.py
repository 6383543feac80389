"""What each primitive of jax becomes in a graph of ONNX (operator set 17).

The encoder is made of some forty primitives, and they are all that stands here: no function of the package
names them, and a new one is a refusal that says its name.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.export.onnx_graph import Graph, Value, is_static, same

Rule = Callable[[Graph, list[Value], dict[str, Any], Any], list[Value]]
RULES: dict[str, Rule] = {}
FLOAT, INT64, BOOL = 1, 7, 9  # numbers of ONNX's TensorProto.DataType
TYPES = {'float32': FLOAT, 'int32': 6, 'int64': INT64, 'bool': BOOL, 'float64': 11, 'uint8': 2}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers what primitives become; `outs` of a rule are the abstract values of its results."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _aligned(graph: Graph, values: list[Value], out: Any) -> tuple[list[str], tuple[Any, ...]]:
    """Names of element-wise operands, and the lengths that their result has."""
    rank = len(out.shape)
    held = [1] * rank
    for value in values:
        for axis, n in enumerate(value.held):  # a scalar has none
            if not same(n, 1):
                held[axis] = n
    return [graph.name(value) for value in values], tuple(held)


def _elementwise(kind: str, *names: str) -> None:
    @rule(*names)
    def _(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
        inputs, held = _aligned(graph, values, outs[0])
        return [graph.computed(outs[0].shape, graph.node(kind, inputs), held)]


for _kind, *_names in (
    *(('Add', 'add'), ('Add', 'add_any'), ('Sub', 'sub'), ('Mul', 'mul'), ('Div', 'div'), ('Max', 'max')),
    *(('Min', 'min'), ('Neg', 'neg'), ('Abs', 'abs'), ('Exp', 'exp'), ('Log', 'log'), ('Floor', 'floor')),
    *(('Ceil', 'ceil'), ('Sqrt', 'sqrt'), ('Tanh', 'tanh'), ('Erf', 'erf'), ('Sigmoid', 'logistic')),
    *(('Round', 'round'), ('Sign', 'sign'), ('Equal', 'eq'), ('Less', 'lt'), ('LessOrEqual', 'le')),
    *(('Greater', 'gt'), ('GreaterOrEqual', 'ge'), ('Not', 'not'), ('And', 'and'), ('Or', 'or')),
    ('Pow', 'pow'),
):
    _elementwise(_kind, *_names)


@rule('ne', 'square', 'rsqrt', 'erfc', 'is_finite', 'integer_pow')
def _composed(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    (first, *rest), held = _aligned(graph, values, outs[0])
    one = graph.constant(np.float32(1))
    match params['primitive']:
        case 'ne':
            name = graph.node('Not', [graph.node('Equal', [first, *rest])])
        case 'square':
            name = graph.node('Mul', [first, first])
        case 'rsqrt':
            name = graph.node('Reciprocal', [graph.node('Sqrt', [first])])
        case 'erfc':
            name = graph.node('Sub', [one, graph.node('Erf', [first])])
        case 'is_finite':
            bad = graph.node('Or', [graph.node('IsNaN', [first]), graph.node('IsInf', [first])])
            name = graph.node('Not', [bad])
        case _:
            name = graph.node('Pow', [first, graph.constant(np.float32(params['y']))])
    return [graph.computed(outs[0].shape, name, held)]


@rule('select_n')
def _select(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    if values[0].array is not None and len({*values[0].array.ravel().tolist()}) == 1:
        return [values[1 + int(values[0].array.flat[0])]]  # as an image that is not flipped
    if len(values) != 3:
        raise InputError('select_n of more than two cases cannot be written as ONNX')
    (which, no, yes), held = _aligned(graph, values, outs[0])
    if str(outs[0].dtype) == 'bool':  # which ONNX Runtime has no Where for
        chosen = graph.node('And', [which, yes])
        name = graph.node('Or', [chosen, graph.node('And', [graph.node('Not', [which]), no])])
    else:
        name = graph.node('Where', [which, yes, no])
    return [graph.computed(outs[0].shape, name, held)]


@rule('clamp')
def _clamp(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    (low, x, high), held = _aligned(graph, values, outs[0])
    return [graph.computed(outs[0].shape, graph.node('Min', [graph.node('Max', [x, low]), high]), held)]


@rule('convert_element_type')
def _cast(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    (value,) = values
    name = graph.node('Cast', [graph.name(value)], to=TYPES[str(np.dtype(params['new_dtype']))])
    return [graph.computed(outs[0].shape, name, value.held)]


@rule('stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint', 'name')
def _same(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    return values


@rule('reshape', 'squeeze', 'expand_dims')
def _reshape(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    (value,) = values
    if params.get('dimensions') is not None:
        value = _transposed(graph, value, tuple(params['dimensions']))
    return [graph.reshape(value, outs[0].shape)]


@rule('broadcast_in_dim')
def _broadcast(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    value, shape, axes = values[0], outs[0].shape, params['broadcast_dimensions']
    held: list[Any] = [1] * len(shape)
    for axis, n in zip(axes, value.held):
        held[axis] = n
    if len(axes) == len(shape):
        name = graph.name(value)
    else:
        added = [axis for axis in range(len(shape)) if axis not in axes]
        name = graph.node('Unsqueeze', [graph.name(value), graph.constant(added, np.int64)])
    return [graph.computed(shape, name, tuple(held))]


def _transposed(graph: Graph, value: Value, order: tuple[int, ...]) -> Value:
    if order == tuple(range(len(order))):
        return value
    shape, held = (tuple(x[i] for i in order) for x in (value.shape, value.held))
    if value.array is not None:
        return Value(shape, held, value.array.transpose(order))
    return graph.computed(shape, graph.node('Transpose', [value.name], perm=order), held)


@rule('transpose')
def _transpose(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    return [_transposed(graph, values[0], tuple(params['permutation']))]


@rule('concatenate')
def _concatenate(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    names = [graph.name(graph.stretched(value)) for value in values]
    return [graph.computed(outs[0].shape, graph.node('Concat', names, axis=params['dimension']))]


@rule('stack')
def _stack(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    axis = params['axis']
    at = graph.constant([axis], np.int64)
    names = [graph.node('Unsqueeze', [graph.name(graph.stretched(value)), at]) for value in values]
    return [graph.computed(outs[0].shape, graph.node('Concat', names, axis=axis))]


def _cut(graph: Graph, value: Value, starts: Any, stops: Any, axes: Any, steps: Any, shape: Any) -> Value:
    value = graph.stretched(value)
    numbers = [graph.constant(x, np.int64) for x in (starts, stops, axes, steps)]
    return graph.computed(shape, graph.node('Slice', [graph.name(value), *numbers]))


@rule('slice')
def _slice(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    shape = values[0].shape
    strides = params['strides'] or (1,) * len(shape)
    parts = [*zip(params['start_indices'], params['limit_indices'], strides)]
    cut = [
        i
        for i, (start, stop, step) in enumerate(parts)
        if (start, step) != (0, 1) or not same(stop, shape[i])
    ]
    starts, stops, steps = ([parts[axis][key] for axis in cut] for key in range(3))
    return [_cut(graph, values[0], starts, stops, cut, steps, outs[0].shape)]


@rule('rev')
def _reversed(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    axes = list(params['dimensions'])
    ends = [np.iinfo(np.int64).min] * len(axes)
    return [_cut(graph, values[0], [-1] * len(axes), ends, axes, [-1] * len(axes), outs[0].shape)]


@rule('split')
def _split(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    axis, start, result = params['axis'], 0, []
    for size, out in zip(params['sizes'], outs):
        result.append(_cut(graph, values[0], [start], [start + size], [axis], [1], out.shape))
        start += size
    return result


@rule('gather')
def _gather(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    operand, indices = values
    about, sizes = params['dimension_numbers'], params['slice_sizes']
    axes = tuple(about.start_index_map)
    if axes == tuple(about.collapsed_slice_dims) == tuple(range(len(operand.shape))):
        index = graph.node('Cast', [graph.name(graph.stretched(indices))], to=INT64)
        name = graph.node('GatherND', [graph.name(graph.stretched(operand)), index])
        return [graph.computed(outs[0].shape, name)]
    if indices.array is None or len(indices.shape) != 1 or about.operand_batching_dims:
        raise InputError(f'a gather by {about} cannot be written as ONNX')
    # A slice at a place that is known: jax writes it so where another axis has a free length.
    whole = [i for i in range(len(sizes)) if i not in axes]
    assert all(same(sizes[i], operand.shape[i]) for i in whole)
    starts = [int(start) for start in indices.array]
    stops = [start + int(sizes[axis]) for start, axis in zip(starts, axes)]
    part = _cut(graph, operand, starts, stops, axes, [1] * len(axes), tuple(sizes))
    return [graph.reshape(part, outs[0].shape)]


@rule('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_or', 'reduce_and')
def _reduce(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    value, axes = graph.full(values[0]), list(params['axes'])
    if any(axis in value.thin for axis in axes):
        value = graph.stretched(value)
    held = tuple(n for axis, n in enumerate(value.held) if axis not in axes)
    name, primitive = graph.name(value), params['primitive']
    if primitive == 'reduce_sum':
        name = graph.node('ReduceSum', [name, graph.constant(axes, np.int64)], keepdims=0)
        return [graph.computed(outs[0].shape, name, held)]
    logical = primitive in ('reduce_or', 'reduce_and')
    name = graph.node('Cast', [name], to=FLOAT) if logical else name
    kind = 'ReduceMax' if primitive in ('reduce_max', 'reduce_or') else 'ReduceMin'
    name = graph.node(kind, [name], axes=axes, keepdims=0)
    name = graph.node('Cast', [name], to=BOOL) if logical else name
    return [graph.computed(outs[0].shape, name, held)]


@rule('dot_general')
def _dot(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    (contracted, batched), shape = params['dimension_numbers'], outs[0].shape
    left, right = values
    if not batched[0] and len(right.shape) == 2 and tuple(contracted[1]) == (0,):
        left = graph.full(left)
        if tuple(contracted[0]) == (len(left.shape) - 1,):
            held = (*left.held[:-1], right.shape[1])
            return [graph.computed(shape, graph.node('MatMul', [graph.name(left), graph.name(right)]), held)]
    # Matrices with all batched axes in front: (batch, free, contracted) times (batch, contracted, free).
    sides, free = [], []
    for side, value in enumerate((graph.stretched(left), graph.stretched(right))):
        batch, inner = list(batched[side]), list(contracted[side])
        rest = [axis for axis in range(len(value.shape)) if axis not in (*batch, *inner)]
        free.append(tuple(value.shape[axis] for axis in rest))
        order = (*batch, *rest, *inner) if side == 0 else (*batch, *inner, *rest)
        flat = [_product(value.shape[axis] for axis in part) for part in (rest, inner)]
        lengths = flat if side == 0 else flat[::-1]
        target = (*(value.shape[axis] for axis in batch), *lengths)
        value = _transposed(graph, value, order)
        sides.append(value if value.shape == target else graph.stretched(graph.reshape(value, target)))
    names = [graph.name(value) for value in sides]
    result = graph.computed((*sides[0].shape[:-1], sides[1].shape[-1]), graph.node('MatMul', names))
    return [result if len(free[0]) == len(free[1]) == 1 else graph.reshape(result, shape)]


def _product(lengths: Any) -> Any:
    total: Any = 1
    for n in lengths:
        total = total * n
    return total


@rule('pad')
def _pad(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    value, config = graph.stretched(values[0]), params['padding_config']
    if any(inner for _, _, inner in config):
        raise InputError('padding between elements cannot be written as ONNX')
    pads = graph.constant([n[0] for n in config] + [n[1] for n in config], np.int64)
    name, filler = graph.name(value), graph.name(values[1])
    if str(outs[0].dtype) == 'bool':
        name, filler = (graph.node('Cast', [x], to=FLOAT) for x in (name, filler))
    name = graph.node('Pad', [name, pads, filler])
    name = graph.node('Cast', [name], to=BOOL) if str(outs[0].dtype) == 'bool' else name
    return [graph.computed(outs[0].shape, name)]


@rule('sort')
def _sort(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    if len(values) != 1 or str(outs[0].dtype) != 'float32':
        raise InputError('a sort of several arrays cannot be written as ONNX')
    name, axis, size = graph.name(graph.stretched(values[0])), params['dimension'], outs[0].shape[-1]
    if axis != len(outs[0].shape) - 1 or not is_static(size):
        raise InputError(f'a sort along axis {axis} cannot be written as ONNX')
    # NaN come last, as jax has them; ONNX does not say where they come.
    missing = graph.node('IsNaN', [name])
    name = graph.node('Where', [missing, graph.constant(np.float32(np.inf)), name])
    count = graph.constant([size], np.int64)
    name, _ = graph.node('TopK', [name, count], outputs=2, axis=axis, largest=0, sorted=1)
    gone = graph.node('Cast', [missing], to=FLOAT)
    gone = graph.node('ReduceSum', [gone, graph.constant([axis], np.int64)], keepdims=1)
    there = graph.node('Sub', [graph.constant(np.float32(size)), gone])
    inside = graph.node('Less', [graph.constant(np.arange(size, dtype=np.float32)), there])
    name = graph.node('Where', [inside, name, graph.constant(np.float32(np.nan))])
    return [graph.computed(outs[0].shape, name)]


@rule('iota')
def _iota(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    """Along the number of images; any other one is known."""
    axis, shape = params['dimension'], outs[0].shape
    scalars = [graph.constant(np.int64(n)) for n in (0, 1)]
    end = graph.node('Squeeze', [graph.length(shape[axis])])
    name = graph.node('Cast', [graph.node('Range', [scalars[0], end, scalars[1]])], to=TYPES['int32'])
    others = graph.constant([i for i in range(len(shape)) if i != axis], np.int64)
    name = graph.node('Unsqueeze', [name, others]) if len(shape) > 1 else name
    name = graph.node('Cast', [name], to=TYPES[str(outs[0].dtype)])
    held = tuple(n if i == axis else 1 for i, n in enumerate(shape))
    return [graph.computed(shape, name, held)]


@rule('dim_as_value')
def _dim(graph: Graph, values: list[Value], params: dict[str, Any], outs: Any) -> list[Value]:
    name = graph.node('Squeeze', [graph.length(params['dim'])])
    return [graph.computed((), graph.node('Cast', [name], to=TYPES[str(outs[0].dtype)]))]


def _broadcast_array(x: Any, params: dict[str, Any]) -> Any:
    shape = [1] * len(params['shape'])
    for axis, n in zip(params['broadcast_dimensions'], x.shape):
        shape[axis] = n
    return np.broadcast_to(x.reshape(shape), params['shape'])


def _iota_array(params: dict[str, Any]) -> Any:
    along, shape = params['dimension'], params['shape']
    line = np.arange(shape[along]).reshape([-1 if i == along else 1 for i in range(len(shape))])
    return np.broadcast_to(line, shape)


# Known arrays by NumPy, where it gives the same number as jax: a compilation for each would take minutes. The
# arrays and parameters of an equation -> its result, or its results.
PLAIN: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    'add': lambda x, _: np.add(*x),
    'sub': lambda x, _: np.subtract(*x),
    'mul': lambda x, _: np.multiply(*x),
    'max': lambda x, _: np.maximum(*x),
    'min': lambda x, _: np.minimum(*x),
    'neg': lambda x, _: np.negative(*x),
    'abs': lambda x, _: np.abs(*x),
    'floor': lambda x, _: np.floor(*x),
    'lt': lambda x, _: np.less(*x),
    'le': lambda x, _: np.less_equal(*x),
    'gt': lambda x, _: np.greater(*x),
    'ge': lambda x, _: np.greater_equal(*x),
    'eq': lambda x, _: np.equal(*x),
    'ne': lambda x, _: np.not_equal(*x),
    'not': lambda x, _: np.logical_not(*x) if x[0].dtype == bool else np.invert(*x),
    'select_n': lambda x, _: np.where(x[0], x[2], x[1]),
    'convert_element_type': lambda x, params: x[0].astype(params['new_dtype']),
    'broadcast_in_dim': lambda x, params: _broadcast_array(x[0], params),
    'iota': lambda x, params: _iota_array(params),
    'transpose': lambda x, params: x[0].transpose(params['permutation']),
    'squeeze': lambda x, params: x[0].squeeze(params['dimensions']),
    'rev': lambda x, params: np.flip(x[0], params['dimensions']),
    'concatenate': lambda x, params: np.concatenate(x, params['dimension']),
    'split': lambda x, params: np.split(x[0], np.cumsum(params['sizes'])[:-1], params['axis']),
    'copy': lambda x, _: x[0],
    'stop_gradient': lambda x, _: x[0],
}
