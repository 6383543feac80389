"""The TFDS builder of GEO-Bench-2; how to run it: `data/tfds_builder.py`."""

import tensorflow_datasets as tfds

from ..tfds_builder import ArchiveBuilder, ArchiveConfig
from . import samples
from .schema import SCHEMA


class Builder(ArchiveBuilder):
    """benv2 of GEO-Bench-2, with Sentinel-1 as VV, VH."""

    MODULE = samples
    VERSION = tfds.core.Version(SCHEMA.version)
    RELEASE_NOTES = {'1.0.0': 'Initial release.'}  # noqa: RUF012 (the name and type are TFDS's)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download geobench_benv2.tortilla from https://hf.co/datasets/aialliance/benv2 into the manual directory.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        ArchiveConfig(
            name='official',
            description='The splits of the benchmark.',
            paths={'path': 'geobench_benv2.tortilla'},
        ),
    ]
