"""Adapters in place of an encoder, and encoders that are frozen at first: what moves, and when."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fusmae_jax.errors import InputError
from fusmae_jax.eval.finetune import optimizer as optimizers
from fusmae_jax.eval.finetune.adapters import LORA, fresh, tuned
from fusmae_jax.eval.finetune.config import Finetune, changed, check, recipe_of
from fusmae_jax.eval.finetune.rows import sweep

pytestmark = pytest.mark.usefixtures('one_device')
SHAPES = {
    'block1/mlp/up/kernel': (6, 12),
    'block1/mlp/up/bias': (12,),
    'blocks/mlp/up/kernel': (2, 6, 12),
    'patch/s1/kernel': (8, 6),
    'norm/scale': (6,),
    'cls': (6,),
}


def start(rank):
    rng = np.random.default_rng(0)
    flat = {name: jnp.asarray(rng.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()}
    encoder = traverse_util.unflatten_dict(flat, sep='/')
    head = {'kernel': jnp.ones((6, 2), jnp.float32), 'bias': jnp.zeros(2, jnp.float32)}
    return {'encoder': encoder, 'head': head} | fresh(jax.random.key(0), encoder, rank)


def flat(tree):
    return {name: np.asarray(x) for name, x in traverse_util.flatten_dict(tree, sep='/').items()}


def loss(params):
    leaves = [*jax.tree.leaves(tuned(params)), *jax.tree.leaves(params['head'])]
    return sum(jnp.sum((x - 1) ** 2) for x in leaves)


def trained(steps, rank=2, **changes):
    """Parameters before and after some steps of a fine-tuning of ten epochs, one step each."""
    config = Finetune(lora_rank=rank, warmup_epochs=0.0, **changes)
    optimizer, params = optimizers.make_optimizer(config, 3), start(rank)
    state = optimizer.init(params)._replace(pace=optimizers.pace(1e-2, 0, 10))

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        moves, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, moves), state

    learned = params
    for _ in range(steps):
        learned, state = step(learned, state)
    return flat(params), flat(learned), state


def test_a_kernel_of_a_block_is_the_sum_and_nothing_else_changes():
    params = start(2)
    assert fresh(jax.random.key(0), params['encoder'], 0) == {}
    plain = start(0)
    assert tuned(plain) is plain['encoder']
    jax.tree.map(np.testing.assert_array_equal, tuned(params), params['encoder'])
    moved = params | {LORA: jax.tree.map(lambda x: x + 1, params[LORA])}
    after, before, added = flat(tuned(moved)), flat(params['encoder']), flat(moved[LORA])
    for name, value in before.items():
        change = after[name] - value
        if name in ('block1/mlp/up/kernel', 'blocks/mlp/up/kernel'):
            expected = added[f'{name}/lora_a'] @ added[f'{name}/lora_b']
            np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-5)
            assert np.linalg.matrix_rank(change.reshape(-1, 6, 12)).max() <= 2
        else:
            assert not change.any()


def test_with_adapters_the_encoder_beneath_has_no_moments_and_stays():
    before, after, state = trained(4)
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == name.startswith('encoder/'), name
    numbers = sum(x.size for x in jax.tree.leaves(state.moments))
    learned = sum(value.size for name, value in before.items() if not name.startswith('encoder/'))
    assert numbers == 2 * learned + 1  # and a count
    # Without them it is the plain fine-tuning: everything moves.
    before, after, _ = trained(1, rank=0)
    assert not any(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize('rank', [0, 2])
def test_a_frozen_encoder_is_thawed_on_time(rank):
    before, after, _ = trained(4, rank, frozen_epochs=4.0)
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == (not name.startswith('head/')), name
    before, after, _ = trained(6, rank, frozen_epochs=4.0)
    inner = [name for name in before if name.startswith('lora/' if rank else 'encoder/')]
    assert inner and not any(np.array_equal(after[name], before[name]) for name in inner)


def test_rows_and_points_know_of_it_only_where_it_is():
    plain = Finetune()
    some = dataclasses.replace(plain, lora_rank=4, frozen_epochs=1.0)
    assert changed(plain) == {} and changed(some) == {'lora_rank': 4, 'frozen_epochs': 1.0}
    assert (recipe_of(plain), recipe_of(some)) == ('paper', 'custom')
    assert sweep(some).items() - sweep(plain).items() == {('lora_rank', (4.0,)), ('frozen_epochs', (1.0,))}
    with pytest.raises(InputError, match='leaves nothing of epochs'):
        check(dataclasses.replace(plain, frozen_epochs=10.0))
