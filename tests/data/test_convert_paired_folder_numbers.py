"""What the numbers in a user's own files mean, and what they can be: scale, offset, unit, nodata."""

import numpy as np
import pytest

from data import sharded
from data.paired_folder import pairs
from fusmae_jax.errors import InputError
from tests.support.paired_folder_files import NO_TAGS, S2, archive, optical, put, radar

TAGGED = {'BOA_ADD_OFFSET_B2': '-1000', 'BOA_ADD_OFFSET_B3': '-1000'}


@pytest.mark.parametrize(
    ('s2', 'settings', 'expected'),
    [
        ({'tags': TAGGED}, {}, (1, -1000)),
        ({'tags': {'RADIO_ADD_OFFSET': '0'}}, {}, (1, 0)),
        ({'tags': {'PROCESSING_BASELINE': '05.10'}}, {}, (1, -1000)),
        ({'tags': {'processing_baseline': '02.14'}}, {}, (1, 0)),
        ({'tags': {'PROCESSING_BASELINE': '05.10'}}, {'s2_offset': '0'}, (1, 0)),  # harmonised since
        ({}, {'s2_offset': '-1000'}, (1, -1000)),
        ({'scales': (1e-4, -0.1)}, {'s2_unit': 'reflectance'}, (1e-4, -0.1)),
        ({'scales': (1e-4, 0), 'tags': TAGGED}, {'s2_unit': 'reflectance'}, (1e-4, -0.1)),
        ({}, {'s2_unit': 'reflectance', 's2_offset': '0', 's2_scale': 1e-4}, (1e-4, 0)),
        ({'tags': {'PROCESSING_BASELINE': '05.10'}, 'float': 1}, {}, NO_TAGS),
        ({}, {'s2_unit': 'reflectance', 's2_offset': '0'}, r'whole numbers \(uint16\) cannot be reflectance'),
        ({'tags': TAGGED | {'BOA_ADD_OFFSET_B4': '0'}}, {}, 'one number for all bands is needed'),
        ({'scales': (1e-4, 0)}, {'s2_unit': 'reflectance', 's2_scale': 1e-3}, 'the tag says 0.0001, but'),
        ({'uint8': 1}, {'s2_offset': '0'}, 'uint8 has 256 values: a picture'),
        ({'uint8': 1}, {'s2_offset': '0', 's2_scale': 40.0}, (40, 0)),
    ],
)
def test_what_the_numbers_of_sentinel_2_mean(s2, settings, expected, tmp_path):
    image = optical() + np.uint16(1000)
    image = image.astype(np.float32) if s2.pop('float', 0) else image
    image = (image // 40).astype(np.uint8) if s2.pop('uint8', 0) else image
    put(tmp_path / 's2' / 'a.tif', image, S2, **s2)
    settings = archive(tmp_path, **({'s1_root': '', 's1_unit': '', 's2_offset': 'auto'} | settings))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            pairs.source(settings)
        return
    source = pairs.source(settings)
    group = source.schema.groups['s2']
    assert (group.scale, group.offset) == pytest.approx(expected)
    assert group.unit == settings.s2_unit
    np.testing.assert_array_equal(
        source.read(source.splits['train'][0])['s2'], image[:, :24, :24].transpose(1, 2, 0)
    )


POWER = (10 ** (radar() / 10)).astype(np.float32)


def holed(image, fill):
    """The image with a fill value in two columns of the second band of each tile of 24 pixels."""
    image = image.copy()
    image[1, :, ::24] = image[1, :, 7::24] = fill
    return image


@pytest.mark.parametrize(
    ('image', 'settings', 'message'),
    [
        (radar(), {'s1_unit': 'linear'}, r"s1 VV: median -1\d.* linear, .*; dB\? set s1_unit='dB'"),
        (POWER * 1e5, {'s1_unit': 'linear'}, 'digital numbers of a product that is not calibrated'),
        (POWER, {'s1_unit': 'linear'}, ''),
        (np.sqrt(POWER), {'s1_unit': 'amplitude'}, ''),
        (np.rint(radar()).astype(np.int16), {}, r'whole numbers \(int16\) cannot be dB .*set s1_scale'),
        (np.rint(radar() * 100).astype(np.int16), {'s1_scale': 0.01}, ''),
        (np.rint(radar() * 100).astype(np.int16), {'s1_scale': 1.0}, r'median -1\d+ dB, .*dB times a factor'),
        (np.zeros((2, 48, 48), np.float32), {}, r'not dB; .*s1_nodata=\(0\.0,\) if 0 fills'),
        (np.zeros((2, 48, 48), np.float32), {'s1_nodata': (0.0,)}, ''),
        (np.full((2, 48, 48), np.nan, np.float32), {}, ''),
        (holed(radar(), -9999), {}, r'VH: 8\.3% of the pixels .* -9999; .*Set s1_nodata'),
        (holed(radar(), -9999), {'s1_nodata': (-9999.0,)}, ''),
        (holed(POWER, 1e20), {'s1_unit': 'linear'}, r'VH: 8\.3% .* 1e\+20'),
        (POWER * 1e4, {'s1_unit': 'amplitude'}, 'digital numbers of a product that is not calibrated'),
    ],
)
def test_what_the_numbers_of_sentinel_1_can_be(image, settings, message, tmp_path):
    put(tmp_path / 's1' / 'a.tif', image, ('VV', 'VH'))
    settings = archive(tmp_path, **({'s2_root': '', 's2_unit': ''} | settings))
    if not message:
        source = pairs.source(settings)
        record = source.read(source.splits['train'][0])
        np.testing.assert_array_equal(record['s1'], image[:, :24, :24].transpose(1, 2, 0))
        return
    with pytest.raises(InputError, match=message):
        sharded.convert(pairs.source(settings), tmp_path / 'out')


@pytest.mark.parametrize(
    ('values', 'unit', 'offset', 'message'),
    [
        (optical(), 'DN', '-1000', ''),  # 200..3000: median above 500 after the offset
        (optical() // 4, 'DN', '-1000', 'the offset is off already'),
        ((optical() * 1e-4).astype(np.float32), 'reflectance', '0', ''),
        ((optical() * 1e-4).astype(np.float32), 'DN', '0', 'no value above 0.29.*: not DN'),
        (optical().astype(np.float32), 'reflectance', '0', r"digital numbers\? set s2_unit='DN'"),
    ],
)
def test_what_the_numbers_of_sentinel_2_can_be(values, unit, offset, message, tmp_path):
    put(tmp_path / 's2' / 'a.tif', values, S2)
    settings = archive(tmp_path, s1_root='', s1_unit='', s2_unit=unit, s2_offset=offset)
    source = pairs.source(settings)
    if not message:
        source.read(source.splits['train'][0])
        return
    with pytest.raises(InputError, match=message):
        source.read(source.splits['train'][0])


def test_padding_needs_a_nodata_value(tmp_path):
    put(tmp_path / 's1' / 'a.tif', radar((30, 30)), ('VV', 'VH'))
    alone = {'s2_root': '', 's2_unit': '', 'edge': 'pad'}
    source = pairs.source(archive(tmp_path, **alone))
    record = source.read({i.key: i for i in source.splits['train']}['a_24_24'])
    assert np.isfinite(record['s1'][:6, :6]).all() and np.isnan(record['s1'][6:]).all()
    assert np.isnan(record['s1'][:, 6:]).all()
    assert record['s1_valid'] == np.float32(36 / 576)
    put(tmp_path / 's1' / 'a.tif', np.rint(radar((30, 30)) * 100).astype(np.int16), ('VV', 'VH'))
    with pytest.raises(InputError, match=r"edge='pad': s1 \(int16\) has no nodata value"):
        pairs.source(archive(tmp_path, s1_scale=0.01, **alone))
