"""Dense tasks: labels move with their images, losses see labelled pixels alone, heads are what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config.run import Augment
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.dense import heads, losses
from fusmae_jax.eval.dense.config import DenseFinetune, DenseProbe, check
from fusmae_jax.eval.dense.features import chosen, token_map
from fusmae_jax.eval.dense.heads import HeadShape
from fusmae_jax.eval.dense.score import confusion
from fusmae_jax.eval.dense.targets import moved, nearest, turned
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.label_maps import IGNORE
from fusmae_jax.input.normalise import statistics
from fusmae_jax.input.prepare import Patches, make_prepare
from fusmae_jax.input.resample import full_box, sample_box
from fusmae_jax.models.fusmae import graph
from fusmae_jax.models.heads import logits as linear
from tests.support.helpers import random_patches, weights
from tests.support.tiny import tiny_config, tiny_model

SIZE = 32
FLIPS = Augment(crop=False, hflip=0.5, vflip=0.5)
CROPS = Augment(crop=True, crop_scale=(0.3, 0.9), hflip=0.5, vflip=0.5)


def keys(count=16, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def labels(count=16, size=SIZE, seed=0):
    return np.random.default_rng(seed).choice(np.array([0, 3, 90, IGNORE], np.uint8), (count, size, size))


def images(stored, augment):
    """Label numbers as a radar image, prepared as the model is given it: (b, h, w), standard deviations."""
    config = tiny_config()
    radar = config.model.modalities['s1']
    model = dataclasses.replace(config.model, modalities={'s1': radar}, patch_size=1)
    config = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, clip=1e6))
    contract = Contract(groups={'s1': Group('s1', radar.bands, (SIZE, SIZE), 'float32', 'dB')})
    batch = {'s1': jnp.asarray(stored, jnp.float32)[..., None].repeat(len(radar.bands), axis=-1)}
    moved_images = make_prepare(config, contract, augment)(batch, keys(len(stored)))['s1']
    mean, std = statistics(radar)
    values = moved_images.values[..., 0] * std[0] + mean[0]
    return np.asarray(values).reshape(-1, SIZE, SIZE)


def test_labels_are_flipped_with_their_images_pixel_by_pixel():
    """One pixel to the side would show."""
    stored = labels()
    flipped = np.asarray(moved(jnp.asarray(stored), keys(), FLIPS))
    np.testing.assert_allclose(images(stored, FLIPS), flipped, atol=1e-3)
    assert (flipped != stored).any(axis=(1, 2)).sum() > 8
    np.testing.assert_array_equal(moved(jnp.asarray(stored), keys(), None), stored)


def test_labels_are_cropped_with_their_images_to_half_a_pixel():
    """A ramp tells where each pixel comes from: labels to the nearest pixel, images between them."""
    ramp = np.broadcast_to(np.arange(SIZE, dtype=np.uint8), (16, SIZE, SIZE))
    for stored, axis in ((ramp, 2), (ramp.swapaxes(1, 2), 1)):
        cropped = np.asarray(moved(jnp.asarray(stored), keys(), CROPS)).astype(float)
        wanted = images(stored, CROPS)
        inner = (wanted > 0.5) & (wanted < SIZE - 1.5)
        off = np.abs(cropped - wanted)[inner]
        assert off.max() <= 0.5 + 1e-3 and abs((cropped - wanted)[inner].mean()) < 0.05, axis


def test_nothing_stands_between_two_labels():
    """Interpolated, 0 and 90 would give 45."""
    cropped = np.asarray(moved(jnp.asarray(labels()), keys(), CROPS))
    assert set(np.unique(cropped)) == {0, 3, 90, IGNORE}
    finer = nearest(jnp.asarray(labels()), full_box(16), (2 * SIZE, 2 * SIZE))
    np.testing.assert_array_equal(finer, labels().repeat(2, axis=1).repeat(2, axis=2))


def test_a_flip_of_the_crop_is_the_crop_flipped():
    box = sample_box(keys(), dataclasses.replace(CROPS, hflip=0.0, vflip=0.0))
    turned_box = box._replace(hflip=~box.hflip)
    one, other = (nearest(jnp.asarray(labels()), b, (20, 12)) for b in (box, turned_box))
    np.testing.assert_array_equal(one[:, :, ::-1], other)


def test_images_and_labels_turn_together():
    stored = labels(64)
    batch = {'x': jnp.asarray(stored)[..., None], 'map': jnp.asarray(stored), 'name': jnp.arange(64)}
    rotated = turned(batch, ('x', 'map'), keys(64))
    np.testing.assert_array_equal(rotated['x'][..., 0], rotated['map'])
    quarters = {
        next(k for k in range(4) if (np.rot90(a, k) == b).all()) for a, b in zip(stored, rotated['map'])
    }
    assert quarters == {0, 1, 2, 3} and (rotated['name'] == batch['name']).all()


def reference(logits, truth, kind, gamma):
    """In float64, pixel by pixel."""
    there = truth != IGNORE
    x = np.asarray(logits, np.float64)[there]
    t = truth[there]
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    hit = p[np.arange(len(t)), t]
    if kind == 'dice':
        each = [
            1 - (2 * p[t == c, c].sum() + 1) / (p[:, c].sum() + (t == c).sum() + 1)
            for c in range(x.shape[1])
            if (t == c).any()
        ]
        return np.mean(each)
    return np.mean(-np.log(hit) * ((1 - hit) ** gamma if kind == 'focal' else 1))


def scored(seed=0, classes=4):
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes - 1, size=(2, 5, 6)).astype(np.uint8)  # the last class does not occur
    truth[rng.random(truth.shape) < 0.3] = IGNORE
    return rng.normal(0, 2, (*truth.shape, classes)).astype(np.float32), truth


@pytest.mark.parametrize('kind', losses.LOSSES)
def test_losses_and_no_gradient_without_a_label(kind):
    logits, truth = scored()
    value, grad = jax.value_and_grad(losses.loss)(jnp.asarray(logits), jnp.asarray(truth), kind, 2.0)
    parts = kind.split('+')
    wanted = sum(reference(logits, truth, part, 2.0) for part in parts)
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    ignored = truth == IGNORE
    assert (np.asarray(grad)[ignored] == 0).all() and (np.asarray(grad)[~ignored] != 0).any(axis=-1).all()
    nothing = jnp.full(truth.shape, IGNORE, jnp.uint8)
    value, grad = jax.value_and_grad(losses.loss)(jnp.asarray(logits), nothing, kind, 2.0)
    assert value == 0 and not np.any(grad)


def test_a_focal_loss_that_focuses_on_nothing_is_the_cross_entropy():
    logits, truth = map(jnp.asarray, scored())
    one, other = (losses.loss(logits, truth, kind, 0.0) for kind in ('focal', 'cross_entropy'))
    assert one == other
    sure = 1e4 * jax.nn.one_hot(jnp.where(truth == IGNORE, 0, truth), 4)
    assert np.isfinite(jax.grad(losses.loss)(sure, truth, 'focal', 0.5)).all()


def test_a_confusion_matrix_counts_labelled_pixels():
    logits, truth = scored()
    counts = np.asarray(confusion(jnp.asarray(logits), jnp.asarray(truth)))
    guess = logits.argmax(axis=-1)
    for record in range(2):
        for t in range(4):
            for p in range(4):
                assert counts[record, t, p] == ((truth[record] == t) & (guess[record] == p)).sum()
    logits[1, 0, 0, 0] = np.nan
    counts = np.asarray(confusion(jnp.asarray(logits), jnp.asarray(truth)))
    assert np.isnan(counts[1]).all() and np.isfinite(counts[0]).all()


@pytest.mark.parametrize('kind', heads.KINDS)
def test_heads_commute_with_flips_and_reach_the_pixels(kind):
    shape = HeadShape(kind, 12, 5, 4, 8)
    params = jax.jit(lambda key: heads.init(key, shape))(jax.random.key(0))
    apply = jax.jit(lambda params, x: heads.apply(params, x, shape))
    x = jax.random.normal(jax.random.key(1), (2, 3, 6, 12))
    scores = apply(params, x)
    assert scores.shape == ((2, 3, 6, 5) if kind == 'linear' else (2, 12, 24, 5))
    # Kernels that are their own mirror images.
    params = jax.tree.map(lambda x: x + x[:, ::-1] if x.ndim == 4 else x, params)
    if kind != 'shuffle':
        scores, mirrored = (apply(params, y) for y in (x, x[:, :, ::-1]))
        np.testing.assert_allclose(scores[:, :, ::-1], mirrored, atol=2e-5)
    else:
        one = linear(params, x[1, 2, 4][None]).reshape(4, 4, 5)
        np.testing.assert_allclose(scores[1, 8:12, 16:20], one, rtol=1e-4)


@pytest.fixture(scope='module')
def model():
    config = tiny_config(model=tiny_model(depth=3)).model
    patches = random_patches(config, 2)
    gone = patches['s2'].valid.at[0, :3].set(False)
    patches['s2'] = Patches(patches['s2'].values, gone)
    return config, graph(config), weights(config), patches


def test_tokens_stand_at_their_places_block_by_block(model):
    config, graphdef, params, patches = model

    @jax.jit
    def run(params):
        whole = nnx.merge(graphdef, params)
        return (
            token_map(whole, patches, (3,)),
            token_map(whole, patches, (1, 3)),
            whole.encode(patches, capture=True),
            whole.encoder.norm(whole.encode(patches, capture=True).stages['block1']),
        )

    last, both, encoded, first = run(params)
    width, count = config.width, config.num_patches
    flat = np.asarray(last.values).reshape(2, count, 2 * width)
    np.testing.assert_allclose(flat[..., :width], encoded.tokens['s1'], atol=1e-5)
    np.testing.assert_allclose(flat[1, :, width:], encoded.tokens['s2'][1], atol=1e-5)
    assert (flat[0, :3, width:] == 0).all() and last.seen.all()
    deep = np.asarray(both.values).reshape(2, count, 4 * width)
    np.testing.assert_allclose(deep[..., 2 * width :], flat, atol=1e-5)
    np.testing.assert_allclose(deep[..., :width], first[:, :count], atol=1e-5)
    np.testing.assert_allclose(deep[1, :, width : 2 * width], first[1, count : 2 * count], atol=1e-5)
    config = tiny_config(model=config)
    assert chosen((3, 1), config, 'it') == (1, 3) and chosen((), config, 'it') == (3,)
    with pytest.raises(InputError, match='layers: 4, but it has the blocks 1 to 3'):
        chosen((4,), config, 'it')


@pytest.mark.parametrize(
    ('kind', 'changes', 'message'),
    [
        (DenseProbe, {'data': Task('x')}, "data.kind='multi_label': dense tasks need 'segmentation'"),
        (DenseProbe, {'layers': (2, 2)}, 'names a block twice'),
        (DenseProbe, {'learning_rates': ()}, 'learning_rates is empty'),
        (DenseProbe, {'focal_gamma': -1.0}, 'focal_gamma=-1.0 must be at least 0'),
        (DenseProbe, {'metric': 'ap_micro'}, "metric='ap_micro'"),
        (DenseFinetune, {'warmup_epochs': 20.0}, 'warmup_epochs=20.0 leaves nothing'),
    ],
)
def test_settings_that_cannot_be(kind, changes, message):
    given = {'data': Task('x', labels='map', kind='segmentation'), 'encoder': EncoderSettings('run', ())}
    with pytest.raises(InputError, match=message):
        check(kind(**given | changes))
