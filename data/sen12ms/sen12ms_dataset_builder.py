"""The TFDS builder of SEN12MS; how to run it: `data/tfds_builder.py`."""

import tensorflow_datasets as tfds

from ..records import Schema
from ..tfds_builder import ArchiveBuilder, ArchiveConfig
from . import schema, triplets


class Builder(ArchiveBuilder):
    """SEN12MS with all 13 Sentinel-2 bands and scene labels of the IGBP land cover."""

    MODULE = triplets
    VERSION = tfds.core.Version(schema.SCHEMA.version)
    RELEASE_NOTES = {'1.0.0': 'Initial release.'}  # noqa: RUF012 (the name and type are TFDS's)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download the twelve archives ROIs*_{s1,s2,lc}.tar.gz from https://mediatum.ub.tum.de/1474000 and unpack
    all of them into the folder SEN12MS of the manual directory.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        ArchiveConfig(
            name='official',
            description='Hold-out scenes in test, the former validation scenes of the authors in val.',
            paths={'root': 'SEN12MS'},
        ),
        ArchiveConfig(
            name='train_test',
            description='The same without val, whose scenes are in train.',
            paths={'root': 'SEN12MS'},
            settings={'val': 'none'},
        ),
        ArchiveConfig(
            name='maps',
            description='As official, with the land cover of each pixel.',
            paths={'root': 'SEN12MS'},
            settings={'maps': True},
        ),
    ]

    def schema(self, archive: triplets.Archive) -> Schema:
        """The schema of the records, with the maps where they are asked for."""
        return schema.schema(archive.maps)
