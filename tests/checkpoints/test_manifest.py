"""What counts as damage of a checkpoint and what does not, and that no start throws all of them away."""

import errno
import os
import shutil

import jax.numpy as jnp
import pytest
from etils import epath

from fusmae_jax.checkpoints import manifest
from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.errors import InputError
from tests.support.checkpoint_files import largest, state_on, three_steps
from tests.support.files import flip


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.isdigit())


def test_if_none_is_whole_nothing_is_moved_and_the_run_does_not_begin_again(tmp_path):
    folder = three_steps(tmp_path).parent
    for step in names(folder):
        flip(largest(folder / step / 'params'))
    with pytest.raises(InputError, match=r'none of the checkpoints is whole \(3: .* 2: .* 1: .* from step 0'):
        Checkpoints(tmp_path, keep=3)
    assert names(folder) == ['1', '2', '3'] and not (tmp_path / manifest.ASIDE).exists()


@pytest.mark.parametrize('code', [errno.ESTALE, errno.EACCES, errno.EIO])
@pytest.mark.parametrize('place', ['a file', 'the folder'])
def test_an_error_of_the_moment_is_no_damage(code, place, tmp_path, monkeypatch):
    folder = three_steps(tmp_path).parent

    def fails(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        # A test that runs as root is denied nothing, so that the error has to be made.
        owner, name = (manifest, '_checksum') if place == 'a file' else (os, 'listdir')
        patch.setattr(owner, name, fails)
        with pytest.raises(InputError, match=f'cannot be read at this moment .*{os.strerror(code)}'):
            Checkpoints(tmp_path, keep=3)
    assert names(folder) == ['1', '2', '3'] and not (tmp_path / manifest.ASIDE).exists()
    again = Checkpoints(tmp_path, keep=3)
    assert again.latest() == 3
    again.close()


def test_values_that_cannot_be_read_at_this_moment_are_no_damage_either(tmp_path, monkeypatch):
    import tensorstore as ts

    newest = three_steps(tmp_path)
    (newest / manifest.NAME).unlink()

    def fails(*_):
        raise ValueError('UNAVAILABLE: Error opening "d/1": Stale file handle')

    monkeypatch.setattr(ts.KvStore, 'open', fails)
    with pytest.raises(InputError, match=r'cannot be read at this moment .*UNAVAILABLE'):
        manifest.damage(epath.Path(newest))


def halved(file):
    os.truncate(file, file.stat().st_size // 2)


READ_THROUGH = {
    'list of weights': lambda step: (step / 'params' / 'manifest.ocdbt').unlink(),
    'list of averages': lambda step: (step / 'ema' / 'manifest.ocdbt').unlink(),
    'averages': lambda step: [halved(file) for file in (step / 'ema').rglob('d/*')],
    'part of averages': lambda step: shutil.rmtree(step / 'ema'),
    'records': lambda step: [halved(file) for file in (step / 'seen').rglob('d/*')],
    'settings': lambda step: (step / 'meta' / '_strings.json').unlink(),
    'metrics': lambda step: os.truncate(step / 'metrics' / 'metrics', 0),
    'list of parts': lambda step: (step / manifest.INDEX).unlink(),
}


@pytest.fixture(scope='module')
def without_manifest(tmp_path_factory):
    """A checkpoint with all its parts, whose writer was killed before the manifest."""
    folder = tmp_path_factory.mktemp('whole')
    checkpoints = Checkpoints(folder, keep=1)
    state = state_on(2) | {'ema': {'kernel': 2 * jnp.ones((8, 4))}}
    checkpoints.save(state, {'config': {}}, val_loss=1.0, seen=bytes(range(256)))
    checkpoints.close()
    (folder / 'checkpoints' / '1' / manifest.NAME).unlink()
    return folder / 'checkpoints' / '1'


@pytest.mark.parametrize('name', READ_THROUGH)
def test_without_a_manifest_every_part_is_read_through(name, without_manifest, tmp_path):
    step = tmp_path / '1'
    shutil.copytree(without_manifest, step)
    assert manifest.damage(epath.Path(step)) is None
    READ_THROUGH[name](step)
    assert 'cannot be read (' in manifest.damage(epath.Path(step))
