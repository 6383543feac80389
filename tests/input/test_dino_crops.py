"""DINO-MM's crops: geometry, radiometry, dropped sensors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.config import dino as dc
from fusmae_jax.input import crops
from fusmae_jax.input.normalise import statistics
from tests.support.dino_helpers import CONTRACT, keys, records, tiny, whole_views

MAKE = jax.jit(crops.make_views(tiny(), CONTRACT))


@functools.cache
def views_of(count=8):
    return MAKE(records(count), keys(count))


def test_crops_have_static_shapes_and_lie_on_the_unit_scale():
    whole, local = views_of()
    assert whole.shape == (8, 2, 16, 16, 14) and local.shape == (8, 2, 8, 8, 14)
    for view in (whole, local):
        assert float(view.min()) >= 0 and float(view.max()) <= 1 + 1e-6
    assert not np.allclose(whole[:, 0], whole[:, 1])


def test_a_record_has_the_same_crops_in_whatever_batch_it_comes():
    order = np.array([5, 2, 1, 0, 7, 3, 6, 4])
    moved = {name: x[order] for name, x in records(8).items()}
    moved['s1'][2:] = -15  # and whatever the others are
    for some, all_of_them in zip(MAKE(moved, keys(8)[order]), views_of()):
        np.testing.assert_allclose(some[:2], all_of_them[order[:2]], atol=1e-6)


def test_sensors_are_dropped_as_often_as_they_should_be():
    count = 20_000
    image = jnp.ones((1, 1, 14))
    drop = jax.jit(jax.vmap(lambda key: crops.drop_sensor(image, key, (12, 2), 0.5)))
    s2, s1 = (np.asarray(x) for x in np.split(drop(keys(count))[:, 0, 0], [12], axis=1))
    assert (s2.min(1) == s2.max(1)).all() and (s1.min(1) == s1.max(1)).all()  # a sensor goes as a whole
    both, no_s1, no_s2 = (s2[:, 0] * s1[:, 0]).sum(), (1 - s1[:, 0]).sum(), (1 - s2[:, 0]).sum()
    assert both + no_s1 + no_s2 == count  # never both
    expected = count * np.array([0.5, 0.25, 0.25])
    assert (((np.array([both, no_s1, no_s2]) - expected) ** 2) / expected).sum() < 13.8  # chi2, p = 0.001


def test_crops_drop_sensors_independently_of_each_other():
    whole, local = jax.jit(crops.make_views(tiny(), CONTRACT))(records(64), keys(64, 3))
    gone = np.concatenate(
        [(v[..., 12:].max((2, 3, 4)) == 0) for v in map(np.asarray, (whole, local))], axis=1
    )
    assert 0.15 < gone.mean() < 0.35
    assert (gone.any(1) & ~gone.all(1)).mean() > 0.5


def test_a_missing_sensor_is_zero_like_a_dropped_one():
    batch = records(8)
    batch['s1'][:] = np.nan
    whole, _ = MAKE(batch, keys(8))
    assert not np.any(whole[..., 12:]) and np.any(whole[..., :12])


def test_quantiles_are_those_of_the_valid_pixels():
    batch = records(2)
    batch['s1'][0, 0, 0] = 1000.0
    batch['s1'][0, 1, 1] = np.nan
    result = crops.clip_quantiles(jax.tree.map(jnp.asarray, batch), CONTRACT, 's1', (0.01, 0.99))
    clipped = np.asarray(result['s1'])
    for i in range(2):
        for band in range(2):
            image = batch['s1'][i, ..., band]
            low, high = np.nanquantile(image, [0.01, 0.99])
            np.testing.assert_allclose(clipped[i, ..., band], np.clip(image, low, high), rtol=1e-6)
    np.testing.assert_array_equal(result['s2_10m'], batch['s2_10m'])


def test_whole_images_are_mean_and_two_sigma_on_the_unit_scale():
    """A constant image at mean + std of every band is 0.75 in every pixel."""
    config = tiny()
    bands = {name: m for m in config.model.modalities.values() for name in m.bands}
    batch = records(2)
    for name, group in CONTRACT.groups.items():
        mean, std = (np.array(x) for x in _statistics(bands, group.bands))
        batch[name] = np.broadcast_to(np.round(mean + std), batch[name].shape).astype(batch[name].dtype)
    image = np.asarray(jax.jit(whole_views(config, CONTRACT, 16))(batch))
    assert image.shape == (2, 16, 16, 14)
    np.testing.assert_allclose(image, 0.75, atol=0.05)


def _statistics(modalities, bands):
    pairs = [[x[modalities[b].bands.index(b)] for x in statistics(modalities[b])] for b in bands]
    return zip(*pairs)


def test_blur_is_that_of_scipy_with_a_mirrored_border():
    scipy = pytest.importorskip('scipy.ndimage')
    image = np.random.default_rng(0).uniform(0, 255, (20, 17, 3)).astype(np.float32)
    for sigma in (0.5, 1.3, 2.0):
        radius = (round(6 * sigma + 1) | 1) // 2
        want = scipy.gaussian_filter(image, (sigma, sigma, 0), mode='mirror', radius=(radius, radius, 0))
        got = crops.gaussian_blur(jnp.asarray(image), jnp.float32(sigma))
        np.testing.assert_allclose(got, want, atol=2e-3)


def test_brightness_contrast_gray_and_solarisation():
    image = np.random.default_rng(0).uniform(0, 255, (6, 5, 3)).astype(np.float32)
    x = jnp.asarray(image)
    np.testing.assert_allclose(crops.brightness(x, jnp.float32(1.4)), np.clip(image * 1.4, 0, 255), rtol=1e-6)
    mean = image.mean((0, 1))
    want = np.clip((image - mean) * 0.6 + mean, 0, 255)
    np.testing.assert_allclose(crops.adjust_contrast(x, jnp.float32(0.6)), want, rtol=1e-5)
    np.testing.assert_allclose(crops.solarize(x, 128.0), np.where(image < 128, 255 - image, image), rtol=1e-6)
    always = dc.Distortion(jitter=0.0, gray=1.0)
    gray = crops.distort(x, jax.random.key(0), jnp.float32(0), jnp.float32(0), always)
    np.testing.assert_allclose(gray, np.repeat(image.mean(2, keepdims=True), 3, 2), rtol=1e-5)
    never = dc.Distortion(jitter=0.0, gray=0.0)
    np.testing.assert_array_equal(
        crops.distort(x, jax.random.key(0), jnp.float32(0), jnp.float32(0), never), image
    )
