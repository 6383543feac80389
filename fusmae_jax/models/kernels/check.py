"""Whether the fused kernels compute what the plain operations do, on the device of a run.

Tests run the kernels interpreted. What a compiler makes of them for one kind of GPU is another program, and a
wrong one would train a wrong model without a word; so a run compares them once, on random inputs of its own
lengths and widths, before its first step.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from fusmae_jax.config.run import JOINT, Config, Model
from fusmae_jax.errors import InputError
from fusmae_jax.models.attention import attend, implementation_for, split_heads
from fusmae_jax.models.blocks import scanned
from fusmae_jax.models.encoder import streams
from fusmae_jax.models.kernels.attention import Layout, fused_attention
from fusmae_jax.models.layers import Arithmetic, layer_norm
from fusmae_jax.models.masking import num_decoded, num_slots, num_visible

# Of the largest number of a result. Both implementations round weights and results, in bfloat16 by up to 2^-8
# each, and not in the same places; a wrong index or mask is off by tenths.
LIMITS = {2: 0.03, 4: 1e-4, 8: 1e-10}  # by the bytes of a number
SAMPLES = 3  # one whole, one with invalid keys, one with nothing but them


class Case(NamedTuple):
    """A kernel, plain operations that compute the same, and what both are given."""

    setting: str
    name: str
    fused: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: tuple[Any, ...]  # with respect to which there are gradients


def check_kernels(config: Config, dtype: DTypeLike) -> int:
    """Compares every kernel that the settings select, forward and backward; returns how many there are.

    Args:
        config: whose model gives widths, heads and numbers of tokens.
        dtype: the compute type.

    Raises:
        InputError: a kernel differs from the plain operations, or does not run on this device.
    """
    count = 0
    for case in (*_attention_cases(config, dtype), *_norm_cases(config, dtype)):
        _check(case, LIMITS[jnp.dtype(dtype).itemsize])
        count += 1
    return count


def _check(case: Case, limit: float) -> None:
    try:
        ours, theirs = (jax.jit(_with_gradients(f))(*case.arguments) for f in (case.fused, case.plain))
        ours, theirs = jax.device_get((ours, theirs))
    except Exception as error:
        reason = (str(error).splitlines() or [''])[0][:300]
        raise InputError(_sentence(case, f'fails: {type(error).__name__}: {reason}')) from error
    for part in ('result', 'gradients'):
        for a, b in zip(jax.tree.leaves(ours[part]), jax.tree.leaves(theirs[part]), strict=True):
            a, b = a.astype('float64'), b.astype('float64')
            difference = abs(a - b).max() / max(abs(b).max(), 1e-30)
            # No number is not below the limit either.
            if not difference <= limit:
                what = f'differs from plain operations in its {part} by {difference:.2g} of the largest value'
                raise InputError(_sentence(case, f'{what}, more than {limit:g}'))


def _sentence(case: Case, what: str) -> str:
    kind = jax.local_devices()[0].device_kind
    others = ('xla', 'cudnn') if case.setting == 'attention' else ('xla',)
    remedy = ' or '.join(f'--config.model.{case.setting}={other}' for other in others)
    return f'the kernel of {case.name} {what} (on {kind}); train without it: {remedy}'


def _with_gradients(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """The result of a function, and its gradients for a random one of the result."""

    def run(*arguments: Any) -> dict[str, Any]:
        result, pull = jax.vjp(function, *arguments)
        leaves, structure = jax.tree.flatten(result)
        given = [_normal(100 + i, x.shape, x.dtype) for i, x in enumerate(leaves)]
        return {'result': result, 'gradients': pull(jax.tree.unflatten(structure, given))}

    return run


def _normal(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def _attention_cases(config: Config, dtype: DTypeLike) -> Iterator[Case]:
    """One for each different shape of attention in the model that goes to the kernel."""
    for queries, keys, width, heads in dict.fromkeys(_shapes(config)):
        how = implementation_for(config.model.attention, dtype, width // heads, keys or queries)
        if how == 'pallas':
            yield _attention_case(queries, keys, heads, width // heads, dtype)


def _shapes(config: Config) -> Iterator[tuple[int, int | None, int, int]]:
    """Queries, keys (None: the queries' own tokens), width and heads of every attention in a run."""
    model, masking = config.model, config.masking
    encoder = model.width, model.heads
    if config.objective != 'masked':
        for crops in (config.distillation.global_crops, config.distillation.local_crops):
            tokens = (crops.size // model.patch_size) ** 2 + 1
            yield tokens, None, *encoder
            for lengths in _stacked(model, model.depth - 1, tokens, 1):
                yield *lengths, *encoder
        return
    joint, count, patches = masking.strategy in JOINT, len(streams(model)), model.num_patches
    visible = num_slots(patches, count, masking) if joint else num_visible(patches, masking)
    seen = visible if joint else count * visible
    yield seen + int(model.cls), None, *encoder
    if 'xae' in model.fusion.encoder or 'xad' in model.fusion.decoder:
        yield visible, visible if joint else max(count - 1, 1) * visible, *encoder
    # Validation and pictures predict all that is masked, a step perhaps a part of it.
    for masked in (patches,) if joint else (num_decoded(patches, masking), patches - visible):
        yield from _decoder_shapes(model, visible, masked, seen)


def _decoder_shapes(
    model: Model, visible: int, masked: int, seen: int
) -> Iterator[tuple[int, int | None, int, int]]:
    """Those of a decoder of some masked tokens; the encoder has `seen` so many of all sensors."""
    decoder, tokens = model.decoder, visible + masked
    if model.fusion.decoder == 'multimae':
        yield tokens, seen + int(decoder.cls), decoder.width, decoder.heads
    else:
        tokens += int(decoder.cls)
    for lengths in _stacked(model, decoder.depth, tokens, masked):
        yield *lengths, decoder.width, decoder.heads


def _stacked(model: Model, depth: int, tokens: int, asked: int) -> Iterator[tuple[int, int | None]]:
    """Queries and keys of stacked blocks; the last one computes what is asked for (`blocks.run_stack`)."""
    if depth > 1 or (depth and scanned(model)):
        yield tokens, None
    if depth and not scanned(model):
        yield asked, tokens


def _attention_case(queries: int, keys: int | None, heads: int, head_width: int, dtype: DTypeLike) -> Case:
    width, count = heads * head_width, keys or queries
    layout = Layout(heads, head_width, *((width, 2 * width) if keys is None else (0, width)))
    valid = jax.random.bernoulli(jax.random.key(2), 0.7, (SAMPLES, count)).at[0].set(True).at[-1].set(False)
    rows = _normal(0, (SAMPLES, queries, width if keys else 3 * width), dtype)
    arguments = (rows, _normal(1, (SAMPLES, count, 2 * width), dtype)) if keys else (rows,)

    def plain(rows: jax.Array, context: jax.Array | None = None) -> jax.Array:
        heads_of = split_heads(rows, rows if context is None else context, layout)
        return attend(*heads_of, valid, 'highest').reshape(SAMPLES, queries, width)

    def fused(rows: jax.Array, context: jax.Array | None = None) -> jax.Array:
        return fused_attention(rows, context, valid, layout)

    name = f'attention ({queries} queries, {count} keys, {heads} heads of {head_width}, {jnp.dtype(dtype)})'
    return Case('attention', name, fused, plain, arguments)


def _norm_cases(config: Config, dtype: DTypeLike) -> Iterator[Case]:
    """The sum with a branch and its LayerNorm, for each width, where the kernel computes them."""
    model = config.model
    arithmetic = Arithmetic.of(model, dtype)
    for width in dict.fromkeys((model.width, model.decoder.width)):
        layer = layer_norm(width, arithmetic, rngs=nnx.Rngs(0))
        if layer.fused:
            yield _norm_case(width, arithmetic)


def _norm_case(width: int, arithmetic: Arithmetic) -> Case:
    wide, shape = arithmetic.wide_dtype, (SAMPLES, 9, width)  # of rows, no multiple of what a program takes

    def by(kernel: str) -> Callable[..., Any]:
        how = dataclasses.replace(arithmetic, norm=kernel)
        graphdef, _ = nnx.split(layer_norm(width, how, rngs=nnx.Rngs(0)))

        def run(x: jax.Array, branch: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
            layer = nnx.merge(graphdef, nnx.State({'scale': nnx.Param(scale), 'bias': nnx.Param(bias)}))
            return layer.after(x, branch)

        return run

    arguments = (
        2 * _normal(0, shape, arithmetic.residual_dtype) + 1,
        _normal(1, shape, arithmetic.compute_dtype),
        1 + _normal(2, (width,), wide) / 4,
        _normal(3, (width,), wide),
    )
    name = f'residual sum and LayerNorm ({width} wide, {jnp.dtype(arithmetic.compute_dtype)})'
    return Case('norm', name, by('pallas'), by('xla'), arguments)
