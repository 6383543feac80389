"""XAttnEncoder and XAttnDecoder against the equations of the paper, written out in NumPy float64."""

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
from tests.support.equations import cross_attention, mlp, norm, random_module
from tests.support.helpers import random_patches
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
    out, _ = block(tokens, valid)
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
    out = fuse_latents(blocks, latents, valid, model.fusion.absent)
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
    block = XAttnEncoder(model, Arithmetic(model.numerics, jnp.float32), rngs=nnx.Rngs(0))
    assert list(nnx.to_pure_dict(nnx.state(block))['cross']) == ['shared']
    x = jax.random.normal(jax.random.key(0), (2, K, model.width))
    out, _ = block({'s1': x, 's2': x}, dict.fromkeys(('s1', 's2'), jnp.ones((2, K), bool)))
    np.testing.assert_array_equal(out[:, :K], out[:, K:])  # both directions see the same pair


def test_directions_are_shared_by_the_switch_and_not_by_a_name():
    """`build` refuses such a name; the block does not depend on it."""
    modality = cfg.Model().modalities['s1']
    model = resolve(tiny_model('xae', modalities={'shared': modality, 's2': modality}))
    block = XAttnEncoder(model, Arithmetic(model.numerics, jnp.float32), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, K, model.width))
    tokens, valid = {'shared': x, 's2': x}, dict.fromkeys(('shared', 's2'), jnp.ones((2, K), bool))
    out, _ = block(tokens, valid)
    assert not np.array_equal(out[:, :K], out[:, K:])
    first = jnp.tile(jnp.arange(K) < 2, (2, 1))
    joint, _ = block.joint(x, {'shared': first, 's2': ~first})
    turned, _ = block.joint(x, {'shared': ~first, 's2': first})
    assert not np.array_equal(joint, turned)


def test_the_mean_of_captured_scores_can_be_formed_outside():
    model = resolve(tiny_model())
    encoded = FusMAE(model, rngs=nnx.Rngs(0)).encode(random_patches(model, 2), capture=True)
    q, k = encoded.stages['block1/query/s1'], encoded.stages['block1/key/s1']
    weights = jax.nn.softmax(jnp.einsum('bnhe,bmhe->bhnm', q, k) / 4, axis=-1)
    assert weights.shape == (2, model.heads, model.num_patches, model.num_patches)
