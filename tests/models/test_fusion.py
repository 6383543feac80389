"""Fusion as defined, written out in NumPy float64: XAttnEncoder, XAttnDecoder and MultiMAE's decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import resolve
from fusmae_jax.models.attention import attend
from fusmae_jax.models.fusion import XAttnDecoder, XAttnEncoder, fuse_latents
from fusmae_jax.models.fusmae import FusMAE
from fusmae_jax.models.layers import Arithmetic
from fusmae_jax.models.multimae import Context, MultiMaeDecoder, join
from fusmae_jax.models.positions import sincos_2d
from tests.support.equations import cross_attention, linear, mlp, norm, random_module
from tests.support.helpers import compiled, module_of, random_patches
from tests.support.tiny import tiny_model

K = 5


@pytest.fixture(params=[2, 3])
def case(request):
    """A model of two or three modalities with its random tokens, in float64."""
    modalities = dict(cfg.Model().modalities)
    if request.param == 3:
        modalities['dem'] = cfg.Modality(bands=('height',), mean=(300.0,), std=(200.0,))
    with jax.enable_x64(True):
        model = resolve(tiny_model('xae', 'xad', modalities=modalities))
        keys = jax.random.split(jax.random.key(3), len(modalities))
        tokens = {n: jax.random.normal(k, (2, K, model.width), jnp.float64) for n, k in zip(modalities, keys)}
        yield model, tokens, {name: jnp.ones((2, K), bool) for name in tokens}


def others(tokens, name, sample):
    return np.concatenate([np.asarray(t[sample]) for key, t in tokens.items() if key != name])


def test_xattn_encoder_equals_eqs_2_to_5(case):
    model, tokens, valid = case
    block, params = random_module(XAttnEncoder, model)
    out, _ = compiled(block, tokens, valid)
    for sample in range(2):
        x = {name: np.asarray(t[sample]) for name, t in tokens.items()}
        ca = [
            cross_attention(x[n], others(tokens, n, sample), params['cross'][n], model.heads) for n in tokens
        ]
        fus = np.concatenate(list(x.values())) + np.concatenate(ca)
        expected = fus + mlp(norm(fus, params['norm']), params['mlp'])
        np.testing.assert_allclose(out[sample], expected, atol=1e-12)


def test_xattn_decoder_equals_eqs_10_and_11(case):
    model, latents, valid = case
    modules = {name: random_module(XAttnDecoder, model, seed) for seed, name in enumerate(latents)}
    blocks, params = ({name: pair[i] for name, pair in modules.items()} for i in (0, 1))
    fused = nnx.jit(lambda b, z, there: fuse_latents(b, z, there, model.fusion.absent))
    out = fused(blocks, latents, valid)
    for name, z in latents.items():
        for sample in range(2):
            zi = np.asarray(z[sample])
            fused = zi + cross_attention(
                zi, others(latents, name, sample), params[name]['cross'], model.heads
            )
            expected = fused + mlp(norm(fused, params[name]['norm']), params[name]['mlp'])
            np.testing.assert_allclose(out[name][sample], expected, atol=1e-12)


def test_a_query_without_a_valid_key_gets_exactly_zero():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 2, 8))
    valid = jnp.array([[True, False, True, False], [False] * 4])
    out = attend(q, k, v, valid)
    assert np.all(np.asarray(out[1]) == 0)
    only = attend(q[:1], k[:1, ::2], v[:1, ::2], jnp.ones((1, 2), bool))
    np.testing.assert_allclose(out[0], only[0], atol=1e-6)


def test_shared_directions_use_one_cross_attention():
    model = resolve(tiny_model('xae', fusion=cfg.Fusion('xae', 'none', shared_directions=True)))
    arithmetic = Arithmetic(model.numerics, jnp.float32)
    block = module_of(lambda: XAttnEncoder(model, arithmetic, rngs=nnx.Rngs(0)))
    assert list(nnx.to_pure_dict(nnx.state(block))['cross']) == ['shared']
    x = jax.random.normal(jax.random.key(0), (2, K, model.width))
    out, _ = compiled(block, {'s1': x, 's2': x}, dict.fromkeys(('s1', 's2'), jnp.ones((2, K), bool)))
    np.testing.assert_array_equal(out[:, :K], out[:, K:])  # both directions see the same pair


def test_directions_are_shared_by_the_switch_and_not_by_a_name():
    """`build` refuses such a name; the block does not depend on it."""
    modality = cfg.Model().modalities['s1']
    model = resolve(tiny_model('xae', modalities={'shared': modality, 's2': modality}))
    arithmetic = Arithmetic(model.numerics, jnp.float32)
    block = module_of(lambda: XAttnEncoder(model, arithmetic, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, K, model.width))
    tokens, valid = {'shared': x, 's2': x}, dict.fromkeys(('shared', 's2'), jnp.ones((2, K), bool))
    out, _ = compiled(block, tokens, valid)
    assert not np.array_equal(out[:, :K], out[:, K:])
    first = jnp.tile(jnp.arange(K) < 2, (2, 1))
    straight, _ = compiled(block, x, {'shared': first, 's2': ~first}, method='joint')
    turned, _ = compiled(block, x, {'shared': ~first, 's2': first}, method='joint')
    assert not np.array_equal(straight, turned)


def test_the_mean_of_captured_scores_can_be_formed_outside():
    model = resolve(tiny_model())
    module = module_of(lambda: FusMAE(model, rngs=nnx.Rngs(0)))
    encoded = compiled(module, random_patches(model, 2), method='encode', capture=True)
    q, k = encoded.stages['block1/query/s1'], encoded.stages['block1/key/s1']
    weights = jax.nn.softmax(jnp.einsum('bnhe,bmhe->bhnm', q, k) / 4, axis=-1)
    assert weights.shape == (2, model.heads, model.num_patches, model.num_patches)


VISIBLE, N = 3, 16  # visible patches of a sensor, patches


def block(x, p, layer, heads):
    """A pre-norm self-attention block, from stacked parameters."""
    p = jax.tree.map(lambda leaf: leaf[layer], p)
    q, k, v = np.split(linear(norm(x, p['norm1']), p['attention']['qkv']), 3, axis=-1)
    width, out = q.shape[-1] // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        weights = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
        out.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
    x = x + linear(np.concatenate(out, -1), p['attention']['out'])
    return x + mlp(norm(x, p['norm2']), p['mlp'])


def decoded(p, model, name, latents, order, cls):
    """Predictions for the hidden patches of `name`; latents and cls are one sample's."""
    table, heads = sincos_2d(model.grid, model.decoder.width), model.decoder.heads
    seen = {
        n: linear(z, p['project']) + table[order[n][:VISIBLE]] + p['modality'][n]['bias']
        for n, z in latents.items()
    }
    empty = p['mask_token'] + p['modality'][name]['bias'] + table[order[name][VISIBLE:]]
    queries = np.concatenate([seen[name], empty])
    context = [*seen.values(), linear(cls[None], p['project'])] if model.decoder.cls else [*seen.values()]
    x = cross_attention(queries, np.concatenate(context), p['cross'], heads)  # no residual
    x = x + mlp(norm(x, p['norm2']), p['mlp'])
    for layer in range(model.decoder.depth):
        x = block(x, p['blocks'], layer, heads)
    x = norm(x, p['norm']) if model.decoder.final_norm else x
    return linear(x[VISIBLE:], p['predict'])


@pytest.mark.parametrize(('sensors', 'cls'), [(2, True), (3, False)])
def test_it_equals_its_definition(sensors, cls):
    modalities = dict(cfg.Model().modalities)
    if sensors == 3:
        modalities['dem'] = cfg.Modality(bands=('height',), mean=(300.0,), std=(200.0,))
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = tiny_model('none', 'multimae', modalities=modalities)
        model = resolve(
            dataclasses.replace(model, decoder=cfg.Decoder(16, 2, 2, cls=cls, final_norm=not cls))
        )
        decoder, params = random_module(
            lambda m, arithmetic, rngs: MultiMaeDecoder(m, 's2', arithmetic, rngs=rngs), model
        )
        latents = {name: rng.normal(size=(2, VISIBLE, model.width)) for name in modalities}
        order = {name: np.stack([rng.permutation(N) for _ in range(2)]) for name in modalities}
        token = rng.normal(size=(2, model.width))
        context = join(
            {n: jnp.asarray(z) for n, z in latents.items()},
            {n: jnp.ones((2, VISIBLE), bool) for n in latents},
            {n: jnp.asarray(o[:, :VISIBLE]) for n, o in order.items()},
            jnp.asarray(token),
        )
        start = list(modalities).index('s2') * VISIBLE
        radar, hidden = slice(start, start + VISIBLE), jnp.asarray(order['s2'][:, VISIBLE:])
        predicted, _ = compiled(decoder, context, radar, hidden)
    assert predicted.dtype == jnp.float64 and predicted.shape == (2, N - VISIBLE, model.patch_dim('s2'))
    for i in range(2):
        one = {n: z[i] for n, z in latents.items()}
        expected = decoded(params, model, 's2', one, {n: o[i] for n, o in order.items()}, token[i])
        np.testing.assert_allclose(predicted[i], expected, atol=1e-12)


@pytest.mark.usefixtures('strict')
def test_without_anything_to_attend_to_no_token_differs():
    """The cross-attention gives exactly 0, and no residual goes around it."""
    model = resolve(tiny_model('none', 'multimae'))
    arithmetic = Arithmetic(model.numerics, jnp.float32)
    decoder = module_of(lambda: MultiMaeDecoder(model, 's1', arithmetic, rngs=nnx.Rngs(0)))
    decode = nnx.jit(lambda module, *values: module(values[0], slice(0, VISIBLE), *values[1:], capture=True))
    for there in (False, True):
        valid = {'s1': jnp.full((1, VISIBLE), there), 's2': jnp.zeros((1, VISIBLE), bool)}
        latents = jax.random.normal(jax.random.key(0), (1, VISIBLE, model.width))
        context = Context(latents, valid, jnp.arange(VISIBLE)[None], latents[:, 0])
        hidden = jnp.ones((1, N), bool)
        _, stages = decode(decoder, context, jnp.arange(N)[None], hidden)
        assert (np.ptp(np.asarray(stages['cross']), axis=1).max() > 1e-3) == there
