"""The TFDS builder of BigEarthNet v2; how to run it: `data/tfds_builder.py`."""

import tensorflow_datasets as tfds

from ..records import Schema
from ..tfds_builder import ArchiveBuilder, ArchiveConfig
from . import pairs, schema

_PATHS = {'s1_root': 'BigEarthNet-S1', 's2_root': 'BigEarthNet-S2', 'metadata': 'metadata.parquet'}


class Builder(ArchiveBuilder):
    """BigEarthNet v2 (reBEN) at native resolution, with times, place, 19 classes and maps of land cover."""

    MODULE = pairs
    VERSION = tfds.core.Version(schema.SCHEMA.version)
    RELEASE_NOTES = {'1.0.0': 'Initial release.'}  # noqa: RUF012 (the name and type are TFDS's)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download BigEarthNet-S1.tar.zst, BigEarthNet-S2.tar.zst and metadata.parquet (for `everything` also
    Reference_Maps.tar.zst and metadata_for_patches_with_snow_cloud_or_shadow.parquet) from
    https://zenodo.org/records/10891137 and unpack the archives into the manual directory.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        ArchiveConfig(
            name='official', description='Patches free of snow and cloud: train, val, test.', paths=_PATHS
        ),
        ArchiveConfig(
            name='everything',
            description='All patches, also under snow or cloud, with their reference maps.',
            paths={**_PATHS, 'maps_root': pairs.MAPS},
            settings={'with_snow_cloud': True, 'reference_maps': True},
        ),
    ]

    def schema(self, archive: pairs.Archive) -> Schema:
        """The schema of the records, with the reference map where it is asked for."""
        return schema.schema(archive.reference_maps)
