"""Values that cannot be in their unit, and images that do not look like what they are said to be."""

import dataclasses

import numpy as np
import pytest

from fusmae_jax import sensors
from fusmae_jax.input import plausible, ranges, units
from fusmae_jax.input.compatibility import compare
from fusmae_jax.input.contract import Contract, Group, Statistics
from fusmae_jax.shipped.data.records import Schema
from fusmae_jax.shipped.data.statistics import Tally
from tests.support.helpers import CONTRACT
from tests.support.tiny import tiny_config

S1 = Group('s1', ('VV', 'VH'), (120, 120), 'float32', 'dB')
S2 = Group('s2', tuple(sensors.SENSORS['s2'].bands), (120, 120), 'float32', 'DN')
GRD = (260.0, 110.0)  # numbers of a GRD product over land, VV and VH


def radar(images=2, side=60, seed=0):
    """Backscatter over land in dB, with bright targets of 30 dB."""
    rng = np.random.default_rng(seed)
    power = rng.gamma(4.4, 1 / 4.4, (images, side, side, 2)) * 10 ** np.array([-1.2, -1.9])
    power[:, ::19, ::19] = 1000.0
    return (10 * np.log10(power)).astype(np.float32)


def optical(images=2, side=60, seed=0):
    """Digital numbers over fields, with dark shadow, and glint beyond a reflectance of 1."""
    rng = np.random.default_rng(seed)
    means = np.array([band.mean for band in sensors.SENSORS['s2'].bands.values()])
    values = means * rng.uniform(0.6, 1.4, (images, side, side, 1)) + rng.normal(
        0, 20, (images, side, side, 12)
    )
    values[:, :3] *= 0.1
    values[:, 10, ::7] = 17_000
    values[:, 11, ::13] = 65_535
    return np.maximum(values, 1).astype(np.float32)


def looked(values, group, **options):
    """What is said of images of one field: (certain, name) -> message."""
    doubts = plausible.doubts({'x': values}, [ranges.sample(values, group)], **options)
    return {(doubt.certain, doubt.name): doubt.message for doubt in doubts}


def test_sound_images_in_every_unit_raise_no_doubt():
    power = 10 ** (radar().astype(np.float64) / 10)
    for values, unit in ((radar(), 'dB'), (power, 'linear'), (power**0.5, 'amplitude')):
        assert looked(values, dataclasses.replace(S1, unit=unit)) == {}
    for level in ('', 'L2A'):
        assert looked(optical(), S2, level=level) == {}
        assert looked(optical() * 1e-4, dataclasses.replace(S2, unit='reflectance'), level=level) == {}
    stored = dataclasses.replace(S2, dtype='uint16', offset=-1000.0)
    assert looked((optical() + 1000).clip(0, 65_535).astype(np.uint16), stored) == {}


@pytest.mark.parametrize('unit', ranges.RANGES)
@pytest.mark.parametrize('fill', [-9999.0, -32768.0, 1e20, -3.4e38])
def test_a_share_of_fill_is_refused_and_a_single_pixel_is_counted(unit, fill):
    sound = {'dB': radar(), 'DN': optical(), 'reflectance': optical() * 1e-4}.get(unit)
    sound = 10 ** (radar() / (10 if unit == 'linear' else 20)) if sound is None else sound
    group = dataclasses.replace(S1 if sound.shape[-1] == 2 else S2, unit=unit)
    filled, single = sound.copy(), sound.copy()
    filled[1, :9, :20, 1] = fill  # 5 % of one band of one image, out of sight of every median
    single[0, 7, 7, 0] = fill
    message = looked(filled, group)[True, 'range']
    assert (
        message.startswith('image 1, ')
        and '5.0% of the pixels' in message
        and f'{np.float32(fill):.6g}' in message
    )
    assert looked(single, group).keys() == {(False, 'range')}
    np.testing.assert_array_equal(ranges.outside(single, group).sum(axis=1), [1, 0])
    # Declared, it is no measurement, and so is NaN.
    declared = dataclasses.replace(group, nodata=(float(np.float32(fill)),))
    assert looked(filled, declared) == {}
    assert looked(np.where(filled == np.float32(fill), np.nan, filled), group) == {}


@pytest.mark.parametrize('unit', ['dB', 'linear', 'amplitude'])
@pytest.mark.parametrize('level', [1.0, 0.1, 3.0])
def test_uncalibrated_numbers_are_in_no_unit_of_backscatter(unit, level):
    rng = np.random.default_rng(0)
    numbers = rng.rayleigh(0.8, (1, 60, 60, 2)) * np.array(GRD) * level
    message = looked(np.rint(numbers) + 1, dataclasses.replace(S1, unit=unit))[True, 'range']
    assert 'GRD product' in message


def test_every_unit_has_two_ends_that_agree_where_power_becomes_decibels():
    for limits in ranges.RANGES.values():
        assert limits.low < limits.lowest < limits.highest < limits.high < np.inf
    for unit in ('linear', 'amplitude'):
        for end in ('highest', 'high'):
            given = np.array([getattr(ranges.RANGES[unit], end)])
            assert units.convert(given, unit, 'dB') == pytest.approx(getattr(ranges.RANGES['dB'], end))
    for field in ('low', 'high', 'lowest', 'highest'):
        scaled = np.array([getattr(ranges.RANGES['reflectance'], field)])
        assert units.convert(scaled, 'reflectance', 'DN') == pytest.approx(
            getattr(ranges.RANGES['DN'], field)
        )


def test_one_wrong_image_among_many_is_found():
    values = radar(images=300, side=16)
    values[217] *= 100
    assert looked(values, S1)[True, 'range'].startswith('image 217, VV: median -1')


def test_a_fill_of_more_than_half_is_not_taken_for_another_unit():
    for values, group in ((radar(), S1), (optical(), S2)):
        values[0, :40] = -9999
        assert 'fill value' in looked(values, group)[True, 'range']
    assert 'dB x 100' in looked(radar() * 100, S1)[True, 'range']


def test_negative_numbers_that_wrapped_differ_from_saturated_ones():
    values = optical()
    values[0, 20:24] = np.random.default_rng(0).integers(-900, -2, (4, 60, 12)) + 65_536
    assert 'wrapped' in looked(values, S2)[True, 'range']
    values[0, 20:24] = 65_535
    assert looked(values, S2) == {}


def test_what_radar_shows():
    assert looked(radar()[..., ::-1], S1).keys() == {(True, 'order')}
    power = dataclasses.replace(S1, unit='linear')
    assert looked(10 ** (radar()[..., ::-1] / 10), power).keys() == {(True, 'order')}
    assert looked(np.rint(radar()), S1).keys() == {(True, 'integer')}
    hundred = np.rint(radar() * 100).astype(np.int16)
    assert looked(hundred, dataclasses.replace(S1, dtype='int16', scale=0.01)) == {}
    border, clipped, floor = radar(), radar().clip(None, 0), radar()
    border[0, :, :5] = 0
    assert looked(border, S1).keys() == {(True, 'fill')}
    assert looked(clipped, S1) == {}  # the brightest scatterers at exactly 0 dB, VV alone
    floor[0, :, :5] = -80
    assert looked(floor, S1).keys() == {(False, 'floor')}
    assert looked((radar() - radar().mean((0, 1, 2))) / 5, S1).keys() == {(False, 'brightness')}


def test_bands_out_of_order_are_named():
    bands = list(S2.bands)
    last = [band for band in bands if band != 'B8A'] + ['B8A']
    wrong = optical()[..., [bands.index(band) for band in last]]
    assert 'B8A the last band' in looked(wrong, S2)[True, 'order']
    cirrus = np.full((2, 60, 60), 12.0) + np.random.default_rng(0).normal(0, 3, (2, 60, 60))
    wrong = np.insert(optical(), 10, cirrus, axis=-1)[..., :12]
    assert 'B10 in the place of B11' in looked(wrong, S2)[True, 'order']


def test_offset_and_level_are_said_and_not_refused():
    assert looked(optical() + 1000, S2).keys() == {(False, 'offset')}
    assert looked((optical() + 1000) * 1e-4, dataclasses.replace(S2, unit='reflectance')).keys() == {
        (False, 'offset')
    }
    assert looked(optical() - 700, S2).keys() == {(False, 'offset')}
    haze = np.array([1100, 850, 550, 300, 250, 200, 150, 120, 100, 60, 8, 2])
    assert looked(optical() + haze, S2, level='L2A').keys() == {(False, 'level')}
    assert looked(optical() + haze, S2, level='L1C') == looked(optical() + haze, S2) == {}
    assert looked(optical(64, 12), S2, level='L1C').keys() == {(False, 'level')}
    empty = optical()
    empty[0, :, :5] = 0
    assert looked(empty, S2).keys() == {(False, 'fill')}
    infrared = dataclasses.replace(S2, bands=('B05', 'B11', 'B12'))
    assert looked(empty[..., [4, 10, 11]], infrared) == {}  # dark water may be 0 there


def test_nothing_is_said_of_next_to_nothing():
    for shape in ((1, 1, 1, 2), (3, 2, 5, 2), (700, 1, 1, 2)):
        assert looked(np.full(shape, -12.5, np.float32), S1) == {}
    assert looked(np.full((2, 30, 30, 2), np.nan, np.float32), S1) == {}
    assert looked(np.zeros((2, 30, 30, 2), np.float32), dataclasses.replace(S1, unit='metres')) == {}


def test_a_conversion_counts_what_its_unit_cannot_be():
    schema = Schema('x', '1', {'s1': S1}, {}, {}, 'name')
    image = radar(1)[0]
    image[3, 4], image[5, 6] = -9999, np.nan
    tally, other = Tally(schema), Tally(schema)
    tally.add({'s1': image})
    other.merge(Tally.from_json(schema, tally.to_json()))
    np.testing.assert_array_equal(other.moments['s1'].outside, [1, 1])
    earlier = tally.to_json()  # of a version that did not count them
    del earlier['moments']['s1']['outside']
    assert not Tally.from_json(schema, earlier).moments['s1'].outside.any()


def test_measured_statistics_of_a_data_set_are_looked_at():
    ones = (1.0, 1.0)

    def differences(mean, unit):
        groups = {'s1': dataclasses.replace(S1, unit=unit)}
        measured = Statistics(mean=mean, std=ones, minimum=mean, maximum=mean, valid=(9, 9), invalid=(0, 0))
        data = Contract(groups={**CONTRACT.groups, **groups}, statistics={'s1': measured})
        return {d.name for d in compare(tiny_config(), data) if d.kind == 'shift'}

    assert 'range' in differences(GRD, 'amplitude') and 'range' in differences((-2700.0, -2700.0), 'dB')
    assert 'range' not in differences((0.25, 0.11), 'amplitude') | differences((-12.0, -19.0), 'dB')
