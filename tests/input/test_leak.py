"""Who was seen: constructed overlaps of two versions of an archive, with every count known beforehand."""

import dataclasses
import hashlib
import io
import json
import os
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.errors import InputError
from fusmae_jax.eval import leaks as leak_command
from fusmae_jax.input import seen as leak
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.example import Example
from fusmae_jax.input.source import read_index
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm import lists
from fusmae_jax.shipped.data.bigearthnet_mm.lists import parse_name
from fusmae_jax.shipped.data.bigearthnet_mm.schema import FIELDS as V1_FIELDS
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.records import Field, Item, RecordSource
from tests.support import short_table

V1 = Contract(dataset='bigearthnet_mm', key='s2_name')
V2 = Contract(dataset='bigearthnet_v2', key='s2_name')
GROUPS = {'s1': Group('s1', ('VV', 'VH'), (2, 2), 'float32', 'dB')}
METADATA = os.environ.get('BIGEARTHNET_V2_METADATA', '')


def v1_name(day, h, v):
    return f'S2A_MSIL2A_201706{day:02d}T101031_{h}_{v}'


def v2_name(day, h, v, tile='33UUP'):
    return f'S2A_MSIL2A_201706{day:02d}T101031_N9999_R022_T{tile}_{h:02d}_{v:02d}'


def v1_row(day, h, v, tile='33UUP'):
    return {'s2_name': v1_name(day, h, v), 'tile': tile, 'grid_cell': np.array([h, v], np.int32)}


def v2_row(day, h, v, tile='33UUP', twin=True):
    names = {'s2_name': v2_name(day, h, v, tile), 's2v1_name': v1_name(day, h, v) if twin else ''}
    return names | {'tile': tile, 'grid_cell': np.array([h, v], np.int32)}


def index_of(rows):
    return {
        name: np.array([row[name].encode() if isinstance(row[name], str) else row[name] for row in rows])
        for name in rows[0]
    }


def seen_of(contract, rows):
    return leak.Seen(leak.once(leak.identify(contract, index_of(rows))))


# Trained on eight v1 patches; of ten v2 patches, three are twins of those, two more lie on their ground (on
# another day), one has the right cell in another tile, one the cell with H and V exchanged.
TRAINED = [v1_row(13, h, 5) for h in range(8)]
TESTED = [
    *(v2_row(13, h, 5) for h in range(3)),
    *(v2_row(20, h, 5) for h in (3, 4)),
    v2_row(20, 5, 5, tile='33UVP'),
    v2_row(20, 5, 6),
    *(v2_row(20, h, 60, twin=False) for h in range(3)),
]


def test_every_way_counts_what_only_it_can_know():
    assert leak.count(leak.identify(V2, index_of(TESTED)), seen_of(V1, TRAINED)) == {
        'records': 10,
        'id': 0,
        'twin': 3,
        'cell': 5,
        'place': 0,
        'content': 0,
        'any': 5,
        'with_twin': 7,
        'with_cell': 10,
        'with_place': 0,
        'with_content': 0,
    }
    exchanged = leak.identify(V2, index_of([v2_row(20, 5, 7)]))
    assert leak.count(exchanged, seen_of(V1, [v1_row(13, 7, 5)]))['any'] == 0


def test_it_works_in_both_directions_and_within_a_version():
    seen = seen_of(V2, TESTED)
    tested = leak.identify(V1, index_of(TRAINED))
    assert {k: v for k, v in leak.count(tested, seen).items() if k in ('id', 'twin', 'cell')} == {
        'id': 0,
        'twin': 3,
        'cell': 5,
    }
    of_v2 = leak.identify(V2, index_of(TESTED[2:6]))
    assert leak.count(of_v2, seen)['id'] == 4
    # The marks say which ones.
    marks = leak.recognise(leak.identify(V2, index_of(TESTED)), seen_of(V1, TRAINED))
    assert marks['twin'].tolist() == [True] * 3 + [False] * 7
    assert marks['any'].tolist() == [True] * 5 + [False] * 5


def test_a_name_means_something_in_its_own_data_set_only():
    index = {'name': np.array([b'0001', b'0002'])}
    here = Contract(dataset='mine', key='name')
    seen = leak.Seen(leak.once(leak.identify(here, index)))
    assert leak.count(leak.identify(here, index), seen)['id'] == 2
    other = leak.identify(dataclasses.replace(here, dataset='theirs'), index)
    assert leak.count(other, seen) == dict.fromkeys((*leak.RecordNames._fields, 'any'), 0) | {
        'records': 2,
        **dict.fromkeys(('with_twin', 'with_cell', 'with_place', 'with_content'), 0),
    }


def test_cells_are_compared_as_numbers_in_a_tile_of_one_spelling():
    rows = [
        {'k': f'{i}', 'tile': tile, 'grid_cell': [4, 55]}
        for i, tile in enumerate(('T33UUP', '33UUP', '1CCV'))
    ]
    rows += [{'k': '3', 'tile': '', 'grid_cell': [4, 55]}, {'k': '4', 'tile': '33UUP', 'grid_cell': [-1, -1]}]
    cells = leak.identify(Contract(dataset='a', key='k'), index_of(rows)).cell
    assert cells.tolist() == [b'33UUP_4_55', b'33UUP_4_55', b'01CCV_4_55', b'', b'']


def test_version_1_names_of_the_archive_are_twins_of_themselves():
    names = sorted(lists.listed('val'))[::1000]
    names += [name for name in sorted(lists.listed('train'))[:3000] if re.search(r'T\d{5}_', name)][:3]
    records = leak.identify(V1, {'s2_name': np.array(names, np.bytes_)})
    assert records.twin.tolist() == [name.encode() for name in names]
    v2 = leak.identify(V2, {'s2_name': np.array([v2_name(13, 1, 2)], np.bytes_)})
    assert v2.twin.tolist() == [b'']  # without the table nothing is guessed


def test_union_digest_and_bytes():
    first, second = seen_of(V1, TRAINED[:5]), seen_of(V1, TRAINED[3:])
    both = leak.union(first, second)
    assert leak.digest(both) == leak.digest(leak.union(second, first)) == leak.digest(seen_of(V1, TRAINED))
    assert len({leak.digest(seen) for seen in (first, second, both)}) == 3
    mixed = leak.union(both._replace(sources=('a', 'b')), seen_of(V2, TESTED)._replace(sources=('b', 'c')))
    assert mixed.sources == ('a', 'b', 'c')
    assert len(mixed.names.id) == 18 and len(mixed.names.cell) == 8 + 5
    packed = leak.to_bytes(mixed)
    assert packed == leak.to_bytes(mixed)
    again = leak.from_bytes(packed, 'here')
    assert again.sources == mixed.sources and leak.digest(again) == leak.digest(mixed)
    for here, there in zip(again.names, mixed.names):
        np.testing.assert_array_equal(here, there)


def test_nothing_seen_and_damage():
    nothing = leak.Seen(leak.RecordNames(*[np.array([], np.bytes_)] * 5))
    again = leak.from_bytes(leak.to_bytes(nothing), 'here')
    assert leak.count(leak.identify(V2, index_of(TESTED)), again)['any'] == 0
    packed = leak.to_bytes(seen_of(V1, TRAINED))
    for damaged in (packed[:100], b'', b'nonsense', packed[:60] + b'\xff' * 40 + packed[100:]):
        with pytest.raises(InputError, match='step 5: the list of seen records is damaged'):
            leak.from_bytes(damaged, 'step 5')


def test_packed_records_are_small():
    """354,196 of them, the largest training set in use, must take less than 5 MB: 14 bytes each."""
    rng = np.random.default_rng(0)
    rows = [
        v1_row(1 + scene % 30, cell // 90, cell % 90, tile=f'{29 + scene % 8}UU{chr(65 + scene // 8)}')
        for scene in range(40)
        for cell in rng.choice(8100, 600, replace=False).tolist()
    ]
    seen = seen_of(V1, rows)
    assert len(seen.names.cell) == 24_000
    assert len(leak.to_bytes(seen)) < 14 * len(seen.names.id)


def convert(folder, name, fields, splits):
    """A data set of 2 x 2 pixels with the given index fields."""

    def read(item):
        return {'s1': np.full((2, 2, 2), -10.0, np.float32), **item.values[0]}

    schema = dataclasses.replace(
        SCHEMA, name=name, groups=GROUPS, fields=fields, classes={}, split_aliases={'all': 'train+test'}
    )
    items = {s: [Item(row['s2_name'], (_plain(row),)) for row in rows] for s, rows in splits.items()}
    return sharded.convert(RecordSource(schema, items, read, {'input': 'made up'}), folder, 4)[0]


def _plain(row):
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """Version 1 with a train split, version 2 with a test split, as converted data sets."""
    folder = tmp_path_factory.mktemp('leak')
    v1 = {name: V1_FIELDS[name] for name in ('s2_name', 'tile', 'grid_cell')}
    first = convert(folder, 'bigearthnet_mm', v1, {'train': TRAINED, 'test': [v1_row(14, 80, 80)]})
    fields = v1 | {'s2v1_name': Field('text', 'twin')}
    second = convert(folder, 'bigearthnet_v2', fields, {'train': [v2_row(1, 70, 70)], 'test': TESTED})
    return first, second


def test_collected_from_a_data_set(sets):
    first, second = sets
    seen = leak.collect(first, 'train')
    assert leak.digest(seen) == leak.digest(seen_of(V1, TRAINED))
    assert seen.sources == ('pretraining: bigearthnet_mm 1.0.0, split train, 8 records',)
    _, tested = leak.read_records(second, 'test')
    assert leak.count(tested, seen)['any'] == 5
    assert len(leak.collect(first, 'all').names.id) == 9
    labels = leak.collect(second, 'test', purpose='labels', positions=np.array([0, 3]))
    assert labels.sources == ('labels: bigearthnet_v2 1.0.0, split test, 2 records',)
    assert labels.names.id.tolist() == sorted(leak.read_records(second, 'test')[1].id[[0, 3]].tolist())


@pytest.mark.parametrize('split', ['train[:3]', 'train[50%:]+test', 'test+train[-2:]'])
def test_a_part_of_a_split_is_that_which_the_reader_gives(sets, split):
    source, records = leak.read_records(sets[0], split)
    read = [b'bigearthnet_mm/' + Example(record).text('s2_name') for record in source.records]
    assert records.id.tolist() == read


def saved(workdir, seen):
    state = {
        'step': jnp.int32(5),
        'params': {'w': jnp.zeros(2)},
        'opt_state': {'m': jnp.zeros(2)},
        'extra': {},
    }
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(state, {}, seen=leak.to_bytes(seen) if seen else b'')
    checkpoints.wait()
    checkpoints.close()
    return str(workdir)


def test_the_command_counts_what_a_checkpoint_has_seen(sets, tmp_path, capsys):
    first, second = sets
    workdir = saved(tmp_path, leak.collect(first, 'train'))
    assert leak_command.run(workdir, str(second), 'test', as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert {way: result[way] for way in ('records', 'id', 'twin', 'cell', 'any')} == {
        'records': 10,
        'id': 0,
        'twin': 3,
        'cell': 5,
        'any': 5,
    }
    assert (result['step'], result['digest']) == (5, leak.digest(seen_of(V1, TRAINED)))
    assert leak_command.run(workdir, str(second), 'test') == 0
    printed = capsys.readouterr().out
    assert re.search(r'3 \( ?30\.00%\)  as the BigEarthNet v1 patch', printed)
    assert re.search(r'5 \( ?50\.00%\)  in one of these ways', printed)
    assert 'pretraining: bigearthnet_mm 1.0.0, split train, 8 records' in printed
    assert 'not results on unseen records' in printed
    leak_command.run(workdir, str(second), 'train')
    assert 'Not one of these records was recognised as seen' in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(sets, tmp_path, capsys):
    fields = {'s2_name': V1_FIELDS['s2_name']}
    plain = convert(tmp_path, 'other', fields, {'train': [{'s2_name': 'a'}], 'test': [{'s2_name': 'b'}]})
    leak_command.run(saved(tmp_path / 'run', leak.collect(sets[0], 'train')), str(plain), 'test')
    printed = capsys.readouterr().out
    assert 'no record has a BigEarthNet v1 name' in printed
    assert 'no record has an MGRS tile and grid cell' in printed


def test_a_checkpoint_that_does_not_say(sets, tmp_path):
    with pytest.raises(InputError, match='checkpoint 5 was written without the list'):
        leak_command.run(saved(tmp_path, None), str(sets[1]), 'test')
    with pytest.raises(InputError, match='no checkpoints/ folder'):
        leak_command.run(str(tmp_path / 'typo'), str(sets[1]), 'test')


PLACED = {
    'name': Field('text', 'name'),
    'epsg': Field('int32', 'EPSG'),
    'upper_left': Field('float64', 'corner', (2,)),
}
HERE, ELSEWHERE = (32722, [500_000.0, 7_000_000.0]), (32616, [500_000.0, 4_000_000.0])


def placed(folder, dataset, rows, pixels=True):
    """A data set of one's own: rows are (name, place or None, seed of the pixels); 2 x 2 pixels of 10 m."""

    def read(item):
        name, where, seed = item.values
        image = np.random.default_rng(seed).normal(-10, 1, (2, 2, 2)).astype(np.float32)
        place = {'epsg': where[0], 'upper_left': np.array(where[1])} if where else {}
        return {'s1': image if pixels else np.full_like(image, np.nan), 'name': name, **place}

    fields = PLACED if rows[0][1] else {'name': PLACED['name']}
    schema = dataclasses.replace(
        SCHEMA, name=dataset, groups=GROUPS, fields=fields, key='name', classes={}, split_aliases={}
    )
    items = {'train': [Item(row[0], row) for row in rows]}
    return sharded.convert(RecordSource(schema, items, read, {'rows': f'{rows}'}), folder, 4)[0]


def counted(here, seen):
    counts = leak.count(leak.read_records(here, 'train')[1], seen)
    return {way: n for way, n in counts.items() if way in (*leak.RecordNames._fields, 'any') and n}


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        (('p', HERE, 1), {'id': 1, 'place': 1, 'content': 1, 'any': 1}),
        (('renamed', HERE, 1), {'place': 1, 'content': 1, 'any': 1}),
        (('p', ELSEWHERE, 2), {}),  # the same name on other ground
        (('p', ELSEWHERE, 1), {'content': 1, 'any': 1}),
        (('q', (HERE[0], [500_010.0, 7_000_010.0]), 2), {'place': 1, 'any': 1}),  # a quarter of it
        (('q', (HERE[0], [500_020.0, 7_000_000.0]), 2), {}),  # the neighbour
        (('q', (HERE[0], [500_000.0, 6_999_980.0]), 2), {}),
        (('p', None, 2), {'id': 1, 'any': 1}),  # nothing says that it is elsewhere
        (('q', None, 1), {'content': 1, 'any': 1}),
    ],
)
def test_a_record_is_known_by_its_ground_and_by_its_pixels(row, expected, tmp_path):
    seen = leak.collect(placed(tmp_path / 'a', 'folder', [('p', HERE, 1)]), 'train')
    assert counted(placed(tmp_path / 'b', 'folder', [row]), seen) == expected
    again = leak.from_bytes(leak.to_bytes(seen), 'here')
    assert leak.digest(again) == leak.digest(seen) and leak.digest(seen) != leak.digest(seen_of(V1, TRAINED))


def test_a_list_of_before_there_were_places_knows_names_as_it_did(tmp_path):
    arrays = dict.fromkeys(('twin', 'cell'), np.array([], np.bytes_)) | {'id': np.array([b'folder/p'])}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays, sources=np.array(['old']), format=np.array(1))
    seen = leak.from_bytes(stream.getvalue(), 'here')
    assert counted(placed(tmp_path / 'a', 'folder', [('p', HERE, 1)]), seen) == {'id': 1, 'any': 1}
    total = hashlib.sha256(b'1\0folder/p' + b'0\0' * 2).hexdigest()[:16]
    assert leak.digest(seen) == total  # as that version had it


def test_an_index_of_before_there_was_content_is_read(tmp_path):
    folder = placed(tmp_path / 'a', 'folder', [('p', HERE, 1), ('q', ELSEWHERE, 2)])
    index = read_index(folder, 'train')
    content = index.pop('content_s1')
    assert len(set(content.tolist())) == 2 and {len(x) for x in content.tolist()} == {12}
    np.savez(folder / 'index-train.npz', **index)
    _, records = leak.read_records(folder, 'train')
    assert records.content.shape == (2, 0) and (records.place != b'').all()
    assert counted(folder, leak.collect(folder, 'train')) == {'id': 2, 'place': 2, 'any': 2}


def test_images_without_a_measurement_are_not_each_other(tmp_path):
    one, other = (
        placed(tmp_path / name, name, [('p', where, 1)], pixels=False)
        for name, where in (('a', HERE), ('b', ELSEWHERE))
    )
    assert counted(other, leak.collect(one, 'train')) == {}
    assert leak.read_records(one, 'train')[1].content.tolist() == [[b'']]


def test_what_the_command_says_of_another_name_and_another_place(tmp_path, capsys):
    run = saved(tmp_path / 'run', leak.collect(placed(tmp_path / 'a', 'one', [('p', HERE, 1)]), 'train'))
    leak_command.run(run, str(placed(tmp_path / 'b', 'renamed', [('q', HERE, 1)])), 'train')
    printed = capsys.readouterr().out
    assert re.search(r'1 \(100\.00%\)  on overlapping ground', printed)
    assert re.search(r'1 \(100\.00%\)  by their pixels', printed)
    leak_command.run(run, str(placed(tmp_path / 'c', 'one', [('p', ELSEWHERE, 2)])), 'train')
    assert 'Not one of these records was recognised as seen' in capsys.readouterr().out
    old = saved(tmp_path / 'old', seen_of(V1, TRAINED))
    leak_command.run(old, str(placed(tmp_path / 'd', 'one', [('p', ELSEWHERE, 2)])), 'train')
    assert 'the checkpoint does not list places' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not METADATA, reason='set BIGEARTHNET_V2_METADATA to metadata.parquet of BigEarthNet v2')
def test_the_published_tables_give_60886_seen_test_patches(monkeypatch):
    from fusmae_jax.shipped.data.bigearthnet_v2.names import parse_patch_id
    from fusmae_jax.shipped.data.bigearthnet_v2.table import read_table

    monkeypatch.setattr(lists, '_table', short_table.whole)
    pairs = lists.published_pairs(set(), lists.listed('train'))
    v1 = [(row.s2_name, parse_name(row.s1_name)) for row in pairs]
    seen = seen_of(V1, [v1_row(0, *name.cell, tile=name.tile) | {'s2_name': s2} for s2, name in v1])
    tested = [
        {'s2_name': row.patch_id, 's2v1_name': row.s2v1_name, 'tile': name.tile, 'grid_cell': name.cell}
        for row in read_table(Path(METADATA)).rows
        if row.split == 'test' and (name := parse_patch_id(row.patch_id))
    ]
    counts = leak.count(leak.identify(V2, index_of(tested)), seen)
    assert (counts['records'], counts['twin'], counts['cell']) == (119_825, 60_886, 60_886)
