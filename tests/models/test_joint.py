"""Joint sequences and stacked bands: counts, capacity, one token for all sensors, an error for each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import resolve
from fusmae_jax.input.prepare import Patches
from fusmae_jax.models import fusmae
from fusmae_jax.models.encoder import split_stack, stack_patches
from fusmae_jax.models.masking import Slots, hidden_patches, slots_by_modality
from fusmae_jax.train import losses
from fusmae_jax.train.objective import Masked, error_sums
from tests.support.helpers import random_order, random_patches
from tests.support.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures('strict')
FAMILY = {'xaed': ('xae', 'xad'), 'joint': ('none', 'none'), 'multimae': ('none', 'multimae')}
FAMILY['joint_cls'] = FAMILY['joint']
CASES = [('xaed', 'self'), ('multimae', 'self')]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in (('joint', 'self'), ('xaed', 'bypass'))]
K, N = 4, 16  # visible patches of a sensor, patches


@functools.cache
def make(name, absent='self'):
    """A model as its structure and its parameters, every one of them random."""
    model = tiny_model(fusion=cfg.Fusion(*FAMILY[name], absent=absent), depth=2, scan=False)
    model = resolve(
        dataclasses.replace(model, decoder=cfg.Decoder(16, 1, 2, cls=name in ('multimae', 'joint_cls')))
    )
    rng = np.random.default_rng(0)
    shapes = fusmae.param_shapes(model)
    return (
        model,
        fusmae.graph(model),
        jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype('f'), shapes),
    )


def _joint(graphdef, params, patches, slots):
    predictions, stages = nnx.merge(graphdef, params).joint(patches, slots, capture=True)
    return predictions, stages['latents'], stages['cls']


@functools.cache
def _forward(name, absent):
    return jax.jit(functools.partial(_joint, make(name, absent)[1]))


def joint(name, absent, patches, slots):
    """Predictions by sensor, latents of the slots, CLS."""
    return jax.device_get(_forward(name, absent)(make(name, absent)[2], patches, slots))


@functools.cache
def _gradient(name):
    def loss(params, values, valid, slots):
        patches = {n: Patches(x, valid[n]) for n, x in values.items()}
        outputs = _joint(make(name)[1], params, patches, slots)
        hidden = hidden_patches(slots, list(values), N)
        return sum(jnp.sum(jnp.where(hidden[n][..., None], p**2, 0)) for n, p in outputs[0].items()), outputs

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def gradients(name, patches, slots):
    """((loss over hidden patches, outputs), (gradient of the parameters, gradient of the patches))."""
    values = {n: p.values for n, p in patches.items()}
    return jax.device_get(
        _gradient(name)(make(name)[2], values, {n: p.valid for n, p in patches.items()}, slots)
    )


def fixed(name, absent, patches, order):
    _, graphdef, params = make(name, absent)

    @jax.jit
    def run(params, patches, order):
        predictions, stages = nnx.merge(graphdef, params)(patches, order, K, capture=True)
        return predictions, {n: stages[f'latents/{n}'] for n in patches}, stages['cls']

    return jax.device_get(run(params, patches, order))


def slots_of(order, valid=None):
    """The joint sequence with the first K patches of each sensor, shuffled."""
    names = sorted(order)
    position = jnp.concatenate([order[n][:, :K] for n in names], axis=1)
    sensor = jnp.repeat(jnp.arange(len(names)), K)[None] * jnp.ones_like(position)
    there = jnp.ones(position.shape, bool) if valid is None else valid
    mix = np.random.default_rng(0).permutation(position.shape[1])
    return Slots(sensor[:, mix], position[:, mix], there[:, mix]), mix


@pytest.mark.parametrize(('name', 'absent'), CASES)
def test_equal_counts_are_the_model_with_fixed_counts(name, absent):
    """The second sample has no valid patch of s2: its slots are invalid."""
    model, _, _ = make(name, absent)
    patches, order = random_patches(model, 2), random_order(model, 2)
    given = patches['s2'].valid.at[1].set(False)
    patches['s2'] = Patches(jnp.where(given, patches['s2'].values, 0), given)
    valid = jnp.ones((2, 2 * K), bool).at[1, K:].set(False)
    slots, mix = slots_of(order, valid)
    expected, latents, cls = fixed(name, absent, patches, order)
    predictions, tokens, found_cls = joint(name, absent, patches, slots)
    together = np.concatenate([latents['s1'], latents['s2']], axis=1)[:, mix]
    there = np.asarray(slots.valid)
    np.testing.assert_allclose(tokens[there], together[there], atol=5e-6)
    np.testing.assert_allclose(found_cls, cls, atol=5e-6)
    for n in predictions:
        same = np.take_along_axis(predictions[n], np.asarray(order[n])[:, K:, None], axis=1)
        rows = slice(0, 2 if n == 's1' else 1)  # a patch that is lost is hidden here, but no target there
        np.testing.assert_allclose(same[rows], expected[n][rows], atol=2e-5)


@pytest.mark.parametrize('name', ['multimae', 'joint_cls'])
def test_the_last_block_of_a_decoder_computes_what_is_asked_for_and_changes_nothing(name):
    """`capture` computes all tokens of it."""
    model, graphdef, params = make(name)
    patches, order = random_patches(model, 2), random_order(model, 2)

    def loss(params, capture):
        predictions, _ = nnx.merge(graphdef, params)(patches, order, K, capture=capture)
        return sum(jnp.sum(p**2) for p in predictions.values())

    programs = [
        jax.jit(functools.partial(jax.value_and_grad(loss), capture=capture)).lower(params).compile()
        for capture in (False, True)
    ]
    narrow, whole = (jax.device_get(program(params)) for program in programs)
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(whole)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
    assert programs[0].cost_analysis()['flops'] < programs[1].cost_analysis()['flops']


@pytest.mark.parametrize(
    ('name', 'reached'),
    [
        *(('xaed', False), ('multimae', True)),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in (('joint', False), ('joint_cls', True))),
    ],
)
def test_a_sensor_hidden_as_a_whole_is_predicted_from_the_other_if_its_decoder_sees_it(name, reached):
    """Latents of its own visible patches alone are what a plain decoder is given; there are none."""
    model, _, _ = make(name)
    patches, position = random_patches(model, 2), random_order(model, 2)['s1'][:, : 2 * K]
    slots = Slots(jnp.zeros_like(position), position, jnp.ones(position.shape, bool))
    swapped = patches | {'s1': jax.tree.map(lambda x: x[::-1], patches['s1'])}
    one, other = (joint(name, 'self', given, slots)[0] for given in (patches, swapped))
    assert np.array_equal(one['s2'], other['s2']) == (not reached)
    assert not np.array_equal(one['s1'], other['s1'])


def case(name, absent='self'):
    """Patches, and slots of which some are invalid: three patches of s1 and one of s2, then none at all."""
    model, _, _ = make(name, absent)
    slots, mix = slots_of(random_order(model, 2))
    keep = np.array([[1, 1, 1, 0, 0, 0, 0, 1], [0] * 8], bool)[:, mix]
    return random_patches(model, 2), slots._replace(valid=jnp.asarray(keep))


def equal(one, two, check):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        check(a, b)


@pytest.mark.parametrize(
    'name', ['xaed', *(pytest.param(name, marks=pytest.mark.slow) for name in ('joint', 'multimae'))]
)
def test_what_an_invalid_slot_holds_changes_no_bit(name):
    patches, slots = case(name)
    moved = Slots(
        jnp.where(slots.valid, slots.sensor, 1 - slots.sensor),
        jnp.where(slots.valid, slots.position, (slots.position + 5) % N),
        slots.valid,
    )
    there, results = np.asarray(slots.valid), []
    for given in (slots, moved):
        (total, (predictions, latents, cls)), both = gradients(name, patches, given)
        results.append((total, predictions, latents[there], cls, both))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
    equal(*results, np.testing.assert_array_equal)


@pytest.mark.parametrize('name', ['xaed', 'multimae'])
def test_another_capacity_changes_next_to_nothing(name):
    patches, slots = case(name)
    more = Slots(*(jnp.concatenate([x, x[:, :5]], axis=1) for x in slots))
    more = more._replace(valid=jnp.pad(slots.valid, ((0, 0), (0, 5))))
    one, two = (joint(name, 'self', patches, s) for s in (slots, more))
    equal(one[0], two[0], lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6))
    latents = [x[1][np.asarray(s.valid)] for x, s in ((one, slots), (two, more))]
    np.testing.assert_allclose(*latents, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    'name', ['xaed', *(pytest.param(name, marks=pytest.mark.slow) for name in ('joint', 'multimae'))]
)
def test_hidden_patches_are_never_seen(name):
    patches, slots = case(name)
    _, (_, gradient) = gradients(name, patches, slots)
    hidden = hidden_patches(slots, ('s1', 's2'), N)
    for n, g in gradient.items():
        np.testing.assert_array_equal(np.abs(g).max(axis=2) > 0, ~np.asarray(hidden[n]))


def test_a_hidden_sensor_is_predicted_from_the_other_by_decoders_that_see_it():
    for name, follows in (('multimae', True), ('joint', False)):
        model, _, _ = make(name)
        patches, (slots, _) = random_patches(model, 2), slots_of(random_order(model, 2))
        slots = slots._replace(valid=slots_by_modality(slots, ('s1', 's2'))['s1'])
        other = patches | {'s1': Patches(patches['s1'].values + 1, patches['s1'].valid)}
        one, two = (joint(name, 'self', given, slots)[0]['s2'] for given in (patches, other))
        assert (np.abs(one - two).max() > 1e-3) == follows


def test_the_mean_image_takes_slots_like_any_other():
    """zero_image: what the patches of an absent sensor hold does not matter, its slots are valid and 0."""
    model, _, _ = make('xaed', 'zero_image')
    patches, (slots, _) = random_patches(model, 2), slots_of(random_order(model, 2))
    gone = Patches(patches['s2'].values, jnp.zeros_like(patches['s2'].valid))
    zero = Patches(jnp.zeros_like(gone.values), jnp.ones_like(gone.valid))
    one, two = (joint('xaed', 'zero_image', patches | {'s2': p}, slots) for p in (gone, zero))
    equal(one, two, np.testing.assert_array_equal)


VISIBLE = 4


@functools.cache
def make_stack():
    model = resolve(tiny_model('stack', 'none', depth=2, scan=False))
    graphdef, rng = fusmae.graph(model), np.random.default_rng(0)
    shapes = fusmae.param_shapes(model)
    params = jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype('f'), shapes)
    encode = jax.jit(lambda params, patches: nnx.merge(graphdef, params).encode(patches))
    forward = jax.jit(lambda params, patches, order: nnx.merge(graphdef, params)(patches, order, VISIBLE)[0])
    return model, params, encode, forward


def patches_and_order():
    model = make_stack()[0]
    return random_patches(model, 2), dict.fromkeys(('s1', 's2'), random_order(model, 2)['s1'])


def test_one_projection_and_one_decoder_for_all_bands():
    model, params, _, forward = make_stack()
    assert params['encoder']['patch']['stack']['kernel'].shape == (64 * 14, 32)
    assert list(params['decoders']) == ['stack']
    patches, order = patches_and_order()
    shapes = {name: x.shape for name, x in forward(params, patches, order).items()}
    assert shapes == {'s1': (2, 12, 128), 's2': (2, 12, 768)}
    stacked, there = stack_patches(model, patches)
    assert stacked.shape == (2, 16, 896) and there.all()
    for name, part in split_stack(model, stacked).items():
        np.testing.assert_array_equal(part, patches[name].values)


@pytest.mark.parametrize('given', ['s1', 's2'])
def test_a_sensor_that_is_not_there_is_its_mean(given):
    _, params, encode, _ = make_stack()
    patches, _ = patches_and_order()
    other = 's2' if given == 's1' else 's1'
    alone = encode(params, {given: patches[given]})
    lost = Patches(patches[other].values, jnp.zeros_like(patches[other].valid))
    mean = Patches(jnp.zeros_like(lost.values), jnp.ones_like(lost.valid))
    assert list(alone.tokens) == [given]
    for partner in (lost, mean):
        both = encode(params, patches | {other: partner})
        np.testing.assert_array_equal(both.tokens['s1'], both.tokens['s2'])
        for a, b in (
            (both.tokens[given], alone.tokens[given]),
            (both.cls, alone.cls),
            (both.pooled, alone.pooled),
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert np.abs(alone.pooled - encode(params, patches).pooled).max() > 1e-3


def test_a_patch_counts_if_one_sensor_has_it():
    """s1 lacks the first three patches; s2 others in the first sample, and the same in the second."""
    _, params, encode, _ = make_stack()
    patches, _ = patches_and_order()
    at, row = np.arange(16)[None, :, None], np.arange(2)[:, None, None]
    lost = {'s1': (at < 3) & (row >= 0), 's2': (at // 3 == 1 - row)}

    def run(fill):
        given = {
            n: Patches(jnp.where(lost[n], jnp.float32(fill), p.values), p.valid & ~lost[n])
            for n, p in patches.items()
        }
        return encode(params, given)

    one, two = run(0), run(9)
    np.testing.assert_array_equal(one.pooled, two.pooled)
    np.testing.assert_array_equal(one.cls, two.cls)
    np.testing.assert_allclose(one.pooled[0], np.mean(one.tokens['s1'][0], axis=0), atol=1e-6)
    np.testing.assert_allclose(one.pooled[1], np.mean(one.tokens['s1'][1, 3:], axis=0), atol=1e-6)


def test_all_sensors_of_a_place_are_hidden_together():
    _, params, _, forward = make_stack()
    patches, order = patches_and_order()

    def total(values):
        given = {n: Patches(v, patches[n].valid) for n, v in values.items()}
        return sum(jnp.sum(p**2) for p in forward(params, given, order).values())

    gradient = jax.jit(jax.grad(total))({n: p.values for n, p in patches.items()})
    seen = np.asarray(jnp.argsort(order['s1'], axis=1) < VISIBLE)
    for g in gradient.values():
        np.testing.assert_array_equal(np.abs(np.asarray(g)).max(axis=2) > 0, seen)


def test_the_loss_of_satvit():
    """Weights by bands give the mean over all numbers; norm_pix is over the bands of all sensors."""
    weights = {'s1': 2 / 14, 's2': 12 / 14}
    model = make_stack()[0]
    modalities = {n: dataclasses.replace(m, loss_weight=weights[n]) for n, m in model.modalities.items()}
    config = tiny_config(
        model=dataclasses.replace(model, modalities=modalities),
        masking=cfg.Masking('consistent'),
        loss=cfg.Loss(norm_pix=True),
    )
    patches, order = patches_and_order()
    predictions = {
        n: jax.random.normal(jax.random.key(1), (2, 12, p.values.shape[2])) for n, p in patches.items()
    }
    sums, _ = error_sums(config, Masked(patches, order, VISIBLE), predictions)
    total, _ = losses.combine(sums, weights)
    hidden = np.asarray(order['s1'])[:, VISIBLE:, None]
    both = np.concatenate(
        [np.take_along_axis(np.asarray(p.values), hidden, 1) for p in patches.values()], axis=2
    )
    scaled = (both - both.mean(-1, keepdims=True)) / np.sqrt(both.var(-1, ddof=1, keepdims=True) + 1e-6)
    guess = np.concatenate([np.asarray(p) for p in predictions.values()], axis=2)
    assert float(total) == pytest.approx(((guess - scaled) ** 2).mean(), rel=1e-5)
