"""The TFDS builder of BigEarthNet-MM.

`python main.py convert` writes the same records faster and resumes; this class is for those who build
with TFDS. It needs no TensorFlow when built as ArrayRecord:

    builder = Builder(config='official', data_dir=OUT, file_format='array_record')
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=FOLDER_WITH_BOTH_ARCHIVES))
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tensorflow_datasets as tfds

from data import records
from data.bigearthnet_mm import archive, official, pairs
from data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.errors import InputError


@dataclasses.dataclass
class ArchiveConfig(tfds.core.BuilderConfig):
    """Which folders of the manual directory to read, and into which splits."""

    s1_folder: str = 'BigEarthNet-S1-v1.0'
    s2_folder: str = 'BigEarthNet-v1.0'
    splits: Literal['official', 'one'] = 'official'


class Builder(tfds.core.GeneratorBasedBuilder):
    """BigEarthNet-MM v1 at native resolution, with both acquisition times, place and 43 and 19 classes."""

    VERSION = tfds.core.Version(SCHEMA.version)
    RELEASE_NOTES = {'1.0.0': 'Initial release.'}  # noqa: RUF012 (the name and type are TFDS's)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download BigEarthNet-S1-v1.0.tar.gz and BigEarthNet-S2-v1.0.tar.gz from
    https://zenodo.org/records/12687186 and unpack both into the manual directory.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        ArchiveConfig(name='official', description='The whole archive: train, val, test and rest.'),
        ArchiveConfig(
            name='example',
            description='The six pairs that ship with bigearthnet-common, all in train.',
            s1_folder=official.EXAMPLES['s1'],
            s2_folder=official.EXAMPLES['s2'],
            splits='one',
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=records.features(SCHEMA), **records.dataset_info(SCHEMA)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        root = Path(dl_manager.manual_dir)
        config = self.builder_config
        assert isinstance(config, ArchiveConfig)
        s1_root, s2_root = root / config.s1_folder, root / config.s2_folder
        listing = pairs.find(s1_root, s2_root, config.splits)
        empty = [name for name, found in listing.splits.items() if not found]
        if empty:
            raise InputError(f'{root}: split {empty[0]}: no pair of the archive belongs to it')
        return {
            name: self._generate_examples(found, s1_root, s2_root) for name, found in listing.splits.items()
        }

    def _generate_examples(
        self, found: list[archive.Pair], s1_root: Path, s2_root: Path
    ) -> Iterator[tuple[str, records.Record]]:
        for pair in found:
            yield pair.s2_name, archive.read_pair(pair, s1_root, s2_root)
