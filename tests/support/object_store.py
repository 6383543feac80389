"""A bucket in memory behind `gs://` paths, with the manners of an object store that a disk does not have.

A folder is there as long as an object lies in it: making one makes nothing, and renaming one copies.
"""

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from orbax.checkpoint._src.path import gcs_utils


class Bucket(MemoryFileSystem):
    """The objects of all buckets of one test."""

    store: dict = {}  # noqa: RUF012 - not that of fsspec's own class
    pseudo_dirs: list = []  # noqa: RUF012
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return '/' + path.removeprefix('gs://').strip('/')

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass


def install(monkeypatch) -> Bucket:
    """From now on `gs://` paths of `epath` lead to an empty bucket."""
    bucket = Bucket()
    monkeypatch.setattr(Bucket, 'store', {})
    monkeypatch.setattr(Bucket, 'pseudo_dirs', [])
    monkeypatch.setattr(backend.fsspec_backend, 'fs', lambda path: bucket)
    monkeypatch.setattr(gcs_utils, 'get_bucket', lambda name: None)  # orbax asks Google what kind it is
    return bucket
