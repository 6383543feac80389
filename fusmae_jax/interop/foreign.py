"""The layouts that `importers.import_weights` knows, one function each: names, channels, special tokens."""

import re
from collections.abc import Mapping

import numpy as np

from fusmae_jax.config import Model
from fusmae_jax.errors import nearest
from fusmae_jax.interop import layouts
from fusmae_jax.interop.plans import Layout, Options, Plan
from fusmae_jax.interop.rules import Rule, State

DINO_MM_CHANNELS = (
    *('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12'),
    *('VH', 'VV'),
)


def _fusmae(state: State, model: Model, options: Options) -> Plan:
    del options
    return Plan(dict(state), layouts.reference_rules(model))


def _hf_vit(state: State, model: Model, options: Options) -> Plan:
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


def _hf_vitmae(state: State, model: Model, options: Options) -> Plan:
    """Hugging Face ViTMAEForPreTraining: encoder and, for a model of one modality, its decoder."""
    plan = _hf_vit(state, model, options)
    plan.ignore = (
        (*plan.ignore, r'decoder\.decoder_norm\..*') if not model.decoder.final_norm else plan.ignore
    )
    name, *others = model.modalities
    if others:
        plan.ignore = (*plan.ignore, r'decoder\..*')
        plan.notes.append('the decoder is left out: a decoder of one sensor fits a model of one modality')
        return plan
    if not model.decoder.cls:
        plan.notes.append('decoder.cls=False: the file was trained with CLS in the decoder')
    filed = any(key.startswith('decoder.decoder_encoder.') for key in plan.state)
    prefix, names = (
        ('decoder.decoder_encoder.layer', layouts.HUGGING_FACE_FILE)
        if filed
        else ('decoder.decoder_layers', layouts.HUGGING_FACE)
    )
    plan.rules += layouts.decoder_rules(name, model, _MAE_DECODER, prefix, names)
    plan.decoder_table = 'decoder.decoder_pos_embed'
    return plan


_MAE_DECODER = {
    'project': 'decoder.decoder_embed',
    'mask_token': 'decoder.mask_token',
    'norm': 'decoder.decoder_norm',
    'predict': 'decoder.decoder_pred',
}


def _timm(state: State, model: Model, options: Options) -> Plan:
    """timm, MAE's encoder and DINO: `patch_embed.proj`, `blocks.N`, `cls_token`, `pos_embed`, `norm`."""
    del options
    plan = _vit(dict(state), model, 'patch_embed.proj', 'blocks', layouts.REFERENCE)
    plan.rules += layouts.norm_rules('encoder/norm', 'norm', model.width) if model.final_norm else []
    plan.rules.append(_cls(model, 'cls_token'))
    plan.table, plan.cls_row = 'pos_embed', True
    decoder = (r'decoder_.*', 'mask_token')  # of a published MAE pretraining file
    heads = (r'(head|fc|pre_logits|fc_norm|head_dist)(\..*)?', *decoder)
    plan.ignore = (*heads, *_unused_norm(model, 'norm'))
    return plan


def _dino_mm(state: State, model: Model, options: Options) -> Plan:
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


def _satvit(state: State, model: Model, options: Options) -> Plan:
    """SatViT v1: a linear projection of patches flattened channel first, no CLS, qkv without bias."""
    p, state = model.patch_size, _strip(state, r'module\.')
    problems = [] if options.channels else ['SatViT does not document its channels: give options.channels']
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


def _multimae(state: State, model: Model, options: Options) -> Plan:
    """MultiMAE's encoder: one input adapter for each task, `encoder.N`, one global token at the end."""
    plan = Plan(dict(state), layouts.vit_blocks(model, 'encoder', layouts.REFERENCE))
    used = []
    for name, modality in model.modalities.items():
        task = options.adapters.get(name, name)
        used.append(task)
        key, bands = f'input_adapters.{task}.proj', len(modality.bands)
        weight = _inflate(plan, f'{key}.weight', bands, f'{key}.{name}.weight')
        plan.rules += layouts.conv_rules(name, key, model, weight)
    for task in used:
        plan.state.pop(
            f'input_adapters.{task}.proj.weight', None
        )  # one copy for each modality was made above
    _shared_table(plan, used)
    plan.rules.append(_cls(model, 'global_tokens'))
    plan.ignore = (
        r'output_adapters\..*',
        rf'input_adapters\.(?!({"|".join(map(re.escape, used))})\.).*',
    )
    plan.notes.append('MultiMAE has no final norm in pretraining; set model.final_norm=False to match it')
    return plan


def _shared_table(plan: Plan, tasks: list[str]) -> None:
    """The one table (1, n, d) that the adapters of the tasks share, from theirs (1, d, rows, columns)."""
    plan.table = f'input_adapters.{tasks[0]}.pos_emb'
    found = [plan.state.pop(f'input_adapters.{task}.pos_emb', None) for task in dict.fromkeys(tasks)]
    tables = [table for table in found if table is not None and table.ndim == 4]
    if len(tables) < len(found):
        plan.problems.append('every input adapter needs a pos_emb of shape (1, width, rows, columns)')
        return
    if any(not np.array_equal(table, tables[0]) for table in tables[1:]):
        plan.problems.append('the input adapters have different positional tables; ours share one')
    plan.grid = (tables[0].shape[2], tables[0].shape[3])
    plan.state[plan.table] = tables[0].reshape(*tables[0].shape[:2], -1).swapaxes(1, 2)


LAYOUTS: dict[str, Layout] = {
    'fusmae': _fusmae,
    'hf_vit': _hf_vit,
    'hf_vitmae': _hf_vitmae,
    'timm': _timm,
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
) -> Plan:
    """Patch projections and blocks of a plain ViT; with XAE its first block seeds the cross-attention."""
    plan = Plan(state, layouts.vit_blocks(model, blocks, names))
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


def _inflate(plan: Plan, source: str, bands: int, target: str) -> str:
    """Puts the kernel for `bands` channels under `target`: the same, or the mean over RGB times 3 / bands.

    Returns `target`, or `source` when the file lacks it.
    """
    weight = plan.state.get(source)
    if weight is None:
        return source
    if weight.ndim == 4 and weight.shape[1] == 3 != bands:
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
    notes, problems, taken = [], [], set()
    prefix = source.removesuffix('.weight')
    for name, modality in model.modalities.items():
        absent = [band for band in modality.bands if band not in channels]
        problems += [f'{name}: the file has no channel {band}; {nearest(band, channels)}' for band in absent]
        index = [channels.index(band) for band in modality.bands if band in channels]
        state[f'{prefix}.{name}.weight'] = weight[:, index]
        taken.update(index)
    if len(model.modalities) > 1:
        notes.append('the stacked projection is split by sensor, its bias goes to each: an initialisation')
    dropped = [channel for i, channel in enumerate(channels) if i not in taken]
    if dropped:
        notes.append(f'channels of the file without a place: {", ".join(dropped)}')
    return state, notes, problems
