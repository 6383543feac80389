"""What the stored numbers of a user's files mean: the settings of the archive against the files' metadata."""

from data.geotiff import refused
from data.paired_folder.settings import Archive
from fusmae_jax.geo.raster import Header
from fusmae_jax.geo.values import DN, OFFSET_TAGS, Declared, Values, baseline
from fusmae_jax.geo.values import values_of as meaning

__all__ = ['OFFSET_TAGS', 'Values', 'baseline', 'values_of']


def values_of(header: Header, modality: str, archive: Archive) -> Values:
    """The values of a file; raises RecordError where metadata and settings disagree or say too little."""
    unit = getattr(archive, f'{modality}_unit')
    one, offset = DN.get(unit, 1.0), archive.s2_offset if modality == 's2' else 'auto'
    declared = Declared(
        prefix=f'{modality}_',
        unit=unit,
        scale=getattr(archive, f'{modality}_scale'),
        offset=None if offset == 'auto' else int(offset) * one,
        nodata=getattr(archive, f'{modality}_nodata'),
        calibration=getattr(archive, f'{modality}_calibration', ''),
        step=one,
    )
    with refused(header.file, modality, ''):
        return meaning(header, modality, declared)
