"""The TFDS builder of a user's own GeoTIFFs; how to run it: `data/tfds_builder.py`.

There is no fixed archive, so the settings come with the builder. Its records follow from the files, so the
folders must be absolute; `manual_dir` is any folder, because TFDS wants one:

    settings = {'s1_root': '/data/s1', 's1_unit': 'dB', ...}
    config = ArchiveConfig(name='mine', description='Tiles of mine.', settings=settings)
    builder = Builder(config=config, data_dir=OUT, file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir='/data'))
"""

from typing import Any

import tensorflow_datasets as tfds

from ..records import Schema
from ..tfds_builder import ArchiveBuilder
from . import pairs, schema


class Builder(ArchiveBuilder):
    """Tiles of any size from a user's own Sentinel-1 and Sentinel-2 GeoTIFFs."""

    MODULE = pairs
    VERSION = tfds.core.Version(schema.VERSION)
    RELEASE_NOTES = {schema.VERSION: 'Initial release.'}  # noqa: RUF012 (the name and type are TFDS's)
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Nothing is downloaded: the settings name folders of this machine.'

    def schema(self, archive: Any) -> Schema:
        """The schema follows from the files and the settings."""
        return pairs.source(archive).schema
