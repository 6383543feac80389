"""What tiles leave out of images, said before they are cut; and images with an offset of their own."""

import dataclasses

import numpy as np
import pytest

from data import convert, sharded
from data.paired_folder import cover, pairs
from data.paired_folder.settings import Archive
from data.records import RecordError
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from tests.support.data_fixtures import read
from tests.support.paired_folder_files import archive, optical, pair


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
    assert [[*item.values[-1]] for item in source.splits['train']] == [[1000]] * 4 + [[]] * 4
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
