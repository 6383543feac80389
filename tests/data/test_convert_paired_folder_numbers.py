"""Pixels of a user's own files: scale, offset, unit and nodata, and what tiles leave out of images."""

import dataclasses

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.shipped.data import convert, sharded
from fusmae_jax.shipped.data.paired_folder import cover, pairs
from fusmae_jax.shipped.data.paired_folder.settings import Archive
from fusmae_jax.shipped.data.paired_folder.tiles import Tile
from fusmae_jax.shipped.data.records import RecordError
from tests.support.data_fixtures import read
from tests.support.paired_folder_files import NO_TAGS, S2, archive, optical, pair, put, radar

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


@pytest.mark.parametrize(
    ('tile', 'stride', 'edge', 'size', 'lost', 'filled'),
    [
        (120, 0, 'drop', (224, 224), 1 - 120**2 / 224**2, 0),  # 71 %
        (112, 0, 'drop', (224, 224), 0, 0),
        (120, 60, 'drop', (224, 180), 1 - 180 / 224, 0),
        (120, 0, 'pad', (224, 224), 0, 1 - 224**2 / 240**2),
        (20, 40, 'drop', (100, 20), 1 - 60 / 100, 0),  # gaps that were asked for are left out all the same
        (120, 0, 'drop', (100, 500), 1, 0),
    ],
)
def test_shares_are_those_of_a_drawn_mask(tile, stride, edge, size, lost, filled):
    settings = Archive(tile=tile, stride=stride, edge=edge)
    share = cover.waste(settings, {size: 3})
    assert share == pytest.approx((lost, filled))
    drawn = np.zeros((1000, 1000), bool)
    for row, column in pairs.tiles(settings, *size):
        drawn[row : row + tile, column : column + tile] = True
    image = drawn[: size[0], : size[1]]
    assert share.lost == pytest.approx(1 - image.mean())
    assert share.filled == pytest.approx(1 - image.sum() / drawn.sum() if drawn.any() else 0)


@pytest.mark.parametrize(
    ('tile', 'sizes', 'multiple', 'better'),
    [
        (120, {(224, 224): 9}, 1, 112),
        (120, {(224, 224): 9}, 6, 222),  # whole pixels in files of 60 m
        (120, {(256, 256): 5, (264, 264): 5}, 1, 128),
        (300, {(224, 224): 1}, 1, 224),
        (7, {(100, 100): 1}, 6, 6),
    ],
)
def test_a_better_tile_is_named(tile, sizes, multiple, better):
    assert cover.better(Archive(tile=tile), sizes, multiple) == better


def test_the_share_lost_is_said_before_the_records_are_written(tmp_path, capsys, monkeypatch):
    pair(tmp_path)
    settings = archive(tmp_path, tile=40)

    def stopped(source, *args, **kwargs):
        raise InputError('stopped here')

    monkeypatch.setattr(sharded, 'convert', stopped)
    values = {'builder': 'paired_folder', 'archive': dataclasses.asdict(settings), 'output': str(tmp_path)}
    with pytest.raises(InputError, match='stopped here'):
        convert.run(values)
    assert capsys.readouterr().out == (
        'note: tiles of 40 pixels (stride 40) in images of 48 x 48 leave out 30.6% of the pixels; '
        'config.archive.tile=48 would waste nothing\n'
    )
    assert pairs.source(archive(tmp_path)).notes == []


def test_a_tile_larger_than_the_image_names_one_that_fits(tmp_path):
    pair(tmp_path)
    with pytest.raises(RecordError, match=r'no tile of 120 pixels in 48 x 48; choose tile=48 or smaller'):
        pairs.source(archive(tmp_path, tile=120))


def table(folder, text, **changes):
    (folder / 'pairs.csv').write_text(text)
    return archive(folder, table=str(folder / 'pairs.csv'), **changes)


def test_an_image_with_its_own_offset_has_the_physical_values_of_its_own(tmp_path):
    """Two pairs of the same ground; the second is of a newer baseline, so its numbers are 1000 higher."""
    old = optical()
    old[:, :3] = 0  # nothing was measured here, in both
    new = np.where(old > 0, old + 1000, 0).astype(old.dtype)
    pair(tmp_path, 'a', s2={'array': old})
    pair(tmp_path, 'b', s2={'array': new})
    source = pairs.source(table(tmp_path, 's1,s2,s2_offset\na.tif,a.tif,\nb.tif,b.tif,-1000\n'))
    assert source.notes == [
        '1 of 2 images have another Sentinel-2 offset: 1000 is added to their whole numbers, so that one '
        'offset holds for all'
    ]
    folder, report = sharded.convert(source, tmp_path / 'out')
    assert report['notes'] == source.notes and contract.read(folder).groups['s2'].offset == -1000
    records = {record['name'].decode(): record['s2'] for record in read(folder)}
    assert len(records) == 8
    for corner in ('0_0', '0_24', '24_0', '24_24'):
        np.testing.assert_array_equal(records[f'a_{corner}'], records[f'b_{corner}'])
    np.testing.assert_array_equal(records['b_0_0'], new[:, :24, :24].transpose(1, 2, 0))


def test_the_metadata_of_each_image_count_where_the_table_says_auto(tmp_path):
    pair(tmp_path, 'a', s2={'tags': {'BOA_ADD_OFFSET': '0'}})
    pair(tmp_path, 'b', s2={'tags': {'BOA_ADD_OFFSET': '-1000'}, 'array': optical() + np.uint16(1000)})
    text = 's1,s2,s2_offset\na.tif,a.tif,auto\nb.tif,b.tif,auto\n'
    source = pairs.source(table(tmp_path, text))
    assert source.schema.groups['s2'].offset == -1000
    assert [[*Tile(*item.values).shift] for item in source.splits['train']] == [[1000]] * 4 + [[]] * 4
    with pytest.raises(RecordError, match=r'scale, offset, nodata: .*another data set'):
        pairs.source(archive(tmp_path, s2_offset='auto'))


@pytest.mark.parametrize(
    ('cell', 'second', 'message'),
    [
        ('1000', {}, r"row 3, s2_offset: '1000'; write 0, -1000 or auto"),
        ('-1000', {'tags': {'BOA_ADD_OFFSET': '0'}}, r'b\.tif: s2 offset: BOA_ADD_OFFSET says 0, but s2_off'),
        ('-1000', {'array': optical().astype(np.float32)}, r'b\.tif: s2 dtype'),
    ],
)
def test_an_offset_that_cannot_be_is_refused(cell, second, message, tmp_path):
    pair(tmp_path, 'a')
    pair(tmp_path, 'b', s2=second)
    with pytest.raises(RecordError, match=message):
        pairs.source(table(tmp_path, f's1,s2,s2_offset\na.tif,a.tif,\nb.tif,b.tif,{cell}\n'))


def test_decimals_and_numbers_without_room_are_not_moved(tmp_path):
    for name in 'ab':
        pair(tmp_path, name, s2={'array': optical().astype(np.float32)})
    text = 's1,s2,s2_offset\na.tif,a.tif,0\nb.tif,b.tif,-1000\n'
    with pytest.raises(RecordError, match='scale, offset, nodata'):
        pairs.source(table(tmp_path, text))
    high = optical()
    high[0, 0, 0] = 65_000
    pair(tmp_path, 'a', s2={'array': high})
    pair(tmp_path, 'b')
    source = pairs.source(table(tmp_path, text))
    with pytest.raises(RecordError, match=r'a\.tif: s2 offset: 65000 \+ 1000 has no room in uint16'):
        source.read(source.splits['train'][0])
