"""Fixtures and helpers over the six real pairs that ship with bigearthnet-common."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm import pairs
from tests.support import short_table

short_table.install()


class Folders(NamedTuple):
    """The two folders of an archive."""

    s1: Path
    s2: Path

    def copy(self, folder: Path) -> 'Folders':
        """The same pairs in a folder that a test may damage."""
        return Folders(
            Path(shutil.copytree(self.s1, folder / 's1')), Path(shutil.copytree(self.s2, folder / 's2'))
        )

    def patch(self, sensor: str, index: int = 0) -> Path:
        """The folder of one patch, in the order of names."""
        return sorted(getattr(self, sensor).iterdir())[index]

    def source(self, splits='one', on_error='fail'):
        """The archive as the converter takes it, in one split unless said otherwise."""
        return pairs.source(pairs.Archive(str(self.s1), str(self.s2), splits), on_error)


def digests(folder: Path) -> dict[str, str]:
    """The content of every file of a data set, except the report, which holds times."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != 'conversion_report.json'
    }


def untimed(folder: Path) -> dict:
    """The report of a conversion without its times."""
    report = json.loads((folder / 'conversion_report.json').read_text())
    return {key: value for key, value in report.items() if key != 'timing'}


def metadata(patch: Path) -> tuple[Path, dict]:
    """The JSON file of a patch and what it holds."""
    file = patch / f'{patch.name}_labels_metadata.json'
    return file, json.loads(file.read_text())


def read(folder: Path, split: str = 'train'):
    """The records of a split, without TensorFlow."""
    return tfds.builder_from_directory(folder).as_data_source(split=split)


def by_name(examples) -> dict:
    """Records by the name of their Sentinel-2 patch."""
    return {example['s2_name']: example for example in examples}


def assert_same_records(left, right):
    """Two collections of records hold the same ones, to the last bit and type."""
    left, right = by_name(left), by_name(right)
    assert left.keys() == right.keys()
    for name, record in left.items():
        assert record.keys() == right[name].keys()
        for field, value in record.items():
            np.testing.assert_array_equal(value, right[name][field], err_msg=f'{name}: {field}')
            assert getattr(value, 'dtype', None) == getattr(right[name][field], 'dtype', None)


def folders(archive: pairs.Archive) -> Folders:
    """The folders of an archive."""
    return Folders(Path(archive.s1_root), Path(archive.s2_root))


def multiply(archive: Folders, folder: Path, copies: int) -> Folders:
    """An archive with every pair `copies` times under new names: cell columns from 100 on do not exist."""
    result = Folders(folder / 's1', folder / 's2')
    for s1_patch in sorted(archive.s1.iterdir()):
        s2_patch = archive.s2 / metadata(s1_patch)[1]['corresponding_s2_patch']
        for copy in range(copies):
            s1_name, s2_name = (_renamed(patch.name, copy) for patch in (s1_patch, s2_patch))
            _copy(s2_patch, result.s2 / s2_name, {})
            _copy(s1_patch, result.s1 / s1_name, {'corresponding_s2_patch': s2_name})
    return result


def _renamed(name: str, copy: int) -> str:
    head, h, v = name.rsplit('_', 2)
    return f'{head}_{100 * (copy + 1) + int(h)}_{v}'


def _copy(patch: Path, target: Path, changes: dict) -> None:
    target.mkdir(parents=True)
    for file in patch.iterdir():
        shutil.copyfile(file, target / file.name.replace(patch.name, target.name))
    if changes:
        file, values = metadata(target)
        file.write_text(json.dumps({**values, **changes}))


@pytest.fixture
def in_a_loop(monkeypatch):
    """Shards are converted one after the other without Beam, which takes longer than six records do."""

    def loop(missing, job, *_):
        for name in missing:
            sharded.convert_shard(name, job)

    monkeypatch.setattr(sharded, '_pipeline', loop)


@pytest.fixture(scope='session')
def example_archive(tmp_path_factory) -> Folders:
    """The six real pairs as they lie on disk; read-only."""
    return folders(pairs.examples(tmp_path_factory.mktemp('archive')))


@pytest.fixture(scope='session')
def example_dataset(example_archive, tmp_path_factory) -> Path:
    """The six real pairs as a converted data set, all in train; read-only."""
    folder, _ = sharded.convert(example_archive.source(), tmp_path_factory.mktemp('data'))
    return Path(folder)
