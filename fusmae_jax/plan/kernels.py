"""The kernels of an optimised XLA:GPU program: what each multiplies, and what it reads and writes in HBM.

A kernel is an instruction that runs on the device by itself: a fusion, a library call, a copy. Counted is
what it has to move: operands and results once, of a slice only what the slice touches, of a buffer that is
updated in place only the update.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fusmae_jax.plan.hlo import CONTROL, Computation, Instruction, Module, Shape, Step

# They move nothing: names for buffers, containers, and ends of what was counted at its start.
NAMES = 'parameter constant tuple get-tuple-element bitcast opt-barrier domain after-all add-dependency'
FREE = frozenset({*NAMES.split(), *CONTROL, 'async-update', 'partition-id', 'replica-id'})
# The same numbers in another place; `pad` writes them with zeros around.
MOVES = ('pad', 'copy', 'transpose', 'concatenate', 'slice', 'dynamic-slice', 'dynamic-update-slice')
FILL = 'fill'  # a constant, written all over a buffer
PLAIN = ('bitcast', 'reshape', 'convert')  # behind them a value is still the same one

GEMM = '__cublas'
ATTENTION = '__cudnn$fmha'
TRITON = re.compile(r'triton|mosaic_gpu')
UNTOLD = re.compile(rf'{TRITON.pattern}|fmha')  # targets that multiply, perhaps in ways that are not known
KERNEL_NAME = re.compile(r'attention_(forward|backward)')
NO_PRODUCTS = re.compile(r'add_norm_(forward|backward)')  # kernels of ours that multiply no matrices
ALIASES = re.compile(r'output_to_operand_aliasing=\{((?:\{[\d, ]*\}: \(\d+, \{[\d, ]*\}\)(?:, )?)*)')
# Products of attention, each 2 b h n m e: scores and output; and backward scores, dV, dP, dQ, dK.
PRODUCTS = {'forward': 2, 'backward': 5}


class Product(NamedTuple):
    """A matrix product, batched or not."""

    flops: int  # two for a multiply-add
    dtype: str  # of its operands, the wider one
    exact: bool  # float32 operands stay float32 (precision 'highest'); else tensor cores take them as tf32
    rows: int  # of the output, of one of them where they are batched
    columns: int
    batched: bool
    sums_rows: bool = False  # runs over the leading axis of its left side, as gradients of weights do


class Kernel(NamedTuple):
    """A kernel and how often a step runs it; bytes and operations are of one run."""

    instruction: Instruction
    computation: Computation
    times: int
    products: tuple[Product, ...]
    read: int  # bytes
    written: int
    hero: str  # the operation behind the largest output: one of MOVES, FILL, or whatever it is
    unknown: bool  # a kernel whose operations cannot be told from its shapes, and count as none

    @property
    def flops(self) -> int:
        """Operations of its matrix products."""
        return sum(product.flops for product in self.products)

    @property
    def traffic(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


def kernels(module: Module) -> list[Kernel]:
    """All kernels of a program, in the order of its text."""
    return [_kernel(module, step) for step in module.walk() if _runs(step.instruction)]


def _runs(instruction: Instruction) -> bool:
    return instruction.opcode not in FREE and not instruction.opcode.endswith('-done')


def _kernel(module: Module, step: Step) -> Kernel:
    instruction, known = step.instruction, step.computation
    products: tuple[Product, ...] = ()
    unknown = False
    operands = [known[name].bytes for name in instruction.operands if name in known]
    read, written, hero = sum(operands), instruction.bytes, instruction.opcode
    if instruction.opcode == 'fusion':
        fused = module.body(instruction)
        read, written = _fusion_read(fused), sum(_written(fused, i) for i in _outputs(fused))
        products = tuple(_products(module, fused))
        hero = _hero(fused, instruction, known)
    elif instruction.opcode == 'custom-call':
        read, written = _call_traffic(instruction, known)
        product = _call_product(instruction, known)
        products = (product,) if product else ()
        ours = NO_PRODUCTS.search(instruction.op_name)
        unknown = not product and not ours and bool(UNTOLD.search(instruction.target))
        hero = instruction.target
    elif instruction.opcode == 'dot':
        products = (_dot(instruction, known),)
    elif instruction.opcode in ('slice', 'dynamic-slice', 'gather'):
        read = written
    elif instruction.opcode == 'dynamic-update-slice':
        read = written = known[instruction.operands[1]].bytes
    elif instruction.opcode == 'copy-start':
        written = read
    elif instruction.opcode == 'broadcast' and _constant(known, instruction.operands[0]):
        hero = FILL
    return Kernel(instruction, known, step.times, products, read, written, hero, unknown)


def _fusion_read(fused: Computation) -> int:
    """Bytes that a fusion reads of its parameters."""
    users: dict[str, list[Instruction]] = {}
    for instruction in fused.values():
        for name in set(instruction.operands):
            users.setdefault(name, []).append(instruction)
    return sum(_touched(i, users) for i in fused.values() if i.opcode == 'parameter')


def _touched(parameter: Instruction, users: dict[str, list[Instruction]]) -> int:
    """Bytes read of one parameter: all of it, unless everything that uses it takes a part."""
    total, todo = 0, [parameter]
    while todo:
        value = todo.pop()
        for user in users.get(value.name, ()):
            first = user.operands[0] == value.name
            if user.opcode in ('bitcast', 'reshape'):
                todo.append(user)
            elif user.opcode in ('slice', 'dynamic-slice') or (user.opcode == 'gather' and first):
                total += user.bytes
            elif user.opcode == 'tuple' or (user.opcode == 'dynamic-update-slice' and first):
                continue  # handed on, or updated in place
            else:
                return parameter.bytes
    return min(total, parameter.bytes)


def _outputs(fused: Computation) -> list[Instruction]:
    """What a fusion writes: its root, or the parts of a root that is a tuple."""
    root = next(i for i in fused.values() if i.root)
    return [fused[name] for name in root.operands] if root.opcode == 'tuple' else [root]


def _written(fused: Computation, output: Instruction) -> int:
    source = _source(fused, output, ('bitcast',))
    if source.opcode == 'dynamic-update-slice':
        return fused[source.operands[1]].bytes
    if source.opcode == 'scatter':
        return fused[source.operands[-1]].bytes
    return 0 if source.opcode == 'parameter' and source is not output else output.bytes


def _source(fused: Computation, value: Instruction, through: tuple[str, ...]) -> Instruction:
    """The instruction that a value comes from, behind some that leave it as it is."""
    while value.opcode in through and value.operands[0] in fused:
        value = fused[value.operands[0]]
    return value


def _hero(fused: Computation, fusion: Instruction, outside: Computation) -> str:
    """The operation behind the largest output of a fusion."""
    output = max(_outputs(fused), key=lambda i: _written(fused, i))
    origin = _source(fused, output, (*PLAIN, 'copy', 'transpose', 'broadcast'))
    if origin.opcode == 'constant':
        return FILL
    if origin.opcode == 'parameter' and _constant(outside, fusion.operands[int(origin.arguments)]):
        return FILL
    moved = _source(fused, output, (*PLAIN, 'copy', 'transpose')).opcode
    return moved if moved == 'dynamic-slice' else _source(fused, output, PLAIN).opcode


def _constant(known: Computation, name: str) -> bool:
    return name in known and known[name].opcode == 'constant' and known[name].shapes[0].size == 1


def _products(module: Module, fused: Computation) -> Iterator[Product]:
    """The products inside a fusion, and inside those that it is nested of."""
    for instruction in fused.values():
        if instruction.opcode == 'dot':
            yield _dot(instruction, fused)
        elif instruction.opcode == 'fusion':
            yield from _products(module, module.body(instruction))


def _dot(dot: Instruction, known: Computation) -> Product:
    """The product of a `dot`."""
    left, right = (known[name].shapes[0] for name in dot.operands[:2])
    exact = bool(re.search(r'operand_precision=\{[^}]*highest', dot.attributes))
    contracted, batch = (_dims(rf'{key}=\{{([\d,]*)\}}', dot) for key in DOT_DIMS)
    return _product(left, right, dot.shapes[0], contracted, batch, exact)


DOT_DIMS = ('lhs_contracting_dims', 'lhs_batch_dims')
CALL_DIMS = ('lhs_contracting_dimensions', 'lhs_batch_dimensions')


def _dims(pattern: str, instruction: Instruction) -> list[int]:
    match = re.search(pattern, instruction.attributes)
    return [int(dim) for dim in re.findall(r'\d+', match[1])] if match else []


def _product(
    left: Shape, right: Shape, out: Shape, contracted: list[int], batch: list[int], exact: bool
) -> Product:
    inner = _count(left, contracted)
    samples = _count(left, batch)
    rows = left.size // max(inner * samples, 1)
    # cuBLAS pads what is no multiple of 8: the output, with the padding, is what is computed.
    return Product(
        flops=2 * out.size * inner,
        dtype=max(left, right, key=lambda shape: shape.bytes / max(shape.size, 1)).dtype,
        exact=exact,
        rows=rows,
        columns=out.size // max(rows * samples, 1),
        batched=samples > 1,
        sums_rows=contracted == [0],
    )


def _count(shape: Shape, axes: list[int]) -> int:
    return Shape('', tuple(shape.dims[axis] for axis in axes)).size


def _call_traffic(call: Instruction, known: Computation) -> tuple[int, int]:
    """Bytes that a library call or a hand-written kernel reads and writes; its scratch space is neither."""
    operands = [known[name].bytes if name in known else 0 for name in call.operands]
    outputs = list(call.shapes)
    library = call.target.startswith((GEMM, '__cudnn'))
    if library and len(outputs) > 1 and outputs[-1].dtype in ('s8', 'u8'):
        outputs.pop()
    if not library:
        # A buffer that such a kernel gives back as its result is there to be written into.
        for index in _aliased(call):
            operands[index] = 0
    return sum(operands), sum(shape.bytes for shape in outputs)


def _aliased(call: Instruction) -> list[int]:
    """Numbers of the operands whose buffers a call writes its results into."""
    match = ALIASES.search(call.attributes)
    return [int(index) for index in re.findall(r': \((\d+)', match[1])] if match else []


def _call_product(call: Instruction, known: Computation) -> Product | None:
    """The product, or those of an attention together, of a call; None where it is neither."""
    shapes = [known[name].shapes[0] for name in call.operands if name in known and known[name].shapes]
    if call.target.startswith(GEMM) and len(shapes) > 1:
        contracted, batch = (_dims(rf'"{key}":\[([^\]]*)\]', call) for key in CALL_DIMS)
        exact = 'HIGHEST' in call.attributes
        return _product(shapes[0], shapes[1], call.shapes[0], contracted, batch, exact)
    if call.target.startswith(ATTENTION) and len(shapes) > 2:
        return _library_attention(call, shapes[0])
    names = KERNEL_NAME.findall(call.op_name) if TRITON.search(call.target) else []
    return _fused_attention(call, shapes, names[-1]) if names else None


def _library_attention(call: Instruction, query: Shape) -> Product | None:
    """The products of cuDNN's attention, whose configuration has the shape (b, h, n, m) of its scores."""
    scores = _dims(r'"intermediate_tensor_shape":\{.*?"dimensions":\[([^\]]*)\]', call)
    if len(scores) != 4:
        return None
    width = query.dims[-1]
    way = 'backward' if 'Backward' in call.target else 'forward'
    return _attention(query, Shape('', tuple(scores[:3])).size * width, scores[3], way)


def _fused_attention(call: Instruction, shapes: list[Shape], way: str) -> Product | None:
    """The products of one of this project's attention kernels.

    Its queries, or queries, keys and values side by side, come first, (b, n, ...), and with a single operand
    of them n = m; otherwise the keys (b, m, ...) come next.
    """
    tokens = [s for s in (*shapes, *call.shapes) if len(s.dims) >= 3 and s.dtype.startswith(('bf', 'f'))]
    if len(tokens) < 2 or len(shapes[0].dims) < 3:
        return None
    first = tokens[0]
    thirds = any(first.size == 3 * other.size for other in tokens[1:])
    count = first.size // 3 if thirds else first.size
    keys = first if thirds else tokens[1]
    return _attention(first, count, keys.dims[1], way)


def _attention(query: Shape, count: int, keys: int, way: str) -> Product:
    """The products of attention together.

    Args:
        query: its type and rows, (b, n, ...).
        count: b n h e, the numbers in the queries.
        keys: m, tokens that each query attends to.
        way: 'forward' or 'backward'.
    """
    flops = PRODUCTS[way] * 2 * count * keys
    return Product(flops, query.dtype, exact=False, rows=query.dims[1], columns=keys, batched=True)
