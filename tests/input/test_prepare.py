"""Resampling and preparation: geometry to a hundredth of a pixel, and where a NaN may go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input.compatibility import check, compare
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.normalise import statistics
from fusmae_jax.input.prepare import Patches, make_prepare, patchify, unpatchify
from fusmae_jax.input.resample import (
    TOUCHES,
    Axis,
    Box,
    by_products,
    by_taps,
    full_box,
    kernel_weight,
    resample,
    sample_box,
    weights,
)
from fusmae_jax.models.layers import Arithmetic, linear
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('strict')


def box(top=0.0, left=0.0, height=1.0, width=1.0, hflip=False, vflip=False):
    return Box(*(jnp.array([x]) for x in (top, left, height, width)), jnp.array([hflip]), jnp.array([vflip]))


def ramp(step, slope=(1.0, 2.0)):
    """A linear ramp over the 120 x 120 grid of 10 m pixels, sampled at the centres of coarser pixels."""
    centres = (np.arange(120 // step) + 0.5) * step - 0.5
    return (slope[0] * centres[:, None] + slope[1] * centres[None, :]).astype(np.float32)


BOXES = {
    'whole': box(),
    'crop': box(0.13, 0.21, 0.61, 0.47),
    'flips': box(hflip=True, vflip=True),
    'crop and flip': box(0.3, 0.05, 0.5, 0.9, hflip=True),
}


@pytest.mark.parametrize('name', list(BOXES))
@pytest.mark.parametrize('kernel', ['bilinear', 'bicubic'])
def test_a_ramp_lands_on_the_same_values_from_every_native_grid(name, kernel):
    b = BOXES[name]
    size = 224
    at = [
        (float(start[0]) + (np.arange(size) + 0.5) / size * float(length[0])) * 120 - 0.5
        for start, length in ((b.top, b.height), (b.left, b.width))
    ]
    rows = at[0][::-1] if bool(b.vflip[0]) else at[0]
    columns = at[1][::-1] if bool(b.hflip[0]) else at[1]
    expected = rows[:, None] + 2 * columns[None, :]
    for step in (1, 2, 6):
        image = jnp.asarray(ramp(step))[None, ..., None]
        values, valid = resample(image, jnp.ones_like(image, bool), b, (size, size), kernel)
        inside = [(x > 2 * step) & (x < 119 - 2 * step) for x in (rows, columns)]
        keep = np.outer(*inside)
        assert valid.all() and keep.any()
        # A hundredth of a 10 m pixel: the steeper axis rises by 2 a pixel.
        np.testing.assert_allclose(np.asarray(values)[0, ..., 0][keep], expected[keep], atol=0.01)


@pytest.mark.parametrize(('kernel', 'radius'), [('bilinear', 1), ('bicubic', 2)])
def test_one_nan_spreads_no_further_than_the_kernel(kernel, radius):
    image = np.random.default_rng(0).normal(size=(1, 60, 60, 1)).astype(np.float32)
    missing = np.zeros_like(image, bool)
    missing[0, 30, 20] = True
    image[missing] = 0
    clean, _ = resample(jnp.asarray(image), jnp.ones_like(image, bool), full_box(1), (224, 224), kernel)
    image[missing] = 1e3
    spoilt, valid = resample(jnp.asarray(image), jnp.asarray(~missing), full_box(1), (224, 224), kernel)
    centre = (np.arange(224) + 0.5) / 224 * 60 - 0.5
    near = np.outer(np.abs(centre - 30) < radius, np.abs(centre - 20) < radius)
    np.testing.assert_array_equal(~np.asarray(valid)[0, ..., 0], near)
    changed = np.asarray(spoilt != clean)[0, ..., 0]
    assert changed[near].any() and not changed[~near].any()


def whole(out_size):
    return Axis(out_size, 120, jnp.zeros(1), jnp.ones(1), jnp.zeros(1, bool), 'bicubic')


def test_weights_sum_to_one_interpolate_exactly_and_widen_only_when_shrinking():
    one = weights(whole(120))
    np.testing.assert_array_equal(one[0], np.eye(120))
    for out_size, support in ((224, 4), (60, 8)):
        w = np.asarray(weights(whole(out_size)))[0]
        np.testing.assert_allclose(w.sum(1), 1, atol=1e-6)
        assert (w[10:-10] != 0).sum(1).max() == support
    for kernel in ('bicubic', 'opencv_cubic'):
        assert [float(kernel_weight(jnp.float32(x), kernel)) for x in (0, 1, 2, 3)] == [1, 0, 0, 0]


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])  # masks in float32, and in bfloat16
@pytest.mark.parametrize('kernel', ['bilinear', 'bicubic', 'opencv_cubic'])
@pytest.mark.parametrize(
    ('stored', 'size'), [((20, 30), (48, 48)), ((40, 60), (24, 24)), ((16, 16), (16, 31))]
)
def test_taps_are_the_dense_weights(kernel, stored, size, platform, monkeypatch):
    """Gathering a few pixels, as on a GPU, against products with dense matrices: crops, flips, borders."""
    monkeypatch.setattr('fusmae_jax.input.resample.target_platform', lambda: platform)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(6, *stored, 2)), jnp.float32)
    valid = jnp.asarray(rng.random(image.shape) > 0.02)
    box = jax.jit(lambda keys: sample_box(keys, cfg.Augment(vflip=0.5)))(
        jax.random.split(jax.random.key(1), 6)
    )
    box = Box(*(jnp.concatenate([a[:5], b[:1]]) for a, b in zip(box, full_box(1))))

    def axes(box):
        rows = Axis(size[0], stored[0], box.top, box.height, box.vflip, kernel)
        return [rows, Axis(size[1], stored[1], box.left, box.width, box.hflip, kernel)]

    def resampled(how, box):
        return how(image, valid, axes(box))

    values, good = jax.jit(functools.partial(resampled, by_taps))(box)
    expected, expected_good = jax.jit(functools.partial(resampled, by_products))(box)
    # Coordinates near 60 are rounded at 4e-6, by each program in its own way.
    np.testing.assert_allclose(values, expected, atol=4e-5)
    clear = np.ones(good.shape, bool)
    for number, axis in enumerate(axes(box), start=1):
        # A weight this close to the least that touches is on either side of it, by the machine's rounding.
        close = np.any(np.abs(np.abs(weights(axis)) - TOUCHES) < 2e-5, axis=2)
        clear &= ~np.expand_dims(close, [a for a in (1, 2, 3) if a != number])
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.where(clear, good, False), np.where(clear, expected_good, False))
    assert 0 < good.mean() < 1


def test_random_boxes_stay_inside_and_cover_the_range():
    augment = cfg.Augment(vflip=0.5)
    b = sample_box(jax.random.split(jax.random.key(0), 4000), augment)
    assert float(jnp.max(b.top + b.height)) <= 1 + 1e-6 and float(jnp.max(b.left + b.width)) <= 1 + 1e-6
    assert float(jnp.min(b.top)) >= 0 and float(jnp.min(b.left)) >= 0
    area, ratio = b.height * b.width, b.width / b.height
    assert 0.19 < float(jnp.min(area)) < 0.22 and float(jnp.max(area)) > 0.95
    assert float(jnp.min(ratio)) > 0.74 and float(jnp.max(ratio)) < 1.34
    for flip in (b.hflip, b.vflip):
        assert 0.46 < float(jnp.mean(flip)) < 0.54
    still = sample_box(jax.random.split(jax.random.key(0), 10), dataclasses.replace(augment, crop=False))
    assert float(jnp.min(still.height)) == 1.0


def prepared(config, batch, augment=None, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(batch['position']))
    return jax.jit(make_prepare(config, CONTRACT, augment))(batch, keys)


def images(config, patches):
    model = config.model
    return {n: unpatchify(np.asarray(p.values), model.grid, model.patch_size) for n, p in patches.items()}


def test_sensors_share_the_crop_exactly():
    """The same scene written into VV and into B02, B08 comes out equal; the mean in dB is the sign."""
    config = tiny_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, clip=100.0))
    modalities = {
        's1': cfg.Modality(('VV', 'VH'), resample='bicubic', mean=(0.0, 0.0), std=(1.0, 1.0)),
        's2': cfg.Modality(('B08', 'B02'), mean=(0.0, 0.0), std=(1.0, 1.0)),
    }
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=modalities))
    batch = raw_batch(6)
    batch['s1'][..., 0] = batch['s2_10m'][..., 0]
    batch['s1'][..., 1] = batch['s2_10m'][..., 3]
    out = images(config, prepared(config, batch, cfg.Augment(vflip=0.5)))
    np.testing.assert_array_equal(out['s1'][..., 0], out['s2'][..., 1])
    np.testing.assert_array_equal(out['s1'][..., 1], out['s2'][..., 0])


def test_z_score_clip_and_band_order():
    config = tiny_config(data=cfg.Data(clip=1.5))
    native = dataclasses.replace(config.model, image_size=(120, 120))
    config = dataclasses.replace(config, model=native)
    batch = raw_batch(2)
    out = images(config, prepared(config, batch))
    bands = native.modalities['s2'].bands
    mean, std = statistics(native.modalities['s2'])
    for band, field, index in (('B02', 's2_10m', 0), ('B08', 's2_10m', 3)):
        k = bands.index(band)
        expected = np.clip((batch[field][..., index].astype(np.float32) - mean[k]) / std[k], -1.5, 1.5)
        np.testing.assert_allclose(out['s2'][..., k], expected, atol=1e-6)
    two_sigma = dataclasses.replace(config, data=cfg.Data(normalisation='mean_2sigma'))
    other = images(two_sigma, prepared(two_sigma, batch))['s2'][..., bands.index('B02')]
    z = (batch['s2_10m'][..., 0].astype(np.float32) - mean[1]) / std[1]
    np.testing.assert_allclose(other, np.clip(z, -2, 2) / 2, atol=1e-6)


def test_missing_pixels_are_filled_with_the_mean_and_marked():
    config = tiny_config()
    batch = raw_batch(2)
    batch['s1'][0, :, :60] = np.nan
    batch['s1'][1, 5, 5, 1] = np.inf
    batch['s2_20m'][1] = 0  # DN 0 is nodata
    out = prepared(config, batch)
    assert all(np.isfinite(p.values).all() for p in out.values())
    s1 = unpatchify(np.asarray(out['s1'].valid), config.model.grid, 8)
    assert not s1[0, :, :15].any() and s1[0, :, 18:].all()
    assert s1[1, ..., 0].all() and not s1[1, ..., 1].all()
    s2 = unpatchify(np.asarray(out['s2'].valid), config.model.grid, 8)
    lost = [config.model.modalities['s2'].bands.index(b) for b in ('B05', 'B12')]
    assert s2[0].all() and not s2[1][..., lost].any()


def test_data_that_do_not_fit_the_model_are_refused():
    groups = {k: v for k, v in CONTRACT.groups.items() if k != 's2_60m'}
    groups['s1'] = dataclasses.replace(groups['s1'], unit='furlong')
    with pytest.raises(InputError) as error:
        check(compare(tiny_config(), Contract(groups=groups)), (), 'folder')
    for part in ("'B01'", "'B09'", "'furlong'", 'folder'):
        assert part in str(error.value)


pytestmark = pytest.mark.usefixtures('strict')


@pytest.mark.parametrize('bands', [2, 12])
def test_patch_projection_equals_a_strided_convolution(bands):
    size, width = 8, 24
    image = jax.random.normal(jax.random.key(0), (3, 32, 40, bands))
    layer = linear(size * size * bands, width, Arithmetic(cfg.Numerics(), jnp.float32), rngs=nnx.Rngs(0))
    layer.bias[...] = jax.random.normal(jax.random.key(1), (width,))
    ours = layer(patchify(image, size))
    kernel = layer.kernel[...].reshape(size, size, bands, width)
    convolved = jax.lax.conv_general_dilated(
        image, kernel, (size, size), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision='highest'
    )
    expected = convolved.reshape(3, 20, width) + layer.bias[...][None, None]
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_patchify_is_row_major_channel_last_and_invertible():
    image = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[0, 1].reshape(2, 2, 3), image[0, :2, 2:4])
    np.testing.assert_array_equal(patches[0, 3].reshape(2, 2, 3), image[0, 2:, :2])
    np.testing.assert_array_equal(unpatchify(np.asarray(patches), (2, 3), 2), image)


def test_patches_with_a_valid_number_are_the_same_on_a_tpu(monkeypatch):
    """There they are counted by a matrix product in bfloat16."""
    valid = np.zeros((2, 6, 3072), bool)
    valid[0, 1, 3071] = valid[1, 2, :] = valid[1, 5, ::7] = True
    patches = Patches(jnp.zeros(valid.shape), jnp.asarray(valid))
    monkeypatch.setattr('fusmae_jax.input.prepare.target_platform', lambda: 'tpu')
    np.testing.assert_array_equal(patches.any_valid, valid.any(2))
