"""Imported encoders against NumPy in float64, their input presets likewise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.errors import InputError
from fusmae_jax.eval.pooling import check_pooled, pool
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.normalise import statistics
from fusmae_jax.input.prepare import unpatchify
from fusmae_jax.input.presets import make_inputs, preset_of
from fusmae_jax.interop.weights import published as importing
from fusmae_jax.interop.weights.foreign import DINO_MM_CHANNELS
from fusmae_jax.interop.weights.published_kinds import WeightFile
from fusmae_jax.models import fusmae
from fusmae_jax.models.positions import cubic_matrix
from tests.support import published_states as theirs
from tests.support.published_states import DINO, S2, SAT, SATVIT, SIZES, WIDTH

CLOSE = {'rtol': 2e-4, 'atol': 2e-4}


def contract(side):
    """Every band on one grid, so that nothing need be resampled."""
    groups = {
        's1': Group('s1', ('VV', 'VH'), (side, side), 'float32', 'dB'),
        's2': Group('s2', S2, (side, side), 'float32', 'DN'),
    }
    return Contract(dataset='test', groups=groups)


def records(side, count=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        's1': rng.normal([-12, -19], 3, (count, side, side, 2)).astype(np.float32),
        's2': rng.gamma(2, 700, (count, side, side, 12)).astype(np.float32),
    }


def given(settings, *names):
    """The settings with some modalities alone, as `systems.fit` gives them."""
    kept = {name: m for name, m in settings.model.modalities.items() if name in names}
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, modalities=kept))


def seen(settings, side, batch, *names):
    """What goes into the patches of some modalities: name -> (b, h, w, bands)."""
    config = given(settings, *(names or ('s1', 's2')))
    patches = make_inputs(config, contract(side))(jax.tree.map(jnp.asarray, batch), None)
    model = config.model
    return {
        name: unpatchify(np.asarray(p.values), model.grid, model.patch_size) for name, p in patches.items()
    }


def features(settings, params, side, batch, names, *modalities):
    config = given(settings, *(modalities or ('s1', 's2')))
    inputs, graph = make_inputs(config, contract(side)), fusmae.graph(settings.model)

    @jax.jit
    def run(params, batch):
        return pool(nnx.merge(graph, params), inputs(batch, None), names)

    pooled, there = run(jax.tree.map(jnp.asarray, params), batch)
    return {name: np.asarray(x) for name, x in pooled.items()}, np.asarray(there)


def zscores(batch, modalities):
    result = {}
    for name, modality in modalities.items():
        mean, std = (x.astype(np.float64) for x in statistics(modality))
        order = [(('VV', 'VH') if name == 's1' else S2).index(band) for band in modality.bands]
        result[name] = (batch[name][..., order].astype(np.float64) - mean) / std
    return result


# ------------------------------------------------------------ DINO-MM


@functools.cache
def dino():
    state = theirs.timm(14, 3, 14)
    return state, importing.build(DINO, state, 'own')


def dino_images(batch, settings):
    """The published preset in float64: (b, 21, 21, 14), 12 bands of Sentinel-2, VH, VV, on [0, 1]."""
    z = zscores(batch, settings.model.modalities)
    s1 = z['s1']
    low, high = (np.quantile(s1, q, axis=(1, 2), keepdims=True) for q in (0.01, 0.99))
    z['s1'] = np.clip(s1, low, high)
    bands = dict(
        zip(
            (*S2, *settings.model.modalities['s1'].bands),
            np.moveaxis(np.concatenate([z['s2'], z['s1']], axis=-1), -1, 0),
        )
    )
    stacked = np.stack([bands[name] for name in DINO_MM_CHANNELS], axis=-1)
    levels = np.clip((stacked + 2) / 4 * 255, 0, 255).astype(np.uint8)
    return levels[:, 1:22, 1:22] / 255


def test_the_preset_of_dino_mm_is_that_of_its_code():
    _, (settings, _, _) = dino()
    assert (preset_of(settings).resize, settings.model.image_size) == (24, (21, 21))
    batch = records(24)
    images, expected = seen(settings, 24, batch), dino_images(batch, settings)
    names = (*settings.model.modalities['s2'].bands, *settings.model.modalities['s1'].bands)
    ours = dict(zip(names, np.moveaxis(np.concatenate([images['s2'], images['s1']], axis=-1), -1, 0)))
    for index, name in enumerate(DINO_MM_CHANNELS):
        # Where float32 falls on the other side of a step, it is one of 255.
        off = np.abs(ours[name] - expected[..., index]) * 255
        assert off.max() < 1.001 and (off > 0.01).mean() < 1e-3, name
    # The radar is clipped: its largest value is shared by one pixel of a hundred.
    vv = settings.model.modalities['s1'].bands.index('VV')
    assert (images['s1'][0, ..., vv] == images['s1'][0, ..., vv].max()).sum() > 1


@functools.cache
def opencv_matrix(old, new):
    """The weights of `cv2.resize` with INTER_CUBIC along one axis: a = -0.75, the border repeated."""
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t = abs(centre - tap)
            weight = 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[row, np.clip(tap, 0, old - 1)] += weight
    return matrix


def opencv_cubic(x, size):
    """Images (b, n, n) on another grid, in float64."""
    matrix = opencv_matrix(x.shape[1], size)
    return matrix @ x @ matrix.T


def test_the_preset_of_dino_mm_rounds_to_bytes_where_its_code_does():
    """Sentinel-2 on its native grids, before it is resized; Sentinel-1, whose tails are cut, after."""
    _, (settings, _, _) = dino()
    grids = {
        20: ('B02', 'B03', 'B04', 'B08'),
        10: ('B05', 'B06', 'B07', 'B8A', 'B11', 'B12'),
        5: ('B01', 'B09'),
    }
    groups = {f's2_{n}': Group('s2', bands, (n, n), 'uint16', 'DN') for n, bands in grids.items()}
    groups['s1'] = Group('s1', ('VV', 'VH'), (20, 20), 'float32', 'dB')
    rng = np.random.default_rng(0)
    batch = {name: rng.gamma(2, 700, (8, *g.size, len(g.bands))).astype('u2') for name, g in groups.items()}
    batch['s1'] = rng.normal([-12, -19], 5, (8, 20, 20, 2)).astype('f')
    patches = jax.jit(make_inputs(settings, Contract(dataset='test', groups=groups)))(batch, None)
    differ = []
    for name, modality in settings.model.modalities.items():
        image = unpatchify(np.asarray(patches[name].values), settings.model.grid, settings.model.patch_size)
        for index, band in enumerate(modality.bands):
            field, g = next((f, g) for f, g in groups.items() if band in g.bands)
            mean, std = (float(x[index]) for x in statistics(modality))
            x = batch[field][..., g.bands.index(band)].astype(np.float64)
            if name == 's1':
                x = opencv_cubic(x, 24)
                low, high = np.quantile(x, [0.01, 0.99], axis=(1, 2), keepdims=True)
                x = np.clip(x, low, high)
            x = np.floor(np.clip((x - mean + 2 * std) / (4 * std) * 255, 0, 255))
            if name == 's2':
                x = np.clip(np.round(opencv_cubic(x, 24)), 0, 255)
            off = np.abs(image[..., index] * 255 - x[:, 1:22, 1:22])
            assert off.max() < 1.001, band  # where float32 falls on the other side of a step
            differ.append((off > 0.01).mean())
    assert np.mean(differ) < 1e-3


def test_full_size_is_128_and_112_pixels():
    _, settings = importing.describe(WeightFile('dino_mm', 'x'), 'own')
    assert (settings.preset.resize, settings.model.image_size, settings.model.patch_size) == (
        128,
        (112, 112),
        8,
    )
    assert (settings.model.width, settings.model.depth, settings.model.heads) == (384, 12, 6)
    modality = settings.model.modalities['s1']
    assert dict(zip(modality.bands, modality.mean)) == {'VV': -12.59, 'VH': -19.22}
    for kind, side, common in (('imagenet_mae', 224, 224), ('satvit', 256, 224), ('dino_mm', 112, 224)):
        config = WeightFile(kind, 'x', channels=SATVIT if kind == 'satvit' else ())
        sides = [importing.describe(config, preset)[1].model.image_size for preset in ('own', 'common')]
        assert sides == [(side, side), (common, common)]


def test_the_encoder_of_dino_mm_is_that_of_numpy():
    """The last four CLS, on positions that are interpolated as DINO's code does it."""
    state, (settings, params, _) = dino()
    batch = records(24)
    pooled, there = features(settings, params, 24, batch, ('last4_cls', 'cls'))
    matrix = cubic_matrix(14, 7, 0.1)
    table = state['pos_embed'][0, 1:].reshape(14, 14, WIDTH)
    table = np.einsum('ir,jc,rcd->ijd', matrix, matrix, table).reshape(49, WIDTH)
    table = np.concatenate([state['pos_embed'][0, :1], table])
    given = seen(settings, 24, batch)
    bands = (*S2, *settings.model.modalities['s1'].bands)
    joined = np.concatenate([given['s2'], given['s1']], axis=-1)
    images = joined[..., [bands.index(name) for name in DINO_MM_CHANNELS]]
    after = theirs.timm_tokens(images, state, table)
    np.testing.assert_allclose(pooled['last4_cls'], np.hstack([z[:, 0] for z in after[-4:]]), **CLOSE)
    np.testing.assert_allclose(pooled['cls'], after[-1][:, 0], **CLOSE)
    assert there.all()


def test_a_sensor_that_is_not_there_is_zero_on_the_scale_of_bytes():
    state, (settings, params, _) = dino()
    batch = records(24)
    alone, _ = features(settings, params, 24, batch, ('cls',), 's2')
    gone = batch | {'s1': np.full_like(batch['s1'], np.nan)}
    with_nothing, there = features(settings, params, 24, gone, ('cls',))
    np.testing.assert_allclose(alone['cls'], with_nothing['cls'], atol=1e-5)
    assert there.all()
    image = seen(settings, 24, batch, 's2')['s2']
    images = np.concatenate([image, np.zeros((*image.shape[:3], 2))], axis=-1)
    matrix = cubic_matrix(14, 7, 0.1)
    table = np.einsum('ir,jc,rcd->ijd', matrix, matrix, state['pos_embed'][0, 1:].reshape(14, 14, WIDTH))
    table = np.concatenate([state['pos_embed'][0, :1], table.reshape(49, WIDTH)])
    expected = theirs.timm_tokens(images, state, table)[-1][:, 0]
    np.testing.assert_allclose(alone['cls'], expected, **CLOSE)


def test_kernels_follow_the_names_of_the_channels():
    """Another order of the list and of the kernel is the same encoder; of the list alone it is not."""
    state, (_, params, _) = dino()
    order = np.random.default_rng(0).permutation(14)
    channels = tuple(DINO_MM_CHANNELS[i] for i in order)
    moved = {**state, 'patch_embed.proj.weight': state['patch_embed.proj.weight'][:, order]}
    config = dataclasses.replace(DINO, channels=channels)
    _, again, _ = importing.build(config, moved, 'own')
    jax.tree.map(np.testing.assert_array_equal, params, again)
    _, other, _ = importing.build(config, state, 'own')
    kernels = [p['encoder']['patch']['stack']['kernel'] for p in (params, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


# ------------------------------------------------------------ SatViT


def test_satvit_is_that_of_numpy_and_has_no_cls():
    state, batch = theirs.satvit(4, 8), records(32)
    settings, params, notes = importing.build(SAT, state, 'own')
    pooled, _ = features(settings, params, 32, batch, ('mean_patch', 'concat_per_sensor'))
    z = zscores(batch, settings.model.modalities)
    bands = dict(zip((*S2, 'VV', 'VH'), np.moveaxis(np.concatenate([z['s2'], z['s1']], axis=-1), -1, 0)))
    bands['unused'] = np.zeros_like(bands['VV'])
    images = np.stack([bands[name] for name in SATVIT], axis=-1)
    expected = theirs.satvit_tokens(images, state, 4).mean(axis=1)
    # Their features are ours turned by half the width: MAE's positions have the column first.
    np.testing.assert_allclose(np.roll(pooled['mean_patch'], -WIDTH // 2, axis=1), expected, **CLOSE)
    np.testing.assert_array_equal(pooled['mean_patch'], pooled['concat_per_sensor'])
    assert settings.model.numerics.norm_eps == 1e-5 and not settings.model.numerics.qkv_bias
    assert any('unused' in line for line in notes)
    for name in ('cls', 'mean_all', 'last4_cls'):
        with pytest.raises(InputError, match='needs a CLS token, it has none'):
            check_pooled((name,), settings.model, 'it')


def test_satvit_takes_one_image_for_both_orbits():
    """As its code does on images of which VV and VH stand twice, each time with their own statistics."""
    channels = (*S2[:11], 'VV', 'VH', 'VV', 'VH')
    config, state, batch = dataclasses.replace(SAT, channels=channels), theirs.satvit(4, 8), records(32)
    settings, params, notes = importing.build(config, state, 'own')
    pooled, _ = features(settings, params, 32, batch, ('mean_patch',))
    z = zscores(batch, settings.model.modalities)
    ascending = [(-10.97, 3.6673), (-17.9148, 4.5137)]
    descending = [(-10.9671, 3.6928), (-18.0231, 4.4928)]
    orbits = [(batch['s1'] - np.array(x)[:, 0]) / np.array(x)[:, 1] for x in (ascending, descending)]
    np.testing.assert_allclose(z['s1'], orbits[0], rtol=1e-5, atol=1e-5)
    images = np.concatenate([z['s2'], *orbits], axis=-1)
    expected = theirs.satvit_tokens(images, state, 4).mean(axis=1)
    np.testing.assert_allclose(np.roll(pooled['mean_patch'], -WIDTH // 2, axis=1), expected, **CLOSE)
    assert any('VV feeds 2 channels' in line for line in notes)
    # With our z-scores there is one scale: the kernels are added as they are.
    _, common, _ = importing.build(config, state, 'common')
    once = tuple(f'unused{i}' if i > 12 else channel for i, channel in enumerate(channels))
    _, first, _ = importing.build(dataclasses.replace(config, channels=once), state, 'common')
    again = (*S2[:11], 'unused', 'unused', 'VV', 'VH')
    _, second, _ = importing.build(dataclasses.replace(config, channels=again), state, 'common')
    kernels = [p['encoder']['patch']['stack']['kernel'] for p in (common, first, second)]
    s1 = slice(11 * 16, None)  # behind the bands of Sentinel-2
    np.testing.assert_allclose(kernels[0][s1], kernels[1][s1] + kernels[2][s1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kernels[0][: 11 * 16], kernels[1][: 11 * 16])


def test_satvit_is_fed_the_bands_that_are_listed():
    channels = ('B04', 'VV', 'B03', 'B02')
    state = theirs.satvit(4, 8)
    state['linear_input.weight'] = state['linear_input.weight'][:, : 4 * 16]
    settings, _, _ = importing.build(dataclasses.replace(SAT, channels=channels), state, 'common')
    assert {n: m.bands for n, m in settings.model.modalities.items()} == {
        's2': ('B02', 'B03', 'B04'),
        's1': ('VV',),
    }
    assert not settings.model.modalities['s2'].mean and settings.model.image_size == (28, 28)


# ------------------------------------------------------------ ImageNet


@pytest.mark.parametrize('kind', ['imagenet_vit', 'imagenet_mae'])
@pytest.mark.parametrize('modalities', [('s1',), ('s1', 's2')])
def test_an_inflated_projection_is_one_of_the_mean_over_rgb(kind, modalities):
    """As the ViT itself on a gray image, the mean of the bands that are given."""
    config = WeightFile(kind, 'x', **SIZES, patch_size=4, image_size=32)
    state = theirs.timm(3, 4, 8, sincos=kind == 'imagenet_mae')
    settings, params, _ = importing.build(config, state, 'own')
    batch = records(32)
    pooled, _ = features(settings, params, 32, batch, ('cls',), *modalities)
    z = zscores(batch, settings.model.modalities)
    joined = np.concatenate([z[name] for name in modalities], axis=-1)
    pixels = np.floor(np.clip((joined + 2) / 4, 0, 1) * 255) / 255
    # What each channel of the file sees: the mean over the bands, with the statistics of red, green or blue.
    gray = np.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1)
    if kind == 'imagenet_mae':
        images = (gray - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    else:
        images = (gray - 0.5) / 0.5
    expected = theirs.timm_tokens(images, state, state['pos_embed'][0])[-1][:, 0]
    turned = np.roll(pooled['cls'], -WIDTH // 2, axis=1) if kind == 'imagenet_mae' else pooled['cls']
    np.testing.assert_allclose(turned, expected, **CLOSE)
    with pytest.raises(InputError, match='expected 3 channels: red, green, blue'):
        importing.build(config, theirs.timm(4, 4, 8, sincos=kind == 'imagenet_mae'), 'own')


def test_the_common_preset_is_our_zscores():
    config = WeightFile('imagenet_vit', 'x', **SIZES, patch_size=4, image_size=32)
    settings, params, _ = importing.build(config, theirs.timm(3, 4, 8), 'common')
    batch = records(32)
    images, z = seen(settings, 32, batch), zscores(batch, settings.model.modalities)
    for name in ('s1', 's2'):
        np.testing.assert_allclose(images[name], np.clip(z[name], -5, 5), rtol=1e-4, atol=1e-5)
        alone = seen(settings, 32, batch, name)[name]
        np.testing.assert_allclose(alone, images[name] * 14 / z[name].shape[-1], rtol=1e-5)
    kernel = params['encoder']['patch']['stack']['kernel']
    assert len(np.unique(kernel[:, 0])) <= 16 + 1  # one number a pixel: the same for all bands
