"""The layouts that `importers.import_weights` knows, one function each: names, channels, special tokens."""

import re
from collections.abc import Mapping

import numpy as np

from fusmae_jax.config.run import Model
from fusmae_jax.errors import nearest
from fusmae_jax.interop.weights import layouts
from fusmae_jax.interop.weights.rules import Importer, ImportOptions, ImportPlan, Rule, State

DINO_MM_CHANNELS = (
    *('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12'),
    *('VH', 'VV'),
)


def _fusmae(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    del options
    return ImportPlan(dict(state), layouts.reference_rules(model))


def _hf_vit(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    """Hugging Face ViTModel, in memory or from a file, bare or inside a task model (`vit.`)."""
    state = _strip(state, r'vit\.')
    plan = _vit(state, model, 'embeddings.patch_embeddings.projection', *_hf_names(state))
    plan.rules += layouts.norm_rules('encoder/norm', 'layernorm', model.width) if model.final_norm else []
    plan.rules.append(_cls(model, 'embeddings.cls_token'))
    plan.table, plan.cls_row = 'embeddings.position_embeddings', True
    plan.ignore = (
        r'pooler\..*',
        r'classifier\..*',
        r'embeddings\.mask_token',
        *_unused_norm(model, 'layernorm'),
    )
    return plan


def _hf_vitmae(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    """Hugging Face ViTMAEForPreTraining: encoder and, for a model of one modality, its decoder."""
    plan = _hf_vit(state, model, options)
    plan.ignore = (
        (*plan.ignore, r'decoder\.decoder_norm\..*') if not model.decoder.final_norm else plan.ignore
    )
    if not _takes_decoder(plan, model):
        plan.ignore = (*plan.ignore, r'decoder\..*')
        return plan
    (name,) = model.modalities
    filed = any(key.startswith('decoder.decoder_encoder.') for key in plan.state)
    prefix, names = (
        ('decoder.decoder_encoder.layer', layouts.HUGGING_FACE_FILE)
        if filed
        else ('decoder.decoder_layers', layouts.HUGGING_FACE)
    )
    parts = {part: f'decoder.{full}' for part, full in _MAE_DECODER.items()}
    plan.rules += layouts.decoder_rules(name, model, model.patch_dim(name), parts, prefix, names)
    plan.decoder_table = 'decoder.decoder_pos_embed'
    return plan


_MAE_DECODER = {
    'project': 'decoder_embed',
    'mask_token': 'mask_token',
    'norm': 'decoder_norm',
    'predict': 'decoder_pred',
}


def _takes_decoder(plan: ImportPlan, model: Model) -> bool:
    """Whether a model has a place for the decoder of an MAE; notes in the plan what a reader should know."""
    if len(model.modalities) > 1 or model.fusion.decoder == 'multimae':
        plan.notes.append(
            'the decoder is left out: it fits a model of one modality whose decoder is a plain one'
        )
        return False
    if not model.decoder.cls:
        plan.notes.append('decoder.cls=False: the file was trained with CLS in the decoder')
    return True


def _timm(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    """timm, MAE's encoder and DINO: `patch_embed.proj`, `blocks.N`, `cls_token`, `pos_embed`, `norm`."""
    del options
    plan = _vit(dict(state), model, 'patch_embed.proj', 'blocks', layouts.REFERENCE)
    plan.rules += layouts.norm_rules('encoder/norm', 'norm', model.width) if model.final_norm else []
    plan.rules.append(_cls(model, 'cls_token'))
    plan.table, plan.cls_row = 'pos_embed', True
    decoder = (r'decoder_.*', 'mask_token')  # of a published MAE pretraining file; `mae` takes them
    plan.ignore = (*_HEADS, *decoder, *_unused_norm(model, 'norm'))
    return plan


_HEADS = (r'(head|fc|pre_logits|fc_norm|head_dist)(\..*)?',)


def _mae(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    """MAE's own pretraining file: encoder and, for a model of one modality, its decoder."""
    plan = _timm(state, model, options)
    if not _takes_decoder(plan, model):
        return plan
    (name,) = model.modalities
    numbers = model.patch_dim(name)
    plan.rules += layouts.decoder_rules(name, model, numbers, _MAE_DECODER, 'decoder_blocks')
    plan.decoder_table = 'decoder_pos_embed'
    norm = () if model.decoder.final_norm else (r'decoder_norm\..*',)
    plan.ignore = (*_HEADS, *_unused_norm(model, 'norm'), *norm)
    return plan


def _dino_mm(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    """DINO-MM's ViT-S/8 with 14 stacked channels: 12 bands of Sentinel-2, then VH, VV."""
    chosen = {k: v for k, v in state.items() if k.startswith(f'{options.branch}.')}
    others = sorted({name.split('.')[0] for name in state if chosen and name not in chosen})
    state = _strip(chosen or state, rf'{re.escape(options.branch)}\.', r'module\.', r'backbone\.')
    state, notes, problems = _split_channels(
        state, model, 'patch_embed.proj.weight', options.channels or DINO_MM_CHANNELS
    )
    if others:
        notes.append(f'left out beside {options.branch}: {", ".join(others)}')
    plan = _timm(state, model, options)
    plan.notes, plan.problems = notes + plan.notes, problems + plan.problems
    return plan


def _satvit(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    """SatViT v1: a linear projection of patches flattened channel first, no CLS, qkv without bias."""
    p, state = model.patch_size, _strip(state, r'module\.')
    problems = (
        [] if options.channels else ['SatViT does not say what its channels are: give options.channels']
    )
    weight = state.get('linear_input.weight')
    channels = len(options.channels)
    if weight is not None and options.channels:
        if weight.ndim == 2 and weight.shape[1] == channels * p * p:
            state['proj.weight'] = state.pop('linear_input.weight').reshape(len(weight), channels, p, p)
            state['proj.bias'] = state.pop('linear_input.bias')
        else:
            problems.append(
                f'linear_input.weight has shape {weight.shape}, not (width, {channels} * {p} * {p})'
            )
    state, notes, more = _split_channels(state, model, 'proj.weight', options.channels)
    if model.numerics.qkv_bias:
        problems.append('SatViT has no qkv bias: set numerics.qkv_bias=False')
    notes.append('SatViT has no CLS: ours takes part in attention, so latents are close, not equal')
    plan = _vit(state, model, 'proj', 'encoder.layers', layouts.SATVIT)
    plan.rules += (
        layouts.norm_rules('encoder/norm', 'encoder.norm_out', model.width) if model.final_norm else []
    )
    plan.table = 'pos_embed'
    plan.ignore = (
        r'decoder\..*|enc_to_dec\..*|linear_output\..*|mask_token|decoder_pos_embed',
        *_unused_norm(model, 'encoder.norm_out'),
    )
    plan.notes, plan.problems = notes + plan.notes, problems + more + plan.problems
    return plan


def _multimae(state: State, model: Model, options: ImportOptions) -> ImportPlan:
    """MultiMAE: one input adapter for each task, `encoder.N`, one global token at the end.

    Its output adapters are the decoders of a model with fusion.decoder='multimae'.
    """
    plan = ImportPlan(dict(state), layouts.vit_blocks(model, 'encoder', layouts.REFERENCE))
    used = []
    for name, modality in model.modalities.items():
        task = options.adapters.get(name, name)
        used.append(task)
        key, bands = f'input_adapters.{task}.proj', len(modality.bands)
        weight = _inflate(plan, f'{key}.weight', bands, f'{key}.{name}.weight')
        plan.rules += layouts.conv_rules(name, key, model, weight)
    for task in used:
        # One copy for each modality was made above.
        plan.state.pop(f'input_adapters.{task}.proj.weight', None)
    plan.table = _shared_table(plan, [f'input_adapters.{task}' for task in used], 'input')
    plan.rules.append(_cls(model, 'global_tokens'))
    plan.ignore = (rf'input_adapters\.(?!({"|".join(map(re.escape, used))})\.).*',)
    filed = any(name.startswith('output_adapters.') for name in plan.state)
    if model.fusion.decoder == 'multimae' and options.decoders and filed:
        _output_adapters(plan, model, options)
    else:
        plan.ignore = (*plan.ignore, r'output_adapters\..*')
    plan.notes.append('MultiMAE has no final norm in pretraining; set model.final_norm=False to match it')
    return plan


def _shared_table(plan: ImportPlan, adapters: list[str], kind: str) -> str:
    """Puts the one table (1, n, d) that adapters share, from theirs (1, d, rows, columns), into the state.

    Returns its name there.
    """
    name = f'{adapters[0]}.pos_emb'
    stored = [plan.state.pop(f'{adapter}.pos_emb', None) for adapter in dict.fromkeys(adapters)]
    tables = [table for table in stored if table is not None and table.ndim == 4]
    if len(tables) < len(stored):
        plan.problems.append(f'every {kind} adapter needs a pos_emb of shape (1, width, rows, columns)')
        return name
    if any(not np.array_equal(table, tables[0]) for table in tables[1:]):
        plan.problems.append(f'the {kind} adapters have different positional tables; ours share one')
    grid = (tables[0].shape[2], tables[0].shape[3])
    if plan.grid not in ((0, 0), grid):
        plan.problems.append(f'the {kind} adapters have positions for another grid than the others')
    plan.grid = grid
    plan.state[name] = tables[0].reshape(*tables[0].shape[:2], -1).swapaxes(1, 2)
    return name


def _output_adapters(plan: ImportPlan, model: Model, options: ImportOptions) -> None:
    """MultiMAE's decoders, each by the name of its modality's task or by `options.outputs`."""
    tasks = {name: options.adapters.get(name, name) for name in model.modalities}
    outputs = {name: options.outputs.get(name, task) for name, task in tasks.items()}
    size = model.patch_size**2
    for name, output in outputs.items():
        adapter = f'output_adapters.{output}'
        theirs = layouts.AttendingDecoder(
            project=f'{adapter}.proj_context',
            mask_token=f'{adapter}.mask_token',
            modality={key: f'{adapter}.task_embeddings.{task}' for key, task in tasks.items()},
            cross=adapter,
            cross_names=layouts.MULTIMAE_CROSS,
            norm2=f'{adapter}.out_norm',
            mlp=f'{adapter}.mlp',
            blocks=f'{adapter}.decoder_transformer',
            norm='',
            predict=f'{adapter}.out_proj',
        )
        plan.rules += layouts.attending_decoder_rules(name, model, theirs)
    used = [f'output_adapters.{output}' for output in dict.fromkeys(outputs.values())]
    for full in [f'{adapter}.out_proj.{part}' for adapter in used for part in ('weight', 'bias')]:
        x = plan.state.get(full)
        if x is not None and len(x) % size == 0:  # pixels of a patch lie channel, row, column there
            plan.state[full] = np.moveaxis(x.reshape(-1, size, *x.shape[1:]), 0, 1).reshape(x.shape)
    plan.decoder_table = _shared_table(plan, used, 'output')
    kept = '|'.join(re.escape(adapter) for adapter in used)
    known = '|'.join(map(re.escape, tasks.values()))
    plan.ignore = (
        *plan.ignore,
        rf'(?!({kept})\.)output_adapters\..*',
        rf'({kept})\.task_embeddings\.(?!({known})$).*',
    )
    if not model.decoder.cls:
        plan.notes.append('decoder.cls=False: in the file CLS is among what the decoders attend to')
    if model.decoder.final_norm:
        plan.notes.append('MultiMAE has no norm after its decoders: set model.decoder.final_norm=False')


LAYOUTS: dict[str, Importer] = {
    'fusmae': _fusmae,
    'hf_vit': _hf_vit,
    'hf_vitmae': _hf_vitmae,
    'timm': _timm,
    'mae': _mae,
    'dino_mm': _dino_mm,
    'satvit': _satvit,
    'multimae': _multimae,
}


def _strip(state: State, *prefixes: str) -> dict[str, np.ndarray]:
    """Names without the given leading parts (regular expressions), each at most once, in order."""
    result = dict(state)
    for prefix in prefixes:
        result = {re.sub(rf'^{prefix}', '', name): value for name, value in result.items()}
    return result


def _hf_names(state: Mapping[str, np.ndarray]) -> tuple[str, layouts.Names]:
    if any(name.startswith('encoder.layer.') for name in state):
        return 'encoder.layer', layouts.HUGGING_FACE_FILE
    return 'layers', layouts.HUGGING_FACE


def _cls(model: Model, theirs: str) -> Rule:
    return Rule('encoder/cls', (model.width,), (theirs,), (1, 1, model.width), 'copy')


def _unused_norm(model: Model, theirs: str) -> tuple[str, ...]:
    return () if model.final_norm else (rf'{re.escape(theirs)}\..*',)


def _vit(
    state: dict[str, np.ndarray],
    model: Model,
    projection: str,
    blocks: str,
    names: layouts.Names,
) -> ImportPlan:
    """Patch projections and blocks of a plain ViT; with XAE its first block seeds the cross-attention."""
    plan = ImportPlan(state, layouts.vit_blocks(model, blocks, names))
    if model.fusion.encoder == 'xae':
        plan.notes.append(
            'block 1: every cross-attention starts from the self-attention of the first block of the file '
            '(its norm1 as query and context norm, norm2 before the MLP)'
        )
    for name, modality in model.modalities.items():
        weight = f'{projection}.{name}.weight'
        if weight not in state:
            weight = _inflate(plan, f'{projection}.weight', len(modality.bands), weight)
        plan.rules += layouts.conv_rules(name, projection, model, weight)
    plan.state.pop(f'{projection}.weight', None)  # taken apart above
    return plan


def _inflate(plan: ImportPlan, source: str, bands: int, target: str) -> str:
    """Puts the kernel for `bands` channels under `target`: the same, or the mean over RGB times 3 / bands.

    Returns `target`, or `source` when the file lacks it.
    """
    weight = plan.state.get(source)
    if weight is None:
        return source
    if weight.ndim == 4 and weight.shape[1] == 3 != bands:
        # Times 3 / bands: an image that is the same in all channels is projected as before.
        mean = weight.mean(axis=1, keepdims=True) * weight.dtype.type(3 / bands)
        weight = np.repeat(mean, bands, axis=1)
        plan.notes.append(f'{source}: RGB to {bands} bands, each the mean over RGB times 3/{bands}')
    plan.state[target] = weight
    return target


def _split_channels(
    state: dict[str, np.ndarray], model: Model, source: str, channels: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """A stacked projection as one kernel for each modality, by band name.

    The bias goes to each of them whole: the tokens of a modality are then those of the stacked projection
    with all other channels at 0.
    """
    weight = state.get(source)
    if weight is None or not channels:
        return state, [], []
    if weight.ndim != 4 or weight.shape[1] != len(channels):
        return state, [], [f'{source} has shape {weight.shape}, expected {len(channels)} input channels']
    notes, problems, taken = [], [], set[int]()
    prefix = source.removesuffix('.weight')
    for name, modality in model.modalities.items():
        absent = [band for band in modality.bands if band not in channels]
        problems += [f'{name}: the file has no channel {band}; {nearest(band, channels)}' for band in absent]
        index = [
            [i for i, channel in enumerate(channels) if channel == band]
            for band in modality.bands
            if band in channels
        ]
        # A band that feeds several channels has one kernel here: their sum.
        kernels = [weight[:, each].sum(axis=1, dtype=weight.dtype) for each in index]
        state[f'{prefix}.{name}.weight'] = np.stack(kernels, axis=1)
        taken.update(i for each in index for i in each)
        notes += [
            f'{channels[each[0]]} feeds {len(each)} channels: their kernels are added'
            for each in index
            if len(each) > 1
        ]
    if len(model.modalities) > 1:
        notes.append('the stacked projection is split by sensor, its bias goes to each: an initialisation')
    dropped = [channel for i, channel in enumerate(channels) if i not in taken]
    if dropped:
        notes.append(f'channels of the file without a place: {", ".join(dropped)}')
    return state, notes, problems
