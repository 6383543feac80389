"""Writing whole or not at all, and guarded reads."""

import errno

import numpy as np
import pytest
from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import InputError
from tests.support import object_store

WRITERS = {
    'json': lambda file: storage.write_json(file, {'new': 1}),
    'text': lambda file: storage.write_text(file, 'new', shared=True),
    'npz': lambda file: storage.write_npz(file, {'new': np.ones(3)}),
}


@pytest.mark.parametrize('kind', WRITERS)
def test_what_stops_before_the_renaming_leaves_the_old_file(tmp_path, monkeypatch, kind):
    file = epath.Path(tmp_path) / 'file'
    file.write_text('old')

    def killed(*_):
        assert len([*tmp_path.iterdir()]) == 2  # the new content is there, under another name
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(file), 'replace', killed)
        with pytest.raises(KeyboardInterrupt):
            WRITERS[kind](file)
    assert [path.name for path in tmp_path.iterdir()] == ['file'] and file.read_text() == 'old'
    WRITERS[kind](file)
    assert [path.name for path in tmp_path.iterdir()] == ['file'] and file.read_bytes() != b'old'


def test_arrays_that_fail_half_way_leave_the_old_file_on_a_disk_and_in_a_bucket(tmp_path, monkeypatch):
    bucket = object_store.install(monkeypatch)

    class Broken:
        def __array__(self, *_, **__):
            raise RuntimeError('half-way')

    for file in (epath.Path(tmp_path) / 'x.npz', epath.Path('gs://bucket/x.npz')):
        storage.write_npz(file, {'a': np.arange(3)}, compressed=True)
        with pytest.raises(RuntimeError, match='half-way'):
            storage.write_npz(file, {'a': np.ones(9), 'b': Broken()})
        with storage.read_npz(file, 'remove it') as archive:
            np.testing.assert_array_equal(archive['a'], np.arange(3))
    assert [*bucket.store] == ['/bucket/x.npz']


def test_an_object_is_written_directly(monkeypatch):
    object_store.install(monkeypatch)
    file = epath.Path('gs://bucket/file.json')
    monkeypatch.setattr(type(file), 'replace', lambda *_: pytest.fail('renamed in a bucket'))
    storage.write_json(file, {'a': 1}, shared=True)
    assert storage.read_json(file, 'remove it') == {'a': 1}


def test_a_full_disk_and_damaged_files_are_one_sentence(tmp_path, monkeypatch):
    file = epath.Path(tmp_path) / 'file'
    file.write_text('{')
    with pytest.raises(InputError, match=r'file: not valid JSON \(.*\); remove it$'):
        storage.read_json(file, 'remove it')
    with (
        pytest.raises(InputError, match=r'file: cannot be read \(.*\); remove it$'),
        storage.read_npz(file, 'remove it'),
    ):
        pass
    monkeypatch.setattr(
        type(file), 'replace', lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'full'))
    )
    with pytest.raises(storage.SaveError, match='the disk is full'):
        storage.write_text(file, 'new')
    assert file.read_text() == '{'
