"""What values look like a fault and are none, and the other way round: own ranges, zeros, offsets."""

import dataclasses

import numpy as np
import pytest

from fusmae_jax.shipped.data.doctor.checks import examine
from fusmae_jax.shipped.data.doctor.evidence import Split
from fusmae_jax.shipped.data.doctor.own_range import scaled
from fusmae_jax.shipped.data.doctor.splits import check_splits
from tests.support.doctor_checks import QUICK, grave
from tests.support.faults import SEEDS, clean, own_range, with_sensor

RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def evidence():
    """64 patches with the bands and grids of BigEarthNet, half as wide."""
    return clean('bigearthnet', SEEDS['developed'][0], size=60)


def changed(evidence, modality, change, at=slice(None), **about):
    """Every band of some patches changed, and something else declared."""
    sensor = evidence.sensors[modality]
    hit = set(range(len(sensor.images))[at])
    images = tuple(
        {band: change(x) for band, x in image.items()} if i in hit else image
        for i, image in enumerate(sensor.images)
    )
    declared = dataclasses.replace(sensor.declared, dtype={}, **about)
    return with_sensor(evidence, modality, images=images, declared=declared)


def first(evidence, count):
    """The evidence of the first patches."""
    sensors = {
        m: dataclasses.replace(s, images=s.images[:count], grids=s.grids[:count])
        for m, s in evidence.sensors.items()
    }
    return dataclasses.replace(evidence, names=evidence.names[:count], sensors=sensors)


def found(evidence, *codes):
    return [f for f in examine(evidence, QUICK) if f.code in codes]


def minmax(x):
    return own_range(x, 1.0, RNG)


# ---- scaled to their own range


@pytest.mark.parametrize('unit', ['', 'DN', 'reflectance'])
def test_images_from_exactly_0_to_exactly_1_are_no_reflectance(evidence, unit):
    """Whatever is declared: no unit undoes it."""
    sick = changed(first(evidence, 2), 's2', minmax, unit=unit)
    (finding,) = found(sick, 's2.scale')
    assert finding.severity == 'error' and 'its own extremes' in finding.what
    assert 'exactly 0 to exactly 1' in finding.evidence and 'reflectance' not in finding.remedy
    assert not found(sick, 's2.zero', 's2.saturated')


def test_images_from_exactly_0_to_exactly_255(evidence):
    sick = changed(evidence, 's2', lambda x: np.rint(minmax(x) * 255).astype(np.uint8))
    (finding,) = found(sick, 's2.scale')
    assert finding.severity == 'error' and 'its own extremes' in finding.what


def test_sentinel_1_from_exactly_0_to_exactly_1(evidence):
    (finding,) = found(changed(first(evidence, 1), 's1', minmax), 's1.unit')
    assert finding.severity == 'error' and 'their own extremes' in finding.what


def test_a_crop_shows_neither_extreme_but_multiples(evidence):
    def crop(x):
        return minmax(x)[:40, 5:45] if len(x) == 60 else minmax(x)

    sick = changed(first(evidence, 3), 's2', crop, unit='reflectance')
    (finding,) = found(sick, 's2.scale')
    assert 'whole numbers over a range' in finding.evidence and '3 of 3' in finding.evidence


def test_a_set_scaled_by_its_own_extremes(evidence):
    images = evidence.sensors['s1'].images
    low = {b: min(image[b].min() for image in images) for b in ('VV', 'VH')}
    high = {b: max(image[b].max() for image in images) for b in ('VV', 'VH')}
    by_set = tuple({b: (x - low[b]) / (high[b] - low[b]) for b, x in image.items()} for image in images)
    (finding,) = found(with_sensor(evidence, 's1', images=by_set), 's1.unit')
    assert finding.severity == 'error' and 'their own extremes' in finding.what


def test_reflectance_and_clipped_reflectance_are_not_scaled(evidence):
    def reflectance(x):
        return (x / 1e4).astype(np.float32)

    def clipped(x):
        values = reflectance(x) * 3
        values[:6] = 0
        return np.minimum(values, 1).astype(np.float32)

    for change in (reflectance, clipped, lambda x: np.minimum(x // 12, 255).astype(np.uint8)):
        assert not scaled(changed(evidence, 's2', change).sensors['s2']).any()
    power = changed(evidence, 's1', lambda x: np.minimum(10 ** (x / 10) * 20, 1).astype(np.float32))
    assert not scaled(power.sensors['s1']).any()


# ---- zeros in decibels


def with_city(x):
    """A bright block with pixels that were clipped at 0 dB, one of them at a corner of another."""
    x = np.minimum(x, -0.01).astype(np.float32)
    x[20:40, 20:40] = np.minimum(RNG.normal(-3, 1, (20, 20)), -0.01)
    x[[24, 30, 31, 36], [24, 30, 31, 36]] = 0
    return x


def test_scatterers_clipped_at_0_are_no_holes(evidence):
    bright = changed(evidence, 's1', with_city)
    (note,) = found(bright, 's1.clipped')
    assert note.severity == 'note' and 'do not declare 0' in note.remedy
    assert not found(bright, 's1.zero', 's1.unit')


def test_scatterers_declared_as_nodata_are_lost(evidence):
    (warning,) = found(changed(evidence, 's1', with_city, nodata=(0.0,)), 's1.clipped')
    assert warning.severity == 'warning' and 'take 0 off' in warning.remedy


def test_holes_stay_holes(evidence):
    def dropouts(x):
        x = np.minimum(x, -0.5).astype(np.float32)
        x[::9, ::7] = 0
        return x

    def border(x):
        x = with_city(x)
        x[:, :5] = 0
        return x

    def coast(x):
        """Beside a strip of zeros lies land, which is brighter than the sea beyond."""
        x = np.minimum(x, -0.5).astype(np.float32)
        x[:, 20:] -= 12
        x[:3] = 0
        x[3:, 0] = 0
        return x

    for change in (dropouts, border, coast):
        (error,) = found(changed(evidence, 's1', change), 's1.zero')
        assert error.severity == 'error'
    # The scatterers beside a border are still none of it.
    assert found(changed(evidence, 's1', border), 's1.clipped')


# ---- offsets in some patches


def plus(x):
    return (x + 1000).astype(np.uint16)


@pytest.mark.parametrize('patches', [64, 16])
def test_an_offset_in_some_patches_is_an_error(evidence, patches):
    sick = changed(first(evidence, patches), 's2', plus, at=slice(0, patches // 3))
    (finding,) = found(sick, 's2.offset_mixed')
    assert finding.severity == 'error' and 'convert the two apart' in finding.remedy
    assert not found(sick, 's2.offset', 's2.offset_twice')


def test_a_declared_offset_that_some_patches_do_not_have(evidence):
    minus = dict.fromkeys(evidence.sensors['s2'].declared.bands, -1000.0)
    assert not grave(found(changed(evidence, 's2', plus, offset=minus), 's2.offset_mixed', 's2.offset_twice'))
    sick = changed(evidence, 's2', plus, at=slice(0, 50), offset=minus)
    (finding,) = found(sick, 's2.offset_mixed', 's2.offset_twice')
    assert finding.code == 's2.offset_mixed' and finding.severity == 'error'


def test_names_of_mixed_baselines_are_an_error_unless_the_values_were_harmonised(evidence):
    mixed = changed(first(evidence, 4), 's2', lambda x: x, baselines=(300, 510))
    assert [f.severity for f in found(mixed, 's2.offset_mixed')] == ['error']
    harmonised = changed(evidence, 's2', lambda x: x, baselines=(300, 510))
    assert [f.severity for f in found(harmonised, 's2.offset_mixed')] == ['note']


@pytest.mark.parametrize(('epsg', 'near', 'same'), [(4326, 0.01, 1e-9), (32633, 960.0, 0.01)])
def test_records_share_ground_whatever_their_places_are_measured_in(evidence, epsg, near, same):
    """Corners in degrees lie hundredths apart where those in metres lie hundreds apart."""

    def of(*lefts):
        return Split(len(lefts), places=np.array([(epsg, left, 48.0) for left in lefts]))

    def shared(left):
        splits = {'train': of(11.0), 'val': of(left)}
        changed = dataclasses.replace(evidence, splits=splits)
        return 'split.place' in {finding.code for finding in check_splits(changed)}

    assert shared(11.0 + same) and not shared(11.0 + near)


def test_evidence_without_a_single_image_is_judged_by_the_rest(evidence):
    """Lists of records whose images cannot be read, or were not asked for."""
    bare = first(evidence, 0)
    assert {sensor.summary.present.dtype for sensor in bare.sensors.values()} == {np.dtype(bool)}
    assert not grave(examine(bare))
