"""Copies of shards on this machine: the same records, made once, and taken for whole only when they are."""

import dataclasses
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import to_dict
from fusmae_jax.errors import InputError
from fusmae_jax.input import cache, contract, mixture, pipeline
from fusmae_jax.input.contract import Contract, Group, LabelMap, NumberMap
from fusmae_jax.input.source import Source
from fusmae_jax.run.workdir import FREE
from fusmae_jax.shipped.data.synthetic import write
from tests.support.files import flip
from tests.support.tiny import tiny_config

FIELDS = ('s1', 's2_60m')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Twelve records in one shard; read-only."""
    return Path(write(tmp_path_factory.mktemp('data'), 12))


def opened(data, folder, split='train'):
    source = Source(str(data), split, FIELDS)
    source.copy_to(str(folder))
    return source


def files(data, folder):
    return folder / contract.read(data).fingerprint


def copy(data, folder):
    (file,) = (f for f in files(data, folder).iterdir() if f.name.endswith('00000-of-00001'))
    return file


def assert_same(one, other):
    assert len(one) == len(other)
    for i in range(len(one)):
        for name in FIELDS:
            np.testing.assert_array_equal(one[i][name], other[i][name])


def test_a_copy_holds_the_same_records_without_compression(data, tmp_path):
    source, read = Source(str(data), 'train', FIELDS), opened(data, tmp_path)
    assert_same(read, source)
    assert_same(pickle.loads(pickle.dumps(read)), source)
    assert [read.raw(i) for i in range(12)] == [source.raw(i) for i in range(12)]
    assert read.index(['s1_name'])['s1_name'].tolist() == [source[i]['s1_name'].item() for i in range(12)]
    assert copy(data, tmp_path).stat().st_size > 12 * len(source.raw(0))
    assert_same(opened(data, tmp_path, 'train[3:7]'), Source(str(data), 'train[3:7]', FIELDS))


def test_a_copy_is_made_once_and_read_instead_of_the_set(data, tmp_path, capsys):
    here = shutil.copytree(data, tmp_path / 'set')
    opened(here, tmp_path / 'cache')
    assert 'data.cache: copying 1 of 1 shards' in capsys.readouterr().out
    made = copy(here, tmp_path / 'cache').stat().st_mtime_ns
    again = opened(here, tmp_path / 'cache')
    flip(next(here.glob('*.array_record*')))  # nobody reads it any more
    assert_same(again, Source(str(data), 'train', FIELDS))
    assert copy(here, tmp_path / 'cache').stat().st_mtime_ns == made and not capsys.readouterr().out


@pytest.mark.parametrize('damage', ['cut', 'no note', 'half a note', 'another source', 'a part'])
def test_what_is_not_whole_is_copied_again(damage, data, tmp_path, capsys):
    opened(data, tmp_path)
    file = copy(data, tmp_path)
    note = file.with_name(f'{file.name}.json')
    if damage == 'cut':
        os.truncate(file, file.stat().st_size // 2)
    elif damage == 'no note':
        note.unlink()
    elif damage == 'half a note':
        note.write_text(note.read_text()[:10])
    elif damage == 'another source':
        note.write_text(json.dumps(json.loads(note.read_text()) | {'source_bytes': 1}))
    else:
        note.unlink()
        file.rename(file.with_name(f'{file.name}.part'))
    capsys.readouterr()
    assert_same(opened(data, tmp_path), Source(str(data), 'train', FIELDS))
    assert 'copying 1 of 1' in capsys.readouterr().out


def test_a_copy_that_rotted_is_one_sentence(data, tmp_path):
    source = opened(data, tmp_path)
    flip(copy(data, tmp_path))
    with pytest.raises(InputError, match=f'{copy(data, tmp_path)}: record .* cannot be read'):
        list(map(source.__getitem__, range(len(source))))


def test_a_damaged_shard_is_not_copied(data, tmp_path):
    here = shutil.copytree(data, tmp_path / 'set')
    flip(next(here.glob('*.array_record*')))
    with pytest.raises(InputError, match=r'array_record.*: cannot be read .*copy it again'):
        opened(here, tmp_path / 'cache')
    assert not [f for f in files(here, tmp_path / 'cache').iterdir() if f.suffix == '.json']


def test_several_at_once_make_one_copy(data, tmp_path, monkeypatch):
    made, original = [], cache._copy
    monkeypatch.setattr(cache, '_copy', lambda shard: (made.append(shard), original(shard)))
    errors = []

    def start():
        try:
            assert_same(opened(data, tmp_path), Source(str(data), 'train', FIELDS))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(made) == 1


def test_too_little_space_and_a_bucket_are_refused(data, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"data\.cache='gs://b/c': must be a folder of this machine"):
        opened(data, 'gs://b/c')
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(InputError, match=r'still to be copied there, and 0\.0 GiB are free'):
        opened(data, tmp_path)


def test_space_is_counted_for_maps_too():
    """They may be as large as the images, and are copied with them."""
    image = Group('s1', ('VV', 'VH'), (8, 8), 'float32', 'dB')
    plain = Contract(groups={'s1': image})
    labels = LabelMap(('a', 'b'), (0, 1), size=(16, 16), dtype='uint8')
    heights = NumberMap('height', 'm', size=(4, 4), dtype='float32')
    mapped = dataclasses.replace(plain, maps={'class': labels}, number_maps={'height': heights})
    assert cache.record_bytes(mapped) - cache.record_bytes(plain) == 16 * 16 + 4 * 4 * 4


def test_a_run_reads_the_same_batches_from_copies(data, tmp_path):
    config = tiny_config(data=cfg.Data(path=str(data), val_split='train[:4]', cache=str(tmp_path)))
    first, second = mixture.open_train(config), mixture.open_train(config)
    second.copy_to(config.data.cache)
    held = mixture.open_validation(config)['']
    assert str(tmp_path) in str(held._files[0].filename)
    one, other = (pipeline.train_batches(m.sources[''], 5, 4, range(4))[11] for m in (first, second))
    for name, values in one.items():
        np.testing.assert_array_equal(other[name], values)
    # Where copies lie changes no result, and no digest of settings stored before there were any.
    assert 'data.cache' in FREE
    assert 'cache' not in to_dict(dataclasses.replace(config.data, cache=''))
