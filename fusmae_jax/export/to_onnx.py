"""ONNX: the encoder as graphs of plain operators, with a free batch dimension.

A folder with one graph for each set of sensors; their weights lie beside them in one file that all share. A
graph is written from the jaxpr of the exported function, primitive by primitive (`onnx_ops`), so that all of
the preparation is inside and what is compared with `encode` is what `encode` runs.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export
from jax.extend import core

import fusmae_jax
from fusmae_jax import storage
from fusmae_jax.encoders.inputs import describe
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.export.function import encode_function, encoder_weights, given_fields, subsets
from fusmae_jax.export.onnx_graph import Graph, Value, is_static
from fusmae_jax.export.onnx_ops import PLAIN, RULES, TYPES
from fusmae_jax.export.to_stablehlo import CONTRACT, EXAMPLE, program_name
from fusmae_jax.installed import need

OPERATORS = 17  # version of the operator set: of 2022, which every runtime in use reads
IR_VERSION = 8  # of the file format, of the same time
WEIGHTS = 'weights.data'
INLINE = 1024  # bytes of a constant that stays in the graph
TEXT = '''"""Runs the exported encoder: onnxruntime and numpy are all it needs."""

import json
import pathlib

import numpy as np
import onnxruntime

here = pathlib.Path(__file__).parent
contract = json.loads((here / 'contract.json').read_text())
name, program = next(reversed(contract['programs'].items()))  # all sensors together
session = onnxruntime.InferenceSession(here / program['file'])
# Your images, (b, rows, columns, bands) in the units of contract['inputs']; NaN where nothing was measured.
shapes = {field: contract['inputs'][field]['shape'][1:] for field in program['inputs']}
images = {field: np.full([2, *shape], np.nan, 'f4') for field, shape in shapes.items()}
features = dict(zip([output.name for output in session.get_outputs()], session.run(None, images)))
print(name, {key: value.shape for key, value in features.items()})
'''


def write(folder: epath.Path, model: Pretrained) -> dict[str, Any]:
    """Writes the folder; returns what its contract says.

    Raises:
        InputError: onnx is not installed; the encoder has an operation that is not among those of `onnx_ops`.
    """
    onnx, _ = installed()
    store, programs = _Weights(), {}
    models = {given: graph_of(model, given, store) for given in subsets(model)}
    storage.write_bytes(folder / WEIGHTS, store.content())
    for given, proto in models.items():
        name = f'{program_name(given)}.onnx'
        storage.write_bytes(folder / name, proto.SerializeToString())
        # By its path, so that the weights beside it are looked for as well.
        onnx.checker.check_model(str(folder / name), full_check=True)
        programs['+'.join(given)] = {'file': name, 'inputs': [*given_fields(model, given)]}
    contract = {
        'format': 'fusmae_jax onnx 1',
        'operators': OPERATORS,
        'programs': programs,
        'weights': WEIGHTS,
        **describe(model),
    }
    storage.write_json(folder / CONTRACT, contract)
    storage.write_text(folder / EXAMPLE, TEXT)
    return contract


def runner(folder: epath.Path) -> Any:
    """(sensors, images) -> features by onnxruntime on the CPU, of what is stored in a folder."""
    _, runtime = installed()
    contract = json.loads((folder / CONTRACT).read_text())

    def run(given: tuple[str, ...], images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        file = folder / contract['programs']['+'.join(given)]['file']
        session = runtime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, dict(images))))

    return run


def installed() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime; raises InputError where they are not installed."""
    need('export', '--to=onnx', 'onnx', 'onnxruntime')
    import onnx
    import onnxruntime

    return onnx, onnxruntime


class _Weights:
    """The file that the graphs of a folder share; the same array lies in it once."""

    def __init__(self) -> None:
        self._places: dict[tuple[Any, ...], int] = {}
        self._parts: list[bytes] = []
        self._end = 0

    def place(self, array: np.ndarray) -> int:
        """Where the bytes of an array begin."""
        data = array.tobytes()
        key = (len(data), storage.digest([data]))
        if key not in self._places:
            # On a page of its own, so that a runtime can map it.
            gap = -self._end % 4096
            self._places[key] = self._end + gap
            self._parts += [bytes(gap), data]
            self._end += gap + len(data)
        return self._places[key]

    def content(self) -> bytes:
        return b''.join(self._parts)


def graph_of(model: Pretrained, given: tuple[str, ...], store: _Weights) -> Any:
    """The ModelProto of some sensors; its large constants go to `store`."""
    onnx, _ = installed()
    closed, outputs = _traced(model, given)
    groups = given_fields(model, given)
    graph = Graph(onnx.helper, next(iter(groups)))
    weights = encoder_weights(model)
    names = sorted(groups)  # the order in which jax flattens a dict
    values = [graph.known(x.shape, np.asarray(x)) for _, x in sorted(weights.items())]
    images = closed.jaxpr.invars[len(values) :]
    values += [graph.computed(v.aval.shape, name) for name, v in zip(names, images, strict=True)]
    results = evaluate(graph, closed.jaxpr, closed.consts, values)
    return _proto(onnx, graph, groups, outputs, results, closed.out_avals, store)


def _traced(model: Pretrained, given: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The jaxpr of the function with a free number of images, and the names of its outputs in order."""
    # A loop over blocks would be a loop of ONNX, which few runtimes optimise.
    config = model.config
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan=False))
    straight = Pretrained(config, model.contract, model.params, 'float32')
    (batch,) = export.symbolic_shape('b')
    images = {
        field: jax.ShapeDtypeStruct((batch, *group.size, len(group.bands)), jnp.float32)
        for field, group in given_fields(model, given).items()
    }
    weights = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in encoder_weights(model).items()}
    closed, shapes = jax.make_jaxpr(encode_function(straight, given), return_shape=True)(weights, images)
    return closed, sorted(shapes)


def evaluate(graph: Graph, jaxpr: Any, consts: Sequence[Any], values: Sequence[Value]) -> list[Value]:
    """Writes the equations of a jaxpr into a graph; what depends on no input is computed at once."""
    known: dict[Any, Value] = {}

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            kind: Any = atom.aval
            return graph.known((), np.asarray(atom.val, kind.dtype))
        return known[atom]

    for variable, x in zip(jaxpr.constvars, consts):
        known[variable] = graph.known(variable.aval.shape, np.asarray(x))
    known.update(zip(jaxpr.invars, values, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outs = [variable.aval for variable in equation.outvars]
        for variable, value in zip(equation.outvars, _equation(graph, equation, inputs, outs), strict=True):
            known[variable] = value
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, inputs: list[Value], outs: list[Any]) -> list[Value]:
    name, params = equation.primitive.name, equation.params
    inner = next((params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in params), None)
    if inner is not None:
        if name in ('scan', 'while', 'cond'):
            raise InputError(f'the encoder has a {name}, which is not written as ONNX')
        closed = hasattr(inner, 'consts')
        return evaluate(graph, inner.jaxpr if closed else inner, inner.consts if closed else (), inputs)
    if (folded := _folded(graph, equation, inputs, outs)) is not None:
        return folded
    if name not in RULES:
        raise InputError(f'the encoder has the operation {name}, which is not among those written as ONNX')
    return RULES[name](graph, inputs, {**params, 'primitive': name}, outs)


def _folded(graph: Graph, equation: Any, inputs: list[Value], outs: list[Any]) -> list[Value] | None:
    """The results of an equation of which all is known, along the number of images of length 1."""
    name, params = equation.primitive.name, equation.params
    if any(value.array is None for value in inputs) or name == 'dim_as_value':
        return None
    if name == 'iota' and not is_static(params['shape'][params['dimension']]):
        return None
    params = {key: _of_one_image(value) for key, value in params.items()}
    held = [graph.full(value).array for value in inputs]
    if name in PLAIN:
        result = PLAIN[name](held, params)
        result = result if equation.primitive.multiple_results else [result]
        return [graph.known(out.shape, np.asarray(x, out.dtype)) for out, x in zip(outs, result, strict=True)]
    arrays = [jnp.asarray(array) for array in held]
    # Not inside the trace of the function, and on the CPU whatever this process computes on.
    with jax.ensure_compile_time_eval(), jax.default_device(jax.devices('cpu')[0]):
        results = equation.primitive.bind(*arrays, **params)
    results = results if equation.primitive.multiple_results else [results]
    return [graph.known(out.shape, np.asarray(x)) for out, x in zip(outs, results, strict=True)]


def _of_one_image(value: Any) -> Any:
    """A parameter of a primitive with 1 in place of the number of images."""
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_of_one_image(item) for item in value)
    if hasattr(value, '_evaluate'):
        return int(value._evaluate(dict.fromkeys(value._get_vars(), 1)))
    return value


def _proto(
    onnx: Any,
    graph: Graph,
    groups: Mapping[str, Any],
    outputs: list[str],
    results: list[Value],
    avals: Any,
    store: _Weights,
) -> Any:
    """The ModelProto of a finished graph."""
    helper = onnx.helper

    def info(name: str, aval_shape: Any, kind: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [n if is_static(n) else 'b' for n in aval_shape])

    for name, value in zip(outputs, results, strict=True):
        source = graph.name(graph.stretched(value))
        graph.nodes.append(helper.make_node('Identity', [source], [name], name=f'out_{name}'))
    nodes, used = _needed(graph.nodes, {*outputs})
    made = helper.make_graph(
        nodes,
        'fusmae_jax_encoder',
        [info(f, ('b', *g.size, len(g.bands)), TYPES['float32']) for f, g in groups.items()],
        [info(name, aval.shape, TYPES['float32']) for name, aval in zip(outputs, avals)],
        [_initializer(onnx, name, array, store) for name, array in graph.constants.items() if name in used],
    )
    operators = [helper.make_opsetid('', OPERATORS)]
    return helper.make_model(
        made,
        opset_imports=operators,
        ir_version=IR_VERSION,
        producer_name='fusmae_jax',
        producer_version=fusmae_jax.__version__,
    )


def _needed(nodes: Sequence[Any], names: set[str]) -> tuple[list[Any], set[str]]:
    """The nodes that some values follow from, and the names of all that they read."""
    kept = []
    for node in reversed(nodes):
        if names & {*node.output}:
            names |= {*node.input}
            kept.append(node)
    return kept[::-1], names


def _initializer(onnx: Any, name: str, array: np.ndarray, store: _Weights) -> Any:
    tensor = onnx.numpy_helper.from_array(array, name)
    if array.nbytes <= INLINE:
        return tensor
    tensor.ClearField('raw_data')
    tensor.data_location = onnx.TensorProto.EXTERNAL
    where = {'location': WEIGHTS, 'offset': store.place(array), 'length': array.nbytes}
    entry = onnx.StringStringEntryProto
    tensor.external_data.extend(entry(key=key, value=str(value)) for key, value in where.items())
    return tensor
