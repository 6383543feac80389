"""Shards that are missing, cut off, damaged or exchanged: one sentence and exit code 2 from every command."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import main
from data import stats_command
from data.doctor.command import run as doctor
from fusmae_jax.errors import InputError
from fusmae_jax.input import pipeline, shards
from fusmae_jax.input import seen as leak
from fusmae_jax.input.fractions import read_fraction
from fusmae_jax.input.source import Source, read_index
from tests.support.probe_fixtures import archive, checkpoint

SIZES = {'train': 24, 'val': 12, 'test': 12}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A labelled set; read-only."""
    return archive(tmp_path_factory.mktemp('data'), SIZES)


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    """An untrained checkpoint."""
    return checkpoint(tmp_path_factory.mktemp('run'), data, depth=2)


@pytest.fixture
def copy(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / 'set'))


def shard(folder, split='train'):
    return folder / f'probe-{split}.array_record-00000-of-00001'


def cut(file):
    with file.open('r+b') as stream:
        stream.truncate(file.stat().st_size // 2)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def exchange(folder, one='val', other='test'):
    first, second = shard(folder, one), shard(folder, other)
    first.rename(folder / 'between')
    second.rename(first)
    (folder / 'between').rename(second)


def without_lengths(folder):
    """As a set whose report was not copied along: nothing tells how long shards are."""
    (folder / shards.REPORT).unlink()


DAMAGES = {
    'missing': (Path.unlink, 'this shard is missing'),
    'empty': (lambda file: file.write_bytes(b''), r'this shard has 0 bytes, [\d,]+ were written'),
    'cut': (cut, r'this shard has [\d,]+ bytes, [\d,]+ were written'),
    'a folder': (lambda file: (file.unlink(), file.mkdir()), 'this shard is a folder'),
}


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_split_with_a_damaged_shard_does_not_open(kind, copy):
    damage, message = DAMAGES[kind]
    damage(shard(copy))
    with pytest.raises(InputError, match=rf'{shard(copy)}: {message}.*; copy it again'):
        Source(str(copy), 'train', ('s1',))
    assert len(Source(str(copy), 'val', ('s1',))) == SIZES['val']  # the others do


@pytest.mark.parametrize('kind', ['empty', 'cut'])
def test_without_the_report_a_cut_shard_is_found_when_it_is_read(kind, copy):
    without_lengths(copy)
    DAMAGES[kind][0](shard(copy))
    with pytest.raises(InputError, match=str(shard(copy))):
        list(map(Source(str(copy), 'train', ('s1',)).__getitem__, range(SIZES['train'])))


def test_a_flipped_bit_is_one_record_that_cannot_be_read(data, copy):
    flip(shard(copy))
    source, whole = (Source(str(folder), 'train', ('s1', 's2_10m')) for folder in (copy, data))
    bad = []
    for i in range(len(source)):
        try:
            np.testing.assert_array_equal(source[i]['s1'], whole[i]['s1'])
        except InputError:
            bad.append(i)
    assert len(bad) == 1
    # Through the threads of the loader, and through the processes of `stats`, it stays that sentence.
    batches, steps = pipeline.eval_batches(source, 8, range(8))
    with pytest.raises(InputError, match=f'{shard(copy)}: record {bad[0]} cannot'):
        list(pipeline.iterate(batches, 0, steps, threads=2, prefetch=2))
    with pytest.raises(InputError, match='cannot be read'):
        pickle.loads(pickle.dumps(source))[bad[0]]
    with pytest.raises(InputError, match=f'record {bad[0]} cannot be read'):
        stats_command.run(str(copy), 'train')


def test_exchanged_shards_are_told_by_the_names_of_records(data, copy):
    without_lengths(copy)
    exchange(copy)
    source = Source(str(copy), 'test', ('s1',))
    names = {split: read_index(copy, split, ['name'])['name'] for split in ('val', 'test')}
    there, here = (name[3].decode() for name in names.values())
    message = f"{shard(copy, 'test')}: record 3 is '{there}', by the index of the split it is '{here}'"
    with pytest.raises(InputError, match=message):
        source[3]
    with pytest.raises(InputError, match='shards or index were exchanged'):
        source.index(['labels'])  # without reading an image
    with pytest.raises(InputError, match='shards or index were exchanged'):
        leak.read_records(copy, 'test')
    # The right ones pass, in a part of splits too.
    part = Source(str(data), 'val[6:]+test', ('s1',)).index(['name'], ['nothing'])
    assert part['name'].tolist() == [*names['val'][6:], *names['test']]


def test_an_index_of_other_records_is_refused(copy):
    index = read_index(copy, 'val')
    np.savez(copy / 'index-val.npz', **{name: values[:-1] for name, values in index.items()})
    with pytest.raises(InputError, match=r'index-val\.npz: 11 records, the shards have 12'):
        Source(str(copy), 'val', ('s1',))[0]
    np.savez(copy / 'index-val.npz', **{name: values[::-1] for name, values in index.items()})
    with pytest.raises(InputError, match='shards or index were exchanged'):
        Source(str(copy), 'val', ('s1',))[0]
    np.savez(copy / 'index-val.npz', **(index | {'labels': index['labels'][:-1]}))
    with pytest.raises(InputError, match=r'index-val\.npz: fields of different lengths'):
        Source(str(copy), 'val', ('s1',)).index(['labels'])
    np.savez(copy / 'index-val.npz', **{name: values[::-1] for name, values in index.items()})
    with pytest.raises(InputError, match=r'fractions-val\.npz: drawn from other records'):
        read_fraction(copy, 'val', 0.1)


def test_a_set_without_an_index_can_still_be_read(copy):
    (copy / 'index-train.npz').unlink()
    source = Source(str(copy), 'train', ('s1',))
    assert len([source[i] for i in range(len(source))]) == SIZES['train']
    with pytest.raises(InputError, match=r'index-train\.npz: the index of the split is missing'):
        source.index(['labels'])


def command_lines(folder, run, out):
    data, work = f'--config.data.path={folder}', f'--workdir={out}'
    bands = ('--config.encoder.checkpoint=bands', '--config.encoder.baselines=()')
    start = ('--config.encoder.baselines=()', '--config.data.labels=labels')
    return {
        'stats': ('stats', f'--data={folder}', '--split=test'),
        'bench input': ('bench', 'input', f'--data={folder}', '--split=test'),
        'leaks': ('leaks', f'--checkpoint={run}', f'--data={folder}', '--split=test'),
        'pretrain': (
            'pretrain',
            '--config=configs/pretrain.py:native',
            data,
            work,
            '--config.data.train_split=test',
        ),
        'linear_probe': ('linear_probe', data, work, *bands, '--config.data.labels=labels'),
        'knn': ('knn', data, work, *bands, '--config.data.labels=labels'),
        'finetune': ('finetune', data, work, f'--config.encoder.checkpoint={run}', *start),
    }


# The first three compare every record that they read, as is tested above.
READERS = ('stats', 'bench input', 'pretrain')
JOINERS = ('leaks', 'linear_probe', 'knn', 'finetune')


@pytest.mark.parametrize(
    ('command', 'damage'),
    [
        *((command, damage) for command in READERS + JOINERS for damage in ('missing', 'cut')),
        *((command, 'exchange') for command in JOINERS),
    ],
)
def test_every_command_says_one_sentence(command, damage, copy, run, tmp_path, capsys):
    if damage == 'exchange':
        without_lengths(copy)
        exchange(copy)
    else:
        DAMAGES[damage][0](shard(copy, 'test'))
    assert main.main(['main.py', *command_lines(copy, run, tmp_path / 'out')[command]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f'error: {shard(copy, "test")}: ') or damage == 'exchange'
    assert 'copy' in line and 'array_record' in line


@pytest.mark.parametrize('damage', [*DAMAGES, 'flip', 'exchange', 'report'])
def test_the_doctor_finds_it_and_looks_at_the_rest(damage, copy, capsys):
    if damage == 'exchange':
        exchange(copy)
    elif damage == 'report':
        report = json.loads((copy / shards.REPORT).read_text())
        report['splits']['val']['shard_digests'] = ['0' * 16]
        (copy / shards.REPORT).write_text(json.dumps(report))
    else:
        (flip if damage == 'flip' else DAMAGES[damage][0])(shard(copy, 'test'))
    assert doctor([str(copy)], as_json=True) == 4
    (whole,) = json.loads(capsys.readouterr().out)
    found = {one['code']: one for one in whole['findings'] if one['code'].startswith('split.')}
    assert found.keys() == {'split.fingerprint' if damage == 'report' else 'split.shard'}
    if damage not in ('report', 'exchange'):
        assert str(shard(copy, 'test')) in found['split.shard']['evidence']
    assert whole['looked_at'] >= SIZES['train'] // 2


def test_an_untouched_set_has_no_such_finding(data, capsys):
    doctor([str(data)], as_json=True)
    (whole,) = json.loads(capsys.readouterr().out)
    assert not [one for one in whole['findings'] if one['code'].startswith('split.')]
