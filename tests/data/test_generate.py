"""Generated scenes: what is promised about them, measured."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fusmae_jax import sensors
from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data.bigearthnet_mm.labels import CLASSES_19, CLASSES_43, multi_hot
from fusmae_jax.shipped.data.generate import radar
from fusmae_jax.shipped.data.generate.classes import CLASSES, NEED_BOTH, ONLY_S1, ONLY_S2, S2_BANDS
from fusmae_jax.shipped.data.generate.fields import parcels, smooth
from fusmae_jax.shipped.data.generate.scene import (
    RESOLUTION,
    SEASONS,
    SceneConfig,
    digest,
    labels,
    resampled,
    scene,
)

L2A = tuple(band for band in S2_BANDS if band != 'B10')


def assert_same(left, right):
    for field, value in left._asdict().items():
        other = getattr(right, field)
        if isinstance(value, dict):
            assert value.keys() == other.keys()
            for band in value:
                np.testing.assert_array_equal(value[band], other[band])
        else:
            np.testing.assert_array_equal(value, other)


def scenes(config, count, start=0):
    return [scene(config, index) for index in range(start, start + count)]


# Classes


def test_one_class_for_each_of_the_19():
    for index, cover in enumerate(CLASSES):
        assert cover.corine in CLASSES_43
        assert np.flatnonzero(multi_hot([cover.corine])[1]).tolist() == [index], CLASSES_19[index]
        assert 1 <= cover.igbp <= 17
        assert len(cover.spectrum) == len(S2_BANDS)


def test_the_special_sets_share_looks_as_they_say():
    optical, radars = [c.optical for c in CLASSES], [c.radar for c in CLASSES]
    (p, q), (r, s), (a, b, c, d) = ONLY_S1, ONLY_S2, NEED_BOTH
    assert optical[p] == optical[q] and radars[p] != radars[q]
    assert radars[r] == radars[s] and optical[r] != optical[s]
    assert radars[a] == radars[b] != radars[c] == radars[d]
    assert optical[a] == optical[c] != optical[b] == optical[d]


# Scenes


def test_a_scene_is_a_function_of_configuration_and_index():
    config = SceneConfig(seed=3, size=48, cloud_share=0.5, snow_share=0.5)
    first = scene(config, 5)
    scene(config, 6)
    assert_same(first, scene(SceneConfig(seed=3, size=48, cloud_share=0.5, snow_share=0.5), 5))
    for other in (scene(config, 6), scene(dataclasses.replace(config, seed=4), 5)):
        assert (other.cover != first.cover).any()
        assert not np.isclose(other.s1['VV'], first.s1['VV']).all()
        assert (other.s2['B04'] != first.s2['B04']).mean() > 0.9


def test_the_digest_changes_with_every_setting():
    others = {'level': 'L1C', 'size': 60, 'patch': 20.0, 'cloud_share': 0.5, 'snow_share': 0.5, 'looks': 2.0}
    changed = [
        SceneConfig(**{field.name: others.get(field.name, 7)}) for field in dataclasses.fields(SceneConfig)
    ]
    digests = {digest(config) for config in [SceneConfig(), *changed]}
    assert len(digests) == len(changed) + 1
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in digests)


def test_every_impossible_setting_is_named_at_once():
    with pytest.raises(InputError) as error:
        SceneConfig(seed=-1, size=13, cloud_share=1.5, level='L3', offset=-1, looks=float('nan'))
    for name in ('seed=-1', 'size=13', 'cloud_share=1.5', "level='L3'", 'offset=-1', 'looks=nan'):
        assert name in str(error.value)
    with pytest.raises(InputError, match='index=-1'):
        scene(SceneConfig(size=12), -1)


@pytest.mark.parametrize(('size', 'level'), [(120, 'L2A'), (64, 'L1C')])
def test_bands_grids_and_types(size, level):
    generated = scene(SceneConfig(size=size, level=level), 0)
    assert set(generated.s2) == set(S2_BANDS if level == 'L1C' else L2A)
    for band, image in generated.s2.items():
        step = RESOLUTION[band] // 10
        assert image.shape == (-(-size // step),) * 2
        assert image.dtype == np.uint16 and image.min() >= 1
        if band in L2A:
            assert sensors.SENSORS['s2'].bands[band].resolution == 10 * step
    for image in generated.s1.values():
        assert image.shape == (size, size) and image.dtype == np.float32 and np.isfinite(image).all()
    assert generated.cover.shape == (size, size) and generated.cover.max() < len(CLASSES)


def test_labels_follow_from_the_cover():
    for generated in scenes(SceneConfig(size=48), 20):
        shares = [(generated.cover == i).mean() for i in range(len(CLASSES))]
        np.testing.assert_allclose(generated.fractions, shares)
        assert labels(generated) == tuple(i for i, share in enumerate(shares) if share >= 0.05)
        assert len(labels(generated)) > 0


def test_resampled_repeats_native_pixels():
    generated = scene(SceneConfig(size=64, level='L1C'), 1)
    for band, image in resampled(generated).items():
        step = RESOLUTION[band] // 10
        repeated = generated.s2[band].repeat(step, 0).repeat(step, 1)[:64, :64]
        np.testing.assert_array_equal(image, repeated)
    assert {image.shape for image in resampled(generated, 20).values()} == {(32, 32)}


def test_the_offset_is_added_to_every_digital_number():
    plain, shifted = (scene(SceneConfig(size=48, offset=offset), 2) for offset in (0, 1000))
    for band in plain.s2:
        np.testing.assert_array_equal(plain.s2[band].astype(int) + 1000, shifted.s2[band])


def test_l1c_has_haze_and_almost_no_cirrus():
    ground, top = (scenes(SceneConfig(size=48, level=level), 30) for level in ('L2A', 'L1C'))
    cirrus = np.concatenate([s.s2['B10'].ravel() for s in top])
    assert cirrus.min() >= 4 and cirrus.max() <= 50
    lift = {
        band: np.mean([t.s2[band].mean() - g.s2[band].mean() for g, t in zip(ground, top)]) for band in L2A
    }
    assert lift['B01'] > lift['B02'] > lift['B03'] > lift['B04'] > lift['B8A']
    assert 400 < lift['B02'] < 1000
    for g, t in zip(ground, top):
        np.testing.assert_array_equal(g.cover, t.cover)


def test_another_visit_sees_the_same_ground_in_another_season():
    config = SceneConfig(size=48, snow_share=0)
    visits = [scene(config, 4, visit) for visit in range(4)]
    assert {v.season for v in visits} == set(SEASONS)
    for later in visits[1:]:
        np.testing.assert_array_equal(visits[0].cover, later.cover)
        assert (visits[0].s1['VV'] != later.s1['VV']).all()


def test_cloud_is_bright_soft_and_in_sentinel_2_only():
    clear, cloudy = (scenes(SceneConfig(size=60, cloud_share=share, snow_share=0), 12) for share in (0, 1))
    for before, after in zip(clear, cloudy):
        assert before.cloud == 0 < after.cloud < 1
        for band in ('VV', 'VH'):
            np.testing.assert_array_equal(before.s1[band], after.s1[band])
        change = after.s2['B02'].astype(int) - before.s2['B02']
        bright = (change > 1500).mean()
        assert abs(bright - after.cloud) < 0.3
        assert ((change > 200) & (change < 1500)).any(), 'no soft edge'
    assert any(
        (after.s2['B08'] < 0.8 * before.s2['B08']).mean() > 0.02 for before, after in zip(clear, cloudy)
    )


def test_snow_is_bright_in_the_visible_and_dark_in_the_short_wave_infrared():
    winter = scenes(SceneConfig(size=48, snow_share=1), 30)
    assert all(s.snow and s.season == 'Winter' for s in winter)
    green = np.mean([s.s2['B03'].mean() for s in winter])
    assert green > 2000 and green > 1.5 * np.mean([s.s2['B11'].mean() for s in winter])
    assert not any(s.snow for s in scenes(SceneConfig(size=48, snow_share=0), 30))


def test_speckle_is_multiplicative_gamma():
    cover = np.full((200, 200), 3, np.uint8)
    smoothed, speckled = (
        radar.backscatter(np.random.default_rng(0), cover, looks, False) for looks in (1e9, 5.0)
    )
    for band in ('VV', 'VH'):
        ratio = 10 ** ((speckled[band] - smoothed[band]) / 10.0)
        assert ratio.mean() == pytest.approx(1, abs=0.01)
        assert ratio.var() == pytest.approx(1 / 5, rel=0.05)


def test_fields_have_unit_variance_everywhere():
    rng = np.random.default_rng(1)
    field = smooth(rng, 2000, 24, {10.0: 1.0, 3.0: 0.5})
    np.testing.assert_allclose(field.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(field.std(0), 1, atol=0.08)
    farmed = np.stack([parcels(rng, 120) for _ in range(40)])
    assert farmed.std() == pytest.approx(1, abs=0.1)
    assert (farmed[..., 1:] == farmed[..., :-1]).mean() > 0.8, 'parcels are constant inside'


# What others rely on


@pytest.mark.parametrize('seed', [11, 12, 13])
def test_sets_of_64_look_like_the_archive(seed):
    made = scenes(SceneConfig(seed=seed, size=60), 64)
    for sensor, bands in (('s1', ('VV', 'VH')), ('s2', L2A)):
        for band in bands:
            expected = sensors.SENSORS[sensor].bands[band]
            mean = np.mean([getattr(s, sensor)[band].mean() for s in made])
            assert abs(mean - expected.mean) < expected.std, band
    land = [s for s in made if s.fractions[-2:].sum() < 0.1]
    ratio = np.mean([s.s1['VV'].mean() - s.s1['VH'].mean() for s in land])
    assert 4 < ratio < 10
    lowest = min(np.percentile(np.concatenate([s.s2[band].ravel() for s in made]), 1) for band in L2A)
    assert lowest < 900


def test_the_narrow_infrared_band_is_not_the_wide_one():
    for generated in scenes(SceneConfig(size=48), 8):
        wide = generated.s2['B08'].reshape(24, 2, 24, 2).mean((1, 3))
        assert np.corrcoef(wide.ravel(), generated.s2['B8A'].ravel())[0, 1] < 0.9999
        assert (np.abs(wide - generated.s2['B8A']) > 5).mean() > 0.5


def features(generated):
    images = [[generated.s1[b] for b in ('VV', 'VH')], [generated.s2[b] for b in L2A]]
    return [np.array([f(image) for image in sensor for f in (np.mean, np.std)]) for sensor in images]


def probe(train, test, train_labels, test_labels):
    scaler = StandardScaler().fit(train)
    return np.array(
        [
            average_precision_score(
                wanted,
                LogisticRegression(max_iter=2000)
                .fit(scaler.transform(train), known)
                .decision_function(scaler.transform(test)),
            )
            for known, wanted in zip(train_labels.T, test_labels.T)
        ]
    )


def probes(config, train, test):
    """Average precision of each class from S1, S2 and both, and how often it occurs."""
    s1, s2, hot = [], [], np.zeros((train + test, len(CLASSES)), int)
    for index in range(train + test):
        generated = scene(config, index)
        for kept, values in zip((s1, s2), features(generated)):
            kept.append(values)
        hot[index, list(labels(generated))] = 1
    inputs = np.array(s1), np.array(s2), np.concatenate([s1, s2], 1)
    with threadpool_limits(1):  # such small matrices are slower with more
        scores = [probe(x[:train], x[train:], hot[:train], hot[train:]) for x in inputs]
    return *scores, hot[train:].mean(0)


def check_difficulty(s1, s2, both, prevalence):
    assert 0.5 < both.mean() < 0.85
    for alone, blind, group in ((s1, s2, ONLY_S1), (s2, s1, ONLY_S2)):
        for i in group:
            assert blind[i] - prevalence[i] < 0.15, CLASSES[i].name
            assert alone[i] - prevalence[i] > 0.15, CLASSES[i].name
            assert alone[i] - blind[i] > 0.1, CLASSES[i].name
    joint = list(NEED_BOTH)
    assert both[joint].mean() - max(s1[joint].mean(), s2[joint].mean()) > 0.1


@pytest.mark.slow  # of the generator alone
def test_a_linear_probe_finds_something_to_learn_and_nothing_trivial():
    check_difficulty(*probes(SceneConfig(seed=2024), 500, 300))


@pytest.mark.slow
@pytest.mark.parametrize('seed', [2025, 2026])
def test_a_linear_probe_with_more_scenes(seed):
    s1, s2, both, prevalence = probes(SceneConfig(seed=seed), 1500, 700)
    check_difficulty(s1, s2, both, prevalence)
    for i in NEED_BOTH:
        assert both[i] > max(s1[i], s2[i]) + 0.05, CLASSES[i].name
