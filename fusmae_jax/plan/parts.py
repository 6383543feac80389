"""Which part of the model an instruction of the compiled step belongs to, and which kind of work it is.

Both are told by a `jax.named_scope` of their name (SCOPES, KIND_SCOPES) in the instruction's path, or else by
the functions that were being traced when the instruction was made. The backward pass carries path and stack
of the forward pass, so it goes to the same place. What a `jax.custom_vjp` function does has the frames of its
caller and not its own: only a scope, or a plain function around it, names it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fusmae_jax.plan.hlo import Frame, Instruction, Module

PREPARE, MASKS, PATCHES = 'prepare', 'masks', 'patches, positions'
BLOCK1, BLOCKS, DECODERS = 'block 1', 'encoder blocks', 'decoders'
LOSS, OPTIMIZER, OTHER = 'loss', 'optimizer', 'no source line'
PARTS = (PREPARE, MASKS, PATCHES, BLOCK1, BLOCKS, DECODERS, LOSS, OPTIMIZER, OTHER)

# Names of `jax.named_scope` that settle the part, where the model has them.
SCOPES = {
    'prepare': PREPARE,
    'masks': MASKS,
    'patches': PATCHES,
    'block1': BLOCK1,
    'encoder_blocks': BLOCKS,
    'decoders': DECODERS,
    'loss': LOSS,
    'optimizer': OPTIMIZER,
}
KIND_SCOPES = {
    'attend': 'attention core',
    'attention_forward': 'attention core',
    'attention_backward': 'attention core',
    'layer_norm': 'LayerNorm',
    'add_norm_forward': 'LayerNorm',
    'add_norm_backward': 'LayerNorm',
    'gelu': 'GELU',
}
# (part, file, function), each a pattern; the first that some frame of the stack matches.
FRAMES = (
    (PREPARE, r'fusmae_jax/input/', ''),
    (MASKS, r'fusmae_jax/models/masking', ''),
    (DECODERS, r'fusmae_jax/models/(decoder|multimae)', r'^\w*Decoder\.'),
    (DECODERS, r'fusmae_jax/models/fusion', r'^XAttnDecoder\.|^fuse_'),
    (BLOCK1, r'fusmae_jax/models/fusion', r'^XAttnEncoder\.'),
    (BLOCKS, r'fusmae_jax/models/', r'^Encoder\._after_block1$'),
    (BLOCK1, r'fusmae_jax/models/blocks', r'^Block\.'),
    (PATCHES, r'fusmae_jax/models/encoder', r'^Encoder\.'),
    (LOSS, r'fusmae_jax/train/(losses|dino_objective)', ''),
    (LOSS, r'fusmae_jax/train/objective', r'^(?!reconstruction|masked_inputs)'),
    (PATCHES, r'fusmae_jax/models/fusmae', ''),
    (OPTIMIZER, r'/optax/', ''),
)
STEP = r'^make_step\.<locals>\.step'

# (kind, file, function), the first that some frame matches.
KINDS = (
    ('attention core', r'models/', r'(^|\.)attend$|attention_(forward|backward)'),
    ('attention core', r'models/kernels/attention|nn/functions|cudnn', ''),
    ('LayerNorm', '', r'^LayerNorm\.|(^|[._])layer_norm'),
    ('GELU', r'models/', r'(^|[._])gelu'),
    ('heads', r'models/attention', r'^_?(heads|split)'),
)
MLP, LINEAR = r'(^|\.)Mlp\.', r'^Linear\.'


class Place(NamedTuple):
    """Where an instruction belongs."""

    part: str  # one of PARTS
    kind: str  # within the part; '' where there is nothing to tell apart


def place(op_name: str, stack: tuple[Frame, ...]) -> Place:
    """The place of an instruction, by its path of names and its stack (outermost frame first)."""
    part = _part(op_name, stack)
    return Place(part, _kind(op_name, stack) if part in (BLOCK1, BLOCKS, DECODERS) else '')


def _part(op_name: str, stack: tuple[Frame, ...]) -> str:
    if part := _scope(op_name, SCOPES):
        return part
    for part, file, function in FRAMES:
        if _any(stack, file, function):
            return part
    # The step's own frame stands in every stack; what was differentiated is not the optimizer's.
    if 'jvp(' not in op_name and _any(stack, r'train/step', STEP):
        return OPTIMIZER
    return OTHER


def _kind(op_name: str, stack: tuple[Frame, ...]) -> str:
    if kind := _scope(op_name, KIND_SCOPES):
        return kind
    for kind, file, function in KINDS:
        if _any(stack, file, function):
            return kind
    mlp, linear = _any(stack, '', MLP), _any(stack, '', LINEAR)
    if linear:
        return 'MLP linears' if mlp else 'other linears'
    return 'GELU' if mlp else 'residual, rest'


def _scope(op_name: str, scopes: Mapping[str, str]) -> str:
    """What the innermost scope that has a meaning says; '' where there is none."""
    meanings = [scopes[word] for word in re.split(r'[/()]+', op_name) if word in scopes]
    return meanings[-1] if meanings else ''


def _any(stack: tuple[Frame, ...], file: str, function: str) -> bool:
    return any(re.search(file, f.file) and re.search(function, f.function) for f in stack)


def places(module: Module) -> dict[str, Place]:
    """The place of each instruction that runs by itself, by its name.

    A fusion has that of its root, or else of the last of its instructions that has one. What the compiler
    made by itself (zeros, copies) has no source line, and belongs where its result is used, or else where
    its operands are from.
    """
    computations = {id(step.computation): step.computation for step in module.walk()}
    out: dict[str, Place] = {}
    for computation in computations.values():
        direct = {name: _direct(module, i) for name, i in computation.items()}
        users: dict[str, list[str]] = {}
        for instruction in computation.values():
            for name in instruction.operands:
                users.setdefault(name, []).append(instruction.name)
        operands = {name: i.operands for name, i in computation.items()}
        for name, known in direct.items():
            settled = known if known.part != OTHER else None
            settled = settled or _nearest(name, users, direct) or _nearest(name, operands, direct)
            out[name] = settled or known
    return out


def _direct(module: Module, instruction: Instruction) -> Place:
    """The place that the metadata of an instruction tell, or those inside a fusion."""
    inside: Iterator[Instruction] = iter(())
    if instruction.opcode == 'fusion':
        inside = reversed(module.body(instruction).values())
    for each in (instruction, *inside):
        where = place(each.op_name, module.stack(each))
        if where.part != OTHER:
            return where
    return Place(OTHER, '')


def _nearest(name: str, following: Mapping[str, Sequence[str]], direct: Mapping[str, Place]) -> Place | None:
    """The place of the nearest instruction that has one, along users or operands."""
    front, reached = [name], {name}
    while front:
        front = [n for f in front for n in following.get(f, ()) if n not in reached]
        reached |= set(front)
        for other in front:
            if other in direct and direct[other].part != OTHER:
                return direct[other]
    return None
