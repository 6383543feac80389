"""What the model must and must not depend on, mostly through gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import resolve
from fusmae_jax.input.prepare import Patches
from fusmae_jax.models import fusmae
from fusmae_jax.models.fusmae import FusMAE
from tests.support.helpers import module_of, random_order, random_patches
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures('strict')
FAMILY = {
    'xae': ('xae', 'none'),
    'xad': ('none', 'xad'),
    'xaed': ('xae', 'xad'),
    'joint': ('none', 'none'),
}
K = 4  # visible patches of a sensor


def make(name='xae', **changes):
    model = resolve(tiny_model(*FAMILY[name], **changes))
    return model, module_of(lambda: FusMAE(model, rngs=nnx.Rngs(0)))


@jax.jit
def encode(module, patches):
    return module.encode(patches)


@jax.jit
def forward(module, patches, order):
    return module(patches, order, K)[0]


@jax.jit
def encode_visible(module, patches, order):
    """Latents of the visible patches, as the pretraining forward computes them."""
    ids = {name: order[name][:, :K] for name in patches}
    values = {n: jnp.take_along_axis(p.values, ids[n][..., None], axis=1) for n, p in patches.items()}
    valid = {n: jnp.ones(i.shape, bool) for n, i in ids.items()}
    return module.encoder(values, valid, ids)[:2]


@pytest.mark.parametrize('name', ['xae', 'joint'])
def test_block_1_mixes_sensors_only_or_everything(name):
    model, module = make(name)
    patches = random_patches(model, 1)

    def token(values):
        tokens = {n: Patches(v, patches[n].valid) for n, v in values.items()}
        stages = module.encode(tokens, capture=True).stages
        return jnp.sum(stages['block1'][0, 3] ** 2)  # patch 3 of s1

    gradient = jax.jit(jax.grad(token))({n: p.values for n, p in patches.items()})
    reached = {n: np.abs(np.asarray(g[0])).max(axis=1) > 0 for n, g in gradient.items()}
    assert reached['s1'][3]
    assert reached['s2'].all()
    others = np.delete(reached['s1'], 3)
    assert not others.any() if name == 'xae' else others.all()


@pytest.mark.parametrize('name', ['xaed', 'joint'])
def test_the_encoder_never_sees_masked_patches(name):
    model, module = make(name)
    patches, order = random_patches(model, 2), random_order(model, 2)

    def total(values):
        given = {n: Patches(v, patches[n].valid) for n, v in values.items()}
        predictions, stages = module(given, order, K, capture=True)
        outputs = [stages['cls'], *(stages[f'latents/{n}'] for n in values), *predictions.values()]
        return sum(jnp.sum(x * jnp.cos(jnp.arange(x.size).reshape(x.shape))) for x in outputs)

    gradient = jax.jit(jax.grad(total))({n: p.values for n, p in patches.items()})
    for n, g in gradient.items():
        seen = np.asarray(jnp.argsort(order[n], axis=1) < K)
        touched = np.abs(np.asarray(g)).max(axis=2) > 0
        np.testing.assert_array_equal(touched, seen)


@pytest.mark.parametrize('name', ['xaed', 'joint'])
def test_permuting_visible_patches_permutes_tokens_and_nothing_else(name):
    model, module = make(name)
    patches, order = random_patches(model, 2), random_order(model, 2)
    swap = jnp.array([2, 0, 3, 1])
    moved = {n: jnp.concatenate([o[:, :K][:, swap], o[:, K:]], axis=1) for n, o in order.items()}
    latents, cls = encode_visible(module, patches, order)
    permuted, cls_permuted = encode_visible(module, patches, moved)
    np.testing.assert_allclose(cls, cls_permuted, atol=2e-6)
    for n in latents:
        np.testing.assert_allclose(permuted[n], latents[n][:, swap], atol=2e-6)
    predictions, again = forward(module, patches, order), forward(module, patches, moved)
    for n in predictions:
        np.testing.assert_allclose(again[n], predictions[n], atol=2e-6)


@pytest.mark.parametrize('absent', ['self', 'bypass', 'zero_image'])
@pytest.mark.parametrize('name', ['xae', 'joint'])  # XAD is no part of the encoder
def test_encoding_one_sensor_equals_declaring_the_other_absent(name, absent):
    model, module = make(name, fusion=cfg.Fusion(*FAMILY[name], absent=absent))
    patches = random_patches(model, 2)
    gone = Patches(jnp.zeros_like(patches['s2'].values), jnp.zeros_like(patches['s2'].valid))
    alone = encode(module, {'s1': patches['s1']})
    declared = encode(module, {'s1': patches['s1'], 's2': gone})
    np.testing.assert_allclose(alone.tokens['s1'], declared.tokens['s1'], rtol=1e-6, atol=4e-6)
    np.testing.assert_allclose(alone.cls, declared.cls, rtol=1e-6, atol=4e-6)
    np.testing.assert_allclose(alone.pooled, declared.pooled, rtol=1e-6, atol=4e-6)
    assert list(alone.tokens) == ['s1']
    with pytest.raises(ValueError, match='one or more'):
        module.encode({})


def test_absence_is_decided_sample_by_sample():
    model, module = make('xaed')
    patches = random_patches(model, 2)
    some = patches['s2'].valid.at[1].set(False)
    mixed = encode(module, patches | {'s2': Patches(jnp.where(some, patches['s2'].values, 0), some)})
    both, alone = encode(module, patches), encode(module, {'s1': patches['s1']})
    np.testing.assert_allclose(mixed.tokens['s1'][0], both.tokens['s1'][0], rtol=1e-6, atol=4e-6)
    np.testing.assert_allclose(mixed.tokens['s1'][1], alone.tokens['s1'][1], rtol=1e-6, atol=4e-6)


def test_the_rules_for_absent_sensors_differ():
    outputs = []
    for absent in ('self', 'bypass', 'zero_image'):
        model, module = make('xae', fusion=cfg.Fusion('xae', 'none', absent=absent))
        outputs.append(np.asarray(encode(module, {'s1': random_patches(model, 1)['s1']}).pooled))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(outputs[i] - outputs[j]).max() > 1e-3


@pytest.mark.parametrize(
    ('name', 'absent'),
    [
        ('xaed', 'self'),
        pytest.param('xaed', 'bypass', marks=pytest.mark.slow),
        pytest.param('joint', 'self', marks=pytest.mark.slow),
        pytest.param('xaed', 'zero_image', marks=pytest.mark.slow),
    ],
)
def test_what_an_invalid_slot_holds_changes_no_bit(name, absent):
    """Two valid patches of s1 are left in sample 0, none in sample 1: the other slots are invalid."""
    model, module = make(name, fusion=cfg.Fusion(*FAMILY[name], absent=absent))
    graphdef, params = nnx.split(module)
    patches, order = random_patches(model, 2), random_order(model, 2)
    slots = jnp.argsort(order['s1'], axis=1)  # position of each patch in the order
    keep = (slots < 2) & jnp.array([[True], [False]])
    valid = jnp.broadcast_to(keep[..., None], patches['s1'].valid.shape)

    @jax.jit
    def run(params, values):
        def loss(params):
            given = patches | {'s1': Patches(values, valid)}
            predictions, _ = nnx.merge(graphdef, params)(given, order, K)
            return sum(jnp.sum(p**2) for p in predictions.values())

        return jax.value_and_grad(loss)(params)

    noise = jax.random.normal(jax.random.key(9), patches['s1'].values.shape)
    one = run(params, patches['s1'].values)
    two = run(params, jnp.where(valid, patches['s1'].values, noise))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow  # tests/models/test_kernels.py holds the kernels to plain operations every time
@pytest.mark.parametrize(
    'how',
    [
        {'scan': False, 'attention': 'pallas', 'norm': 'pallas'},
        {'scan': False},
        {'remat': 'full'},
        {'scan': False, 'remat': 'dots'},
    ],
)
def test_however_it_runs_it_is_the_same_model(how):
    model, module = make('xaed', depth=2)
    params = nnx.to_pure_dict(nnx.state(module))
    patches, order = random_patches(model, 2), random_order(model, 2)

    def run(**how):
        graphdef = fusmae.graph(dataclasses.replace(model, **how))

        def loss(params):
            predictions, _ = nnx.merge(graphdef, params)(patches, order, K)
            return sum(jnp.sum(p**2) for p in predictions.values())

        return jax.jit(jax.value_and_grad(loss))(params)

    expected = run(scan=True, remat='none', attention='xla', norm='xla')
    for a, b in zip(jax.tree.leaves(run(**{'scan': True} | how)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_a_narrow_residual_stream_is_of_bfloat16_models_alone():
    model, module = make('xae', depth=2)
    params = nnx.to_pure_dict(nnx.state(module))
    patches, order = random_patches(model, 2), random_order(model, 2)

    def predict(residual, dtype):
        narrow = dataclasses.replace(model, residual_dtype=residual)
        with jax.numpy_dtype_promotion('standard'):  # strict is around the float32 model
            graph = fusmae.graph(narrow, dtype)
            run = jax.jit(lambda params: nnx.merge(graph, params)(patches, order, K, capture=True))
            predictions, stages = run(params)
        return predictions['s2'], stages['block1'].dtype

    exact, dtype = predict('bfloat16', jnp.float32)
    assert dtype == jnp.float32  # nothing to be narrowed to
    wide, dtype = predict('float32', jnp.bfloat16)
    assert dtype == jnp.float32
    narrow, dtype = predict('bfloat16', jnp.bfloat16)
    assert dtype == jnp.bfloat16 and narrow.dtype == jnp.float32
    errors = [float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact)) for x in (wide, narrow)]
    assert 0 < errors[0] != errors[1] and max(errors) < 0.05


def test_learned_positions_start_free_and_train_without_a_scatter():
    model, module = make('joint', positions='learned')
    graphdef, params = nnx.split(module)
    patches, order = random_patches(model, 2), random_order(model, 2)

    def loss(params):
        predictions, _ = nnx.merge(graphdef, params)(patches, order, K)
        return sum(jnp.sum(p**2) for p in predictions.values())

    lowered = jax.jit(jax.grad(loss)).lower(params)
    assert 'stablehlo.scatter' not in lowered.as_text()
    table = nnx.to_pure_dict(lowered.compile()(params))['encoder']['position_table']
    seen = np.zeros(model.num_patches, bool)
    for ids in order.values():
        seen[np.asarray(ids[:, :K]).ravel()] = True
    np.testing.assert_array_equal(np.abs(np.asarray(table)).max(axis=1) > 0, seen)


def test_decoder_cls_and_bfloat16_keep_float32_outputs():
    model = resolve(dataclasses.replace(tiny_model(), decoder=cfg.Decoder(16, 2, 2, cls=True)))
    with jax.numpy_dtype_promotion('standard'):  # flax's LayerNorm and Linear promote between the two types
        module = module_of(lambda: FusMAE(model, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
        predictions = forward(module, random_patches(model, 2), random_order(model, 2))
    assert predictions['s2'].shape == (2, 12, 768)
    assert {x.dtype for x in predictions.values()} == {jnp.dtype('float32')}
    assert {x.dtype for x in jax.tree.leaves(nnx.state(module))} == {jnp.dtype('float32')}


def test_parameter_counts_of_vit_b():
    """Counted by hand: 12 blocks, two patch projections, CLS, final norm; two decoders."""
    block, norm = 7_087_872, 2 * 768
    encoder = 12 * block + (512 * 768 + 768) + (3072 * 768 + 768) + 768 + norm
    decoder = (768 * 256 + 256) + 256 + 2 * 789_760 + 2 * 256  # projection, mask token, 2 blocks, norm
    predict = (256 * 512 + 512) + (256 * 3072 + 3072)
    cross = 4 * 768**2 + 4 * 768  # one set of query, key, value and output weights
    expected = {'none': encoder + 2 * decoder + predict}
    expected['xae'] = expected['none'] + cross + 3 * norm  # two sets and five norms instead of one and two
    for fusion, count in expected.items():
        model = resolve(cfg.Model(fusion=cfg.Fusion(fusion)))
        shapes = fusmae.param_shapes(model)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count
