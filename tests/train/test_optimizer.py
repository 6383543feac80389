import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.models.fusmae import param_shapes
from fusmae_jax.parallel.rules import path_name
from fusmae_jax.train.optimizer import decay_mask, make_optimizer, schedule
from tests.support.tiny import tiny_config


def test_decay_by_name_not_by_shape():
    model = tiny_config('xae', 'xad').model
    params = param_shapes(model)
    flat = {path_name(p): v for p, v in jax.tree_util.tree_leaves_with_path(decay_mask(params))}
    assert flat['encoder/blocks/mlp/up/kernel'] and flat['decoders/s1/predict/kernel']
    for name in (
        'encoder/blocks/mlp/up/bias',
        'encoder/blocks/norm1/scale',
        'encoder/cls',
        'decoders/s2/mask_token',
    ):
        assert not flat[name]
    assert all(name.endswith('kernel') == decayed for name, decayed in flat.items())
    assert all(jax.tree.leaves(decay_mask(params, decay_all=True)))
    with pytest.raises(InputError, match='new/thing'):
        decay_mask({'new': {'thing': jnp.zeros(2)}})


def test_schedule_counts_examples():
    rate = schedule(
        cfg.Optimizer(learning_rate=2.0, warmup_epochs=10.0), 1000, batch_size=4, examples_per_epoch=40
    )
    np.testing.assert_allclose([rate(0), rate(50), rate(100), rate(1000)], [0, 1, 2, 0], atol=1e-6)
    half = 100 + 900 // 2
    np.testing.assert_allclose(rate(half), 1, atol=1e-6)
    steps = schedule(cfg.Optimizer(learning_rate=2.0, warmup_steps=10), 20, 4, 40)
    np.testing.assert_allclose([steps(5), steps(10), steps(15)], [1, 2, 1], atol=1e-6)


def test_decay_is_decoupled_and_skips_biases():
    settings = cfg.Optimizer(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(settings, lambda _: 0.1)
    params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates['kernel'], -0.05, rtol=1e-6)
    assert not np.any(updates['bias'])


@pytest.mark.parametrize(('clip_norm', 'decay_all'), [(0.0, False), (1.0, False), (0.0, True)])
def test_joined_moments_are_adamw(clip_norm, decay_all):
    """Where the moments lie changes nothing: ten updates equal those of optax.adamw on the whole tree."""
    settings = cfg.Optimizer(weight_decay=0.3, clip_norm=clip_norm, decay_all=decay_all)
    rate = optax.linear_schedule(0.1, 0.0, 10)
    params = {
        'encoder': {'patch': {'kernel': (4, 3), 'bias': (3,)}, 'cls': (1, 3)},
        'blocks': {'norm': {'scale': (2, 3), 'bias': (2, 3)}, 'up': {'kernel': (2, 3, 5), 'bias': (2, 5)}},
    }
    adamw = optax.adamw(
        rate,
        settings.b1,
        settings.b2,
        settings.eps,
        weight_decay=0.3,
        mask=lambda tree: decay_mask(tree, decay_all),
    )
    whole = optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw
    ours, expected = (trajectory(each, params) for each in (make_optimizer(settings, rate), whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, expected)


def trajectory(optimizer, shapes):
    """Parameters after ten updates with gradients drawn anew for each."""
    rng = np.random.default_rng(0)

    def draw():
        def normal(shape):
            return rng.normal(size=shape).astype(np.float32)

        return jax.tree.map(normal, shapes, is_leaf=lambda x: isinstance(x, tuple))

    update, params = jax.jit(optimizer.update), draw()
    state = optimizer.init(params)
    for _ in range(10):
        updates, state = update(draw(), state, params)
        params = optax.apply_updates(params, updates)
    return params
