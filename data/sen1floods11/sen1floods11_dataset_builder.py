"""The TFDS builder of Sen1Floods11; how to run it: `data/tfds_builder.py`."""

import tensorflow_datasets as tfds

from ..records import Schema
from ..tfds_builder import ArchiveBuilder, ArchiveConfig
from . import chips, schema


class Builder(ArchiveBuilder):
    """Sen1Floods11's hand-labelled chips: Sentinel-1, Sentinel-2 L1C and a map of water."""

    MODULE = chips
    VERSION = tfds.core.Version(schema.SCHEMA.version)
    RELEASE_NOTES = {'1.1.0': 'Initial release.'}  # noqa: RUF012 (the name and type are TFDS's)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Copy the folders data/flood_events/HandLabeled and splits/flood_handlabeled of gs://sen1floods11/v1.1 into
    the folder v1.1 of the manual directory.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        ArchiveConfig(name='official', description='Whole chips of 512 pixels.', paths={'root': 'v1.1'}),
        ArchiveConfig(
            name='tiles_256',
            description='Four tiles of 256 pixels a chip.',
            paths={'root': 'v1.1'},
            settings={'tile': 256},
        ),
    ]

    def schema(self, archive: chips.Archive) -> Schema:
        """The schema of the records, whose size is that of the tiles."""
        return schema.schema(archive.tile)
