"""Name tables: our tree, the PyTorch reference, and the transformer blocks of other people's files."""

import dataclasses
from collections.abc import Mapping

from fusmae_jax.config.run import Model
from fusmae_jax.interop.weights.rules import Rule

Names = Mapping[str, tuple[str, ...]]
ENCODER = 'encoder'  # node of our tree that holds everything up to the final norm

# Our name inside a block -> names inside a block of a file. Three names for qkv are joined in that order.
REFERENCE: Names = {  # also timm, DINO and MultiMAE
    'norm1': ('norm1',),
    'attention/qkv': ('attn.qkv',),
    'attention/out': ('attn.proj',),
    'norm2': ('norm2',),
    'mlp/up': ('mlp.fc1',),
    'mlp/down': ('mlp.fc2',),
}
HUGGING_FACE: Names = {  # transformers 5 in memory
    'norm1': ('layernorm_before',),
    'attention/qkv': ('attention.q_proj', 'attention.k_proj', 'attention.v_proj'),
    'attention/out': ('attention.o_proj',),
    'norm2': ('layernorm_after',),
    'mlp/up': ('mlp.fc1',),
    'mlp/down': ('mlp.fc2',),
}
HUGGING_FACE_FILE: Names = {  # published files, whatever version wrote them
    **HUGGING_FACE,
    'attention/qkv': tuple(f'attention.attention.{part}' for part in ('query', 'key', 'value')),
    'attention/out': ('attention.output.dense',),
    'mlp/up': ('intermediate.dense',),
    'mlp/down': ('output.dense',),
}
SATVIT: Names = {
    'norm1': ('0.input_norm',),
    'attention/qkv': ('0.to_qkv',),
    'attention/out': ('0.to_out',),
    'norm2': ('1.input_norm',),
    'mlp/up': ('1.net.0',),
    'mlp/down': ('1.net.3',),
}
CROSS: Names = {  # cross-attention of the reference
    'query_norm': ('query_norm',),
    'context_norm': ('context_norm',),
    'query': ('q',),
    'kv': ('kv',),
    'out': ('proj',),
}
MULTIMAE_CROSS: Names = {  # of its decoders
    **CROSS,
    'query': ('decoder.q',),
    'kv': ('decoder.kv',),
    'out': ('decoder.proj',),
}
_DECODER = {'project': 'embed', 'mask_token': 'mask_token', 'norm': 'norm', 'predict': 'pred'}
STACK = 'stack'  # the stream of a model whose sensors share one projection


@dataclasses.dataclass(frozen=True)
class AttendingDecoder:
    """Full names in a file of the parts of one of MultiMAE's decoders."""

    project: str
    mask_token: str
    modality: Mapping[str, str]  # our modality -> its embedding
    cross: str  # what `cross_names` come after
    cross_names: Names
    norm2: str
    mlp: str
    blocks: str
    norm: str  # '' where the file has none
    predict: str


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes that the shapes of a block follow from."""

    width: int
    hidden: int
    qkv_bias: bool = True

    def linear(self, name: str) -> tuple[int, int]:
        """(in, out) of a linear layer of a block or a cross-attention."""
        d = self.width
        outs = {'attention/qkv': 3 * d, 'kv': 2 * d, 'mlp/up': self.hidden}
        return (self.hidden if name == 'mlp/down' else d), outs.get(name, d)


def norm_rules(ours: str, theirs: str, width: int, layer: int | None = None) -> list[Rule]:
    """Scale and bias of a LayerNorm."""
    pairs = (('scale', 'weight'), ('bias', 'bias'))
    return [Rule(f'{ours}/{a}', (width,), (f'{theirs}.{b}',), (width,), 'copy', layer) for a, b in pairs]


def linear_rules(
    ours: str,
    theirs: tuple[str, ...],
    size: tuple[int, int],
    *,
    bias: bool = True,
    layer: int | None = None,
    rows: tuple[int, int] | None = None,
    total: int = 0,
) -> list[Rule]:
    """Kernel and bias of a linear layer of `size` (in, out).

    With `rows`, ours is that part of a joined layer with `total` outputs.
    """
    inner, outer = size
    outputs = (total or outer) // len(theirs)
    weights, biases = tuple(f'{t}.weight' for t in theirs), tuple(f'{t}.bias' for t in theirs)
    rules = [Rule(f'{ours}/kernel', (inner, outer), weights, (outputs, inner), 'linear', layer, rows)]
    if bias:
        rules.append(Rule(f'{ours}/bias', (outer,), biases, (outputs,), 'copy', layer, rows))
    return rules


def group_rules(ours: str, theirs: str, names: Names, size: Size, layer: int | None = None) -> list[Rule]:
    """All rules of a block or a cross-attention whose parts are named by a table above."""
    rules: list[Rule] = []
    for part, inside in names.items():
        full = tuple(f'{theirs}.{name}' for name in inside)
        if 'norm' in part:
            rules += norm_rules(f'{ours}/{part}', full[0], size.width, layer)
        else:
            bias = size.qkv_bias or part not in ('attention/qkv', 'query', 'kv')
            rules += linear_rules(f'{ours}/{part}', full, size.linear(part), bias=bias, layer=layer)
    return rules


def encoder_size(model: Model) -> Size:
    """Sizes of the encoder's blocks."""
    return Size(model.width, int(model.width * model.mlp_ratio), model.numerics.qkv_bias)


def decoder_size(model: Model) -> Size:
    """Sizes of the decoders' blocks."""
    width = model.decoder.width
    return Size(width, int(width * model.mlp_ratio), model.numerics.qkv_bias)


def conv_rules(modality: str, theirs: str, model: Model, weight: str = '') -> list[Rule]:
    """The patch projection of one modality from a convolution; `weight` if it is not `theirs`.weight."""
    p, d = model.patch_size, model.width
    c, ours = len(model.modalities[modality].bands), f'{ENCODER}/patch/{modality}'
    return [
        Rule(f'{ours}/kernel', (p * p * c, d), (weight or f'{theirs}.weight',), (d, c, p, p), 'conv'),
        Rule(f'{ours}/bias', (d,), (f'{theirs}.bias',), (d,), 'copy'),
    ]


def plain_blocks(model: Model, theirs: str, names: Names, first: int = 0) -> list[Rule]:
    """The encoder's plain blocks from `theirs`.0, `theirs`.1, ...: block 1 apart, the others stacked.

    With fusion.encoder='xae' block 1 is no plain block, and `theirs`.`first` is block 2.
    """
    size = encoder_size(model)
    if model.fusion.encoder != 'xae':
        rules, first = group_rules(f'{ENCODER}/block1', f'{theirs}.0', names, size), 1
    else:
        rules = []
    for layer in range(model.depth - 1):
        rules += group_rules(f'{ENCODER}/blocks', f'{theirs}.{first + layer}', names, size, layer)
    return rules


def vit_blocks(model: Model, theirs: str, names: Names) -> list[Rule]:
    """The encoder's blocks from those of a plain ViT of the same depth.

    With fusion.encoder='xae' the self-attention of its first block seeds the cross-attention of every
    direction: norm1 becomes query and context norm, norm2 the norm before the MLP.
    """
    if model.fusion.encoder != 'xae':
        return plain_blocks(model, theirs, names)
    size, ours = encoder_size(model), f'{ENCODER}/block1'
    d, parts = model.width, {key: tuple(f'{theirs}.0.{n}' for n in value) for key, value in names.items()}
    rules = norm_rules(f'{ours}/norm', parts['norm2'][0], d)
    for part in ('mlp/up', 'mlp/down'):
        rules += linear_rules(f'{ours}/{part}', parts[part], size.linear(part))
    for name in ['shared'] if model.fusion.shared_directions else model.modalities:
        cross = f'{ours}/cross/{name}'
        for norm in ('query_norm', 'context_norm'):
            rules += norm_rules(f'{cross}/{norm}', parts['norm1'][0], d)
        for part, rows in (('query', (0, d)), ('kv', (d, 3 * d))):
            rules += linear_rules(
                f'{cross}/{part}',
                parts['attention/qkv'],
                size.linear(part),
                bias=size.qkv_bias,
                rows=rows,
                total=3 * d,
            )
        rules += linear_rules(f'{cross}/out', parts['attention/out'], (d, d))
    return rules + plain_blocks(model, theirs, names, first=1)


def reference_rules(model: Model) -> list[Rule]:
    """Every parameter of a model <-> the state dict of `reference.model.TorchFusMAE`."""
    d, size = model.width, encoder_size(model)
    streams = _streams(model)
    if STACK in streams:  # as SatViT has it: a linear layer on patches flattened sensor by sensor
        rules = linear_rules(f'{ENCODER}/patch/{STACK}', (f'patch_embed.{STACK}',), (streams[STACK], d))
    else:
        rules = [rule for name in streams for rule in conv_rules(name, f'patch_embed.{name}', model)]
    rules.append(Rule(f'{ENCODER}/cls', (d,), ('cls_token',), (1, 1, d), 'copy'))
    if model.positions == 'learned':
        n = model.num_patches
        rules.append(Rule(f'{ENCODER}/position_table', (n, d), ('pos_embed',), (1, n, d), 'copy'))
    if model.fusion.encoder == 'xae':
        for name in ['shared'] if model.fusion.shared_directions else model.modalities:
            rules += group_rules(f'{ENCODER}/block1/cross/{name}', f'xattn_encoder.cross.{name}', CROSS, size)
        rules += _norm_and_mlp(f'{ENCODER}/block1', 'xattn_encoder', size)
    rules += plain_blocks(model, 'blocks', REFERENCE)
    if model.final_norm:
        rules += norm_rules(f'{ENCODER}/norm', 'norm', d)
    for name, numbers in streams.items():
        if model.fusion.decoder == 'xad':
            rules += group_rules(f'xad/{name}/cross', f'xattn_decoder.{name}.cross', CROSS, size)
            rules += _norm_and_mlp(f'xad/{name}', f'xattn_decoder.{name}', size)
        parts = {a: f'decoders.{name}.{b}' for a, b in _DECODER.items()}
        if model.fusion.decoder == 'multimae':
            rules += attending_decoder_rules(name, model, _reference_attending(name, model, parts))
        else:
            rules += decoder_rules(name, model, numbers, parts, f'decoders.{name}.blocks')
    return rules


def _streams(model: Model) -> dict[str, int]:
    """Name -> numbers in one patch, as `models.encoder.streams`, which brings jax in."""
    sizes = {name: model.patch_dim(name) for name in model.modalities}
    return {STACK: sum(sizes.values())} if model.fusion.encoder == 'stack' else sizes


def _reference_attending(name: str, model: Model, parts: Mapping[str, str]) -> AttendingDecoder:
    decoder = f'decoders.{name}'
    return AttendingDecoder(
        modality={key: f'{decoder}.modality.{key}' for key in model.modalities},
        cross=f'{decoder}.cross',
        cross_names=CROSS,
        norm2=f'{decoder}.norm2',
        mlp=f'{decoder}.mlp',
        blocks=f'{decoder}.blocks',
        **parts,
    )


def _norm_and_mlp(ours: str, theirs: str, size: Size) -> list[Rule]:
    names = {'norm': ('norm',), 'mlp/up': ('mlp.fc1',), 'mlp/down': ('mlp.fc2',)}
    return group_rules(ours, theirs, names, size)


def decoder_rules(
    name: str,
    model: Model,
    numbers: int,
    parts: Mapping[str, str],
    blocks: str,
    names: Names = REFERENCE,
) -> list[Rule]:
    """The plain decoder of one stream of patches.

    Args:
        name: of the stream.
        model: with its sizes filled in.
        numbers: in a patch of it.
        parts: full names in the file for project, mask_token, norm, predict.
        blocks: what the numbers of the blocks come after.
        names: of the parts of a block.
    """
    w, ours = model.decoder.width, f'decoders/{name}'
    rules = linear_rules(f'{ours}/project', (parts['project'],), (model.width, w))
    rules.append(Rule(f'{ours}/mask_token', (w,), (parts['mask_token'],), (1, 1, w), 'copy'))
    for layer in range(model.decoder.depth):
        rules += group_rules(f'{ours}/blocks', f'{blocks}.{layer}', names, decoder_size(model), layer)
    if model.decoder.final_norm:
        rules += norm_rules(f'{ours}/norm', parts['norm'], w)
    return rules + linear_rules(f'{ours}/predict', (parts['predict'],), (w, numbers))


def attending_decoder_rules(name: str, model: Model, theirs: AttendingDecoder) -> list[Rule]:
    """MultiMAE's decoder of one modality, which attends to the tokens of all of them."""
    w, ours, size = model.decoder.width, f'decoders/{name}', decoder_size(model)
    rules = linear_rules(f'{ours}/project', (theirs.project,), (model.width, w))
    rules.append(Rule(f'{ours}/mask_token', (w,), (theirs.mask_token,), (1, 1, w), 'copy'))
    for key, embedding in theirs.modality.items():
        rules.append(Rule(f'{ours}/modality/{key}/bias', (w,), (embedding,), (1, 1, w), 'copy'))
    rules += group_rules(f'{ours}/cross', theirs.cross, theirs.cross_names, size)
    rules += norm_rules(f'{ours}/norm2', theirs.norm2, w)
    for part, layer_name in (('mlp/up', 'fc1'), ('mlp/down', 'fc2')):
        rules += linear_rules(f'{ours}/{part}', (f'{theirs.mlp}.{layer_name}',), size.linear(part))
    for layer in range(model.decoder.depth):
        rules += group_rules(f'{ours}/blocks', f'{theirs.blocks}.{layer}', REFERENCE, size, layer)
    if theirs.norm and model.decoder.final_norm:
        rules += norm_rules(f'{ours}/norm', theirs.norm, w)
    return rules + linear_rules(f'{ours}/predict', (theirs.predict,), (w, model.patch_dim(name)))
