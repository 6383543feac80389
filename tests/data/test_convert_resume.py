"""Conversions that are killed, repeated, or run on other workers."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.parallel import lock
from fusmae_jax.shipped.data import sharded
from tests.support.data_fixtures import Folders, digests, metadata, multiply, untimed

ROOT = Path(__file__).resolve().parents[2]


CONVERT = """
import sys
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm import pairs
from tests.support import short_table
if __name__ == '__main__':
    short_table.install()
    source = pairs.source(pairs.Archive(sys.argv[1], sys.argv[2], 'one'))
    beam = sharded.Beam(direct_num_workers=int(sys.argv[4]))
    sharded.convert(source, sys.argv[3], records_per_shard=4, beam=beam)
    import tensorflow_datasets as tfds
    found = tfds.builder_from_directory(sys.argv[3] + '/bigearthnet_mm/1.0.0').as_data_source(split='train')
    assert len(found) and found[0]['s1'].shape == (120, 120, 2)
    loaded = {name.split('.')[0] for name in sys.modules}
    assert not loaded & {'tensorflow', 'torch'}, loaded
"""


def start(archive: Folders, output: Path, workers: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', CONVERT, str(archive.s1), str(archive.s2), str(output), str(workers)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope='module')
def larger(example_archive, tmp_path_factory):
    """48 pairs, and what an undisturbed conversion makes of them in this process."""
    archive = multiply(example_archive, tmp_path_factory.mktemp('larger'), 8)
    folder, _ = sharded.convert(archive.source(), tmp_path_factory.mktemp('whole'), records_per_shard=4)
    return archive, folder


def test_a_killed_conversion_resumes_to_the_same_files(larger, tmp_path):
    archive, whole = larger
    process = start(archive, tmp_path, workers=1)
    state = tmp_path / 'bigearthnet_mm' / '1.0.0.incomplete' / 'state'
    limit = time.monotonic() + 60
    while len(list(state.glob('*.done.json'))) < 3 and time.monotonic() < limit:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / 'bigearthnet_mm' / '1.0.0').exists()
    assert not list(tmp_path.rglob('dataset_info.json'))
    finished = {file.name.removesuffix('.done.json') for file in state.glob('*.done.json')}
    assert 3 <= len(finished) < 12, finished
    kept = {name: (state.parent / 'data' / name).stat().st_ino for name in finished}

    folder, report = sharded.convert(archive.source(), tmp_path, records_per_shard=4)
    assert {name: (Path(folder) / name).stat().st_ino for name in finished} == kept
    assert report['timing']['records_written'] < 48
    assert digests(folder) == digests(whole)
    assert untimed(folder) == untimed(whole)
    assert not state.parent.exists()


@pytest.mark.slow  # a killed conversion is compared every time
def test_two_workers_write_the_same_files_without_tensorflow_or_torch(larger, tmp_path):
    archive, whole = larger
    process = start(archive, tmp_path, workers=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert digests(tmp_path / 'bigearthnet_mm' / '1.0.0') == digests(whole)


@pytest.mark.usefixtures('in_a_loop')
def test_other_inputs_do_not_mix(example_archive, tmp_path):
    archive = example_archive.copy(tmp_path)
    next(archive.patch('s2').glob('*_B02.tif')).unlink()
    with pytest.raises(InputError, match='B02'):
        sharded.convert(archive.source(), tmp_path / 'out')
    with pytest.raises(InputError, match='records_per_shard: 512 before, 2 now'):
        sharded.convert(archive.source(), tmp_path / 'out', records_per_shard=2)
    # Skipping instead of failing is not another data set, only another way to its end.
    folder, report = sharded.convert(archive.source(), tmp_path / 'out', on_error='skip')
    assert report['records'] == 5
    # What is complete is left alone, or refused.
    before = digests(folder)
    assert untimed(sharded.convert(archive.source(), tmp_path / 'out')[0]) == untimed(folder)
    assert digests(folder) == before
    with pytest.raises(InputError, match='a data set with other inputs or settings is here already'):
        sharded.convert(example_archive.source(), tmp_path / 'out')


@pytest.mark.usefixtures('in_a_loop')
def test_two_conversions_into_one_output(example_archive, tmp_path):
    place = tmp_path / 'bigearthnet_mm'
    with lock.hold(place, 'a conversion', '.1.0.0.lock'):
        with pytest.raises(InputError, match=r'a conversion .* is at work here'):
            sharded.convert(example_archive.source(), tmp_path)
        assert [file.name for file in place.iterdir()] == ['.1.0.0.lock']
    folder, _ = sharded.convert(example_archive.source(), tmp_path)
    with lock.hold(place, 'a conversion', '.1.0.0.lock'):  # of another that begins: this one is finished
        assert sharded.convert(example_archive.source(), tmp_path)[0] == folder
    assert [file.name for file in place.iterdir()] == ['1.0.0']


@pytest.mark.parametrize('where', ['shard', 'sidecar', 'end'])
def test_a_full_disk_is_one_sentence_and_the_conversion_goes_on(
    where, example_archive, tmp_path, monkeypatch, request
):
    if where != 'shard':  # whose error comes through Beam
        request.getfixturevalue('in_a_loop')

    def full(*_, **__):
        # As ArrayRecord says it, and as the system does.
        raise (
            RuntimeError('write() failed: No space left on device')
            if where == 'shard'
            else OSError(28, 'full')
        )

    owner, name = {'shard': (sharded, '_writer'), 'sidecar': (sharded.records.IndexRows, 'arrays')}.get(
        where, (sharded, '_write_index')
    )
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(InputError, match=r'the disk is full .*goes on from there') as caught:
            sharded.convert(example_archive.source(), tmp_path)
    assert '\n' not in str(caught.value)
    folder, result = sharded.convert(example_archive.source(), tmp_path)
    assert result['splits']['train']['records'] == 6 and not folder.with_name('1.0.0.incomplete').exists()


@pytest.mark.usefixtures('in_a_loop')
def test_a_shard_with_skips_is_converted_again(example_archive, tmp_path):
    archive = example_archive.copy(tmp_path)
    for index in (0, 1):
        metadata(archive.patch('s2', index))[0].rename(tmp_path / str(index))
    with pytest.raises(InputError, match='2 records cannot be used'):
        sharded.convert(archive.source(), tmp_path / 'out', records_per_shard=1, on_error='skip', max_skips=1)
    for index in (0, 1):
        (tmp_path / str(index)).rename(
            archive.patch('s2', index) / f'{archive.patch("s2", index).name}_labels_metadata.json'
        )
    _, report = sharded.convert(archive.source(), tmp_path / 'out', records_per_shard=1)
    assert report['records'] == 6
    assert report['timing']['records_written'] == 2


def test_the_level_of_the_log_comes_back_where_an_import_fails():
    logging.disable(logging.INFO)
    try:
        with contextlib.suppress(ImportError), sharded._quiet_import():
            assert logging.root.manager.disable == logging.WARNING
            raise ImportError('no beam')
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
