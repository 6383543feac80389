"""The TFDS builder of SSL4EO-S12; how to run it: `data/tfds_builder.py`."""

from typing import Any

import tensorflow_datasets as tfds

from ..records import Schema
from ..tfds_builder import ArchiveBuilder, ArchiveConfig
from . import locations
from .schema import Optical, Version


def _config(name: str, version: Version, optical: Optical, folder: str) -> ArchiveConfig:
    return ArchiveConfig(
        name=name,
        version=f'{version}.0',
        description=f'Version {version} with {optical}.',
        paths={'root': folder},
        settings={'version': version, 'optical': optical},
    )


class Builder(ArchiveBuilder):
    """SSL4EO-S12: Sentinel-1 and Sentinel-2 patches of 2.64 km x 2.64 km, four seasons, no labels."""

    MODULE = locations
    VERSION = tfds.core.Version('1.1.0')
    RELEASE_NOTES = {  # noqa: RUF012 (the name and type are TFDS's)
        '1.0.0': 'The archive of 2022, a GeoTIFF for each band.',
        '1.1.0': 'The archive of 2025: sensors aligned, zarr files.',
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Version 1.1: download https://huggingface.co/datasets/embed2scale/SSL4EO-S12-v1.1-Zarr into the folder
    SSL4EO-S12-v1.1 of the manual directory. Version 1.0: unpack s1, s2a and s2c of
    https://mediatum.ub.tum.de/1660427 into its folder SSL4EO-S12.
    """
    BUILDER_CONFIGS = [  # noqa: RUF012
        _config('v1_1_l2a', '1.1', 'S2L2A', 'SSL4EO-S12-v1.1'),
        _config('v1_1_l1c', '1.1', 'S2L1C', 'SSL4EO-S12-v1.1'),
        _config('v1_0_l2a', '1.0', 'S2L2A', 'SSL4EO-S12'),
        _config('v1_0_l1c', '1.0', 'S2L1C', 'SSL4EO-S12'),
    ]

    def schema(self, archive: Any) -> Schema:
        """That of the version and level."""
        return locations.archive_schema(archive)
