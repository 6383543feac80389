"""Fine-tuning: what has a gradient, the losses, the optimizer by layer, drop path, crops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.config.run import Augment
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.systems import System
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.finetune import optimizer as optimizers
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.finetune.objective import TARGETS, network, pooled_objective, scorer
from fusmae_jax.eval.finetune.train import make_plan
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.models.blocks import run_stack, sample_paths
from fusmae_jax.models.fusmae import graph
from fusmae_jax.parallel.rules import path_name
from tests.support.helpers import weights
from tests.support.probe_fixtures import GROUPS
from tests.support.tiny import tiny_config, tiny_model

CONTRACT = Contract(dataset='probe', version='1', groups=GROUPS)
STILL = Augment(crop=False, hflip=0.0, vflip=0.0)


def batch(size, seed=0):
    """Records as the pipeline delivers them, with three classes, one each."""
    rng = np.random.default_rng(seed)
    result = {POSITION: np.arange(size, dtype=np.uint32)}
    for name, group in GROUPS.items():
        shape = (size, *group.size, len(group.bands))
        radar = group.dtype == 'float32'
        values = rng.normal(-13, 5, shape) if radar else rng.integers(1, 4000, shape)
        result[name] = values.astype(group.dtype)
    return result | {TARGETS: np.eye(3, dtype=np.uint8)[rng.integers(3, size=size)]}


def net_of(modalities=('s1', 's2'), absent='self', image='resize', depth=2, **changes):
    """A network over random weights that is given some of its modalities."""
    model = tiny_model(depth=depth, fusion=cfg.Fusion('xae', 'none', absent))
    config = tiny_config(model=model)
    chosen = {name: m for name, m in config.model.modalities.items() if name in modalities}
    fitted = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=chosen))
    params = weights(config.model, 0)
    system = System('test', '', Pretrained(config, CONTRACT, params, jnp.float32), None)
    settings = Finetune(**{'augment': STILL, 'image': image, **changes})
    net = network(system, Fitted(fitted, [], ()), CONTRACT, settings, 'mean_patch', 3)
    kernel = np.random.default_rng(1).normal(0, 0.3, (net.width, 3)).astype(np.float32)
    head = {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray([0.1, -0.2, 0.3])}
    return net, {'encoder': params['encoder'], 'head': head}, settings


def gradients(net, params, settings):
    loss = pooled_objective(net, settings).loss
    extra = {'seed': jnp.uint32(0)}
    of_records = jax.grad(lambda p, records: loss(p, extra, records, jax.random.key(0))[0])
    grads = jax.jit(of_records)(params, batch(4))
    return {path_name(path): np.asarray(g) for path, g in jax.tree_util.tree_leaves_with_path(grads)}


@pytest.mark.parametrize(
    ('modalities', 'absent', 'untouched'),
    [
        pytest.param(('s1', 's2'), 'self', (), marks=pytest.mark.slow),
        (('s1',), 'self', ('encoder/patch/s2/', 'encoder/block1/cross/s2/')),
        pytest.param(('s1',), 'zero_image', ('encoder/patch/s2/kernel',), marks=pytest.mark.slow),
    ],
)
def test_the_gradient_reaches_all_that_a_prediction_rests_on(modalities, absent, untouched):
    for name, grad in gradients(*net_of(modalities, absent)).items():
        assert np.any(grad) != name.startswith(untouched or ('nothing',)), name


def reference(scores, targets, kind, smoothing):
    """The losses in float64."""
    x, y = np.asarray(scores, np.float64), targets.astype(np.float64)
    if kind == 'multi_label':
        return np.mean(np.logaddexp(0, x) - y * x)
    log_p = x - np.log(np.sum(np.exp(x), axis=1, keepdims=True))
    return np.mean(-np.sum(((1 - smoothing) * y + smoothing / x.shape[1]) * log_p, axis=1))


@functools.cache
def scored():
    """The scores of six records."""
    net, params, _ = net_of(('s1',))
    return np.asarray(jax.jit(scorer(net))(params, batch(6)))


@functools.cache
def loss_of(kind, drop_path=0.0):
    """The loss of six records, with label smoothing 0.1."""
    data = Task(path='x', kind=kind)
    net, params, settings = net_of(('s1',), data=data, drop_path=drop_path, label_smoothing=0.1)
    loss = jax.jit(pooled_objective(net, settings).loss)
    return float(loss(params, {'seed': jnp.uint32(0)}, batch(6), jax.random.key(0))[0])


@pytest.mark.parametrize('kind', ['multi_label', 'single_label'])
def test_the_losses_are_those_of_the_paper(kind):
    targets = batch(6)[TARGETS]
    assert loss_of(kind) == pytest.approx(reference(scored(), targets, kind, 0.1), rel=1e-5)
    smoothed = reference(scored(), targets, kind, 0.1) != reference(scored(), targets, kind, 0.0)
    assert smoothed == (kind == 'single_label')


@pytest.mark.parity
@pytest.mark.parametrize('kind', ['multi_label', 'single_label'])
def test_the_losses_are_those_of_torch(kind):
    torch = pytest.importorskip('torch')
    x, y = torch.tensor(scored()), torch.tensor(batch(6)[TARGETS])
    if kind == 'multi_label':
        wanted = torch.nn.MultiLabelSoftMarginLoss()(x, y.float())
    else:
        wanted = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(x, y.argmax(dim=1))
    assert loss_of(kind) == pytest.approx(float(wanted), rel=1e-5)


def small_params():
    rng = np.random.default_rng(0)
    block = {'mlp': {'kernel': rng.normal(size=(4, 4)), 'bias': rng.normal(size=4)}}
    stacked = jax.tree.map(lambda x: np.stack([x, 2 * x]), block)
    tree = {
        'encoder': {
            'patch': {'s1': {'kernel': rng.normal(size=(3, 4))}},
            'cls': rng.normal(size=4),
            'block1': block,
            'blocks': stacked,
            'norm': {'scale': np.ones(4)},
        },
        'head': {'kernel': rng.normal(size=(4, 2)), 'bias': np.zeros(2)},
    }
    return jax.tree.map(jnp.float32, tree)


def test_rates_fall_from_the_head_to_the_patches():
    """`decay ** (depth + 1 - block)`, as in fine-tuning MAE; the patches count as block 0."""
    rates = optimizers.multipliers(small_params(), 3, 0.5)
    assert rates['head']['kernel'] == rates['encoder']['norm']['scale'] == 1
    np.testing.assert_allclose(rates['encoder']['blocks']['mlp']['kernel'].ravel(), [0.25, 0.5])
    assert rates['encoder']['blocks']['mlp']['bias'].shape == (2, 1)
    assert rates['encoder']['block1']['mlp']['bias'] == 0.125
    assert rates['encoder']['patch']['s1']['kernel'] == rates['encoder']['cls'] == 0.0625
    with pytest.raises(InputError, match='encoder/neck/bias'):
        optimizers.multipliers({'encoder': {'neck': {'bias': jnp.zeros(2)}}}, 3, 0.5)


def test_the_optimizer_is_adamw_with_a_rate_for_each_layer():
    optimizer = optimizers.make_optimizer(Finetune(weight_decay=0.05, layer_decay=0.5), 3)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 6, 0.0)
    start = small_params()
    kernels = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', start)
    adamw = optax.adamw(schedule, b1=0.9, b2=0.999, weight_decay=0.05, mask=kernels)
    scales = optimizers.multipliers(start, 3, 0.5)

    @jax.jit
    def both(ours, theirs, state, other, step):
        grads = jax.tree.map(lambda x: jnp.cos(x + step), start)
        updates, state = optimizer.update(grads, state, ours)
        wanted, other = adamw.update(grads, other, theirs)
        wanted = jax.tree.map(jnp.multiply, wanted, scales)
        return optax.apply_updates(ours, updates), optax.apply_updates(theirs, wanted), state, other

    ours, theirs, other = start, start, adamw.init(start)
    state = optimizer.init(start)._replace(pace=optimizers.pace(1e-2, 2, 6))
    for step in range(6):
        ours, theirs, state, other = both(ours, theirs, state, other, step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), ours, theirs)
    assert np.abs(ours['encoder']['cls'] - start['encoder']['cls']).max() > 1e-4


def test_drop_path_leaves_out_branches_and_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    paths = np.asarray(sample_paths(keys, 5, 0.4, first=1))
    assert paths.shape == (4, 4000, 2)
    np.testing.assert_allclose(
        np.mean(paths == 0, axis=1), [[0.1] * 2, [0.2] * 2, [0.3] * 2, [0.4] * 2], atol=0.03
    )
    np.testing.assert_allclose(paths.mean(axis=1), 1, atol=0.05)
    dropped = np.array([0.1, 0.2, 0.3, 0.4])[:, None, None]
    np.testing.assert_allclose(paths, np.where(paths == 0, 0, 1 / (1 - dropped)), rtol=1e-6)
    assert not np.array_equal(paths[..., 0], paths[..., 1])


def test_a_model_with_drop_path_is_its_blocks_with_scaled_branches():
    config = tiny_config(model=tiny_model('none', depth=3))
    params, graphdef = weights(config.model, 0), graph(config.model)
    keys = jax.random.split(jax.random.key(3), 6)
    paths = sample_paths(keys, 3, 0.5, first=1)
    assert 0 < np.mean(np.asarray(paths) == 0) < 1
    x, valid = jax.random.normal(jax.random.key(1), (6, 5, 32)), jnp.ones((6, 5), bool)

    @jax.jit
    def by_hand(params):
        tokens = x
        for block in range(2):
            part = jax.tree.map(lambda leaf, at=block: leaf[at], nnx.merge(graphdef, params).encoder.blocks)
            tokens += paths[block, :, 0][:, None, None] * part.attention(part.norm1(tokens), valid)[0]
            tokens += paths[block, :, 1][:, None, None] * part.mlp(part.norm2(tokens))
        return tokens

    @jax.jit
    def dropped(params):
        model = nnx.merge(graphdef, params)
        return run_stack(model.encoder.blocks, x, valid, config.model, paths=paths)[0]

    np.testing.assert_allclose(by_hand(params), dropped(params), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_drop_path_acts_in_training():
    assert abs(loss_of('multi_label') - loss_of('multi_label', drop_path=0.5)) > 1e-4


@pytest.mark.slow
def test_four_crops_are_scored_as_four_images():
    whole, params, _ = net_of(('s1',), image='crops')
    part, _, _ = net_of(('s1',))
    radar = batch(3)['s1']
    radar[0, :12, :12] = np.nan  # nothing of the first quarter is left
    radar[1] = np.nan
    score, scores = jax.jit(scorer(part)), []
    for down in (0, 12):
        for right in (0, 12):
            scores.append(score(params, {'s1': radar[:, down : down + 12, right : right + 12]}))
    mean = np.mean(scores, axis=0)
    mean[0] = np.mean(scores[1:], axis=0)[0]
    mean[1] = params['head']['bias']
    np.testing.assert_allclose(jax.jit(scorer(whole))(params, {'s1': radar}), mean, rtol=1e-4, atol=1e-5)


def test_steps_of_a_plan():
    settings = Finetune(batch_size=16, epochs=2.5, warmup_epochs=1.0)
    assert make_plan(settings, 80, 8) == (16, 5, (5, 10, 12))
    assert make_plan(settings, 13, 8) == (8, 2, (2, 3, 4))  # one batch has at most the records there are
    assert make_plan(settings, 3, 8).batch == 8  # but no device goes without
    with pytest.raises(InputError, match='batch_size=20 cannot be split over 8 devices'):
        make_plan(dataclasses.replace(settings, batch_size=20), 80, 8)
