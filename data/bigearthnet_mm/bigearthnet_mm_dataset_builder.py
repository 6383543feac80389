"""The TFDS builder of BigEarthNet-MM; how to run it: `data/tfds_builder.py`."""

import tensorflow_datasets as tfds

from ..tfds_builder import ArchiveBuilder, ArchiveConfig
from . import lists, pairs
from .schema import SCHEMA


class Builder(ArchiveBuilder):
    """BigEarthNet-MM v1 at native resolution, with both acquisition times, place and 43 and 19 classes."""

    MODULE = pairs
    VERSION = tfds.core.Version(SCHEMA.version)
    RELEASE_NOTES = {'1.0.0': 'Initial release.'}  # noqa: RUF012 (the name and type are TFDS's)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download BigEarthNet-S1-v1.0.tar.gz and BigEarthNet-S2-v1.0.tar.gz from
    https://zenodo.org/records/12687186 and unpack both into the manual directory.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        ArchiveConfig(
            name='official',
            description='The whole archive: train, val, test and rest.',
            paths={'s1_root': 'BigEarthNet-S1-v1.0', 's2_root': 'BigEarthNet-v1.0'},
        ),
        ArchiveConfig(
            name='example',
            description='The six pairs that ship with bigearthnet-common, all in train.',
            paths={'s1_root': lists.EXAMPLES['s1'], 's2_root': lists.EXAMPLES['s2']},
            settings={'splits': 'one'},
        ),
    ]
