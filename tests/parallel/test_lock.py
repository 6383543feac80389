"""One writer a place: who is refused, who may go on at once, and who has to wait for a sign of life."""

import errno
import fcntl
import json
import subprocess
import sys
import time

import pytest
from etils import epath

from fusmae_jax.errors import InputError
from fusmae_jax.parallel import lock
from fusmae_jax.parallel.lock import Lock, hold
from fusmae_jax.storage import SaveError
from tests.support import object_store

HOLDS = """
import sys, time
from fusmae_jax.parallel import lock
with lock.hold(sys.argv[1], 'a test'):
    print('held', flush=True)
    time.sleep(99)
"""
BUCKET = 'gs://bucket/run'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {'BEAT': 0.05, 'EXPIRY': 0.6, 'SETTLE': 0.01, 'POLL': 0.02}.items():
        monkeypatch.setattr(lock, name, seconds)


@pytest.fixture
def bucket(monkeypatch):
    return object_store.install(monkeypatch)


@pytest.fixture
def without_flock(monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', refuses)


def owned(place, **changes):
    """The file of an owner that was killed, or of one that somebody else keeps alive."""
    one = Lock(place, 'a run')
    about = one._about | changes
    place = epath.Path(place)
    place.mkdir(parents=True, exist_ok=True)
    (place / lock.NAME).write_text(json.dumps(about))
    return about


ELSEWHERE = {'process': ['another machine', 'pid:[1]', 7, 99], 'host': 'node-7', 'token': 'another'}


def test_the_second_is_refused_and_told_who_is_at_work(tmp_path):
    place = tmp_path / 'run[1]'
    with hold(place, 'a conversion'):
        with pytest.raises(InputError, match=r'a conversion \(process \d+ on .*, since .*\) is at work here'):
            Lock(place, 'another').take()
        with hold(place, 'something else', '.other.lock'):
            pass
    assert not place.exists()  # as it was before
    place.mkdir()
    with hold(place, 'a conversion'):
        pass
    assert list(place.iterdir()) == []


def test_a_killed_process_leaves_the_place_free_at_once(tmp_path):
    with subprocess.Popen([sys.executable, '-c', HOLDS, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        with pytest.raises(InputError, match=f'a test .process {other.pid} '):
            Lock(tmp_path, 'a run').take()
        other.kill()
    assert (tmp_path / lock.NAME).exists()
    start = time.monotonic()
    with hold(tmp_path, 'a run'):
        assert time.monotonic() - start < lock.EXPIRY / 2


@pytest.mark.parametrize('where', ['disk', 'disk without flock', 'bucket'])
def test_an_owner_of_another_machine_is_watched(where, tmp_path, request, capsys):
    if where != 'disk':
        request.getfixturevalue('bucket' if where == 'bucket' else 'without_flock')
    place = BUCKET if where == 'bucket' else tmp_path
    owned(place, **ELSEWHERE)
    start = time.monotonic()
    with hold(place, 'a run'):
        assert time.monotonic() - start >= lock.EXPIRY
    assert 'process 7 on node-7' in capsys.readouterr().out
    owned(place, **ELSEWHERE)
    newcomer = Lock(place, 'a run')
    assert not newcomer.take()
    owned(place, **ELSEWHERE, beat=1)  # a sign of life
    with pytest.raises(InputError, match=r'process 7 on node-7.* is at work here'):
        newcomer.take()


@pytest.mark.parametrize('where', ['disk without flock', 'bucket'])
def test_without_flock_a_process_of_this_machine_is_asked_for(where, tmp_path, request):
    request.getfixturevalue('bucket' if where == 'bucket' else 'without_flock')
    place = BUCKET if where == 'bucket' else tmp_path
    with hold(place, 'a run'), pytest.raises(InputError, match='is at work here'):
        Lock(place, 'another').take()
    about = owned(place, token='another')
    machine, namespace, number, start = about['process']
    if start < 0:
        pytest.skip('this system does not say when a process began')
    # It was killed, and its number came again.
    owned(place, token='another', process=[machine, namespace, number, start + 1])
    newcomer = Lock(place, 'a run')
    assert newcomer.take()
    newcomer.release()


def test_who_was_not_heard_of_and_is_replaced_ends(bucket):
    one = Lock(BUCKET, 'a run')
    assert one.take()
    one.check()
    owned(BUCKET, **ELSEWHERE)
    limit = time.monotonic() + 20
    while one._lost is None and time.monotonic() < limit:
        time.sleep(0.01)
    with pytest.raises(SaveError, match=r'process 7 on node-7.* has taken over'):
        one.check()
    one.release()
    assert 'node-7' in (epath.Path(BUCKET) / lock.NAME).read_text()  # it is no longer ours to remove


def test_of_two_that_start_at_the_same_moment_the_later_one_stays(bucket, monkeypatch):
    one = Lock(BUCKET, 'a run')
    monkeypatch.setattr(time, 'sleep', lambda _: owned(BUCKET, **ELSEWHERE))
    with pytest.raises(InputError, match='node-7'):
        one.take()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='nothing can be written there'):
        Lock(tmp_path / 'file', 'a run').take()
