"""The schema of records of a user's folder, which follows from the files and the settings."""

from collections.abc import Sequence
from typing import Literal

from fusmae_jax.geo.bands import RADAR
from fusmae_jax.input.contract import LabelMap, NumberMap, Product

from ..records import Field, Schema
from .layout import RecordLayout
from .maps import MAP, label_words
from .settings import Archive
from .table import FACTS, TIME
from .targets import FIELD, words

Level = Literal['', 'L1C', 'L2A']
Orbit = Literal['', 'asc', 'desc', 'mixed']
VERSION = '1.0.0'
TITLES = {'s1': 'Sentinel-1', 's1_desc': 'descending Sentinel-1', 's2': 'Sentinel-2', 'dem': 'elevation'}


def make_schema(
    archive: Archive, layout: RecordLayout, columns: Sequence[str], baseline: str, level: Level
) -> Schema:
    """The schema; `columns` are those of the table, `baseline` and `level` what settings or metadata name."""
    fields = {
        'name': Field(
            'text', 'name of the image and corner of the tile in it; unique, the key of the record'
        ),
        'scene': Field('text', 'what this record shares with its neighbours: the image that it was cut from'),
        'window': Field('int32', 'row and column of the upper left pixel in the finest file', (2,)),
        'epsg': Field('int32', 'EPSG code of the projected reference system; -1 for a chip without a place'),
        'upper_left': Field('float64', 'easting and northing of the upper left corner, metres', (2,)),
    }
    for modality in archive.modalities:
        title = TITLES[modality]
        fields[f'{modality}_name'] = Field(
            'text', f'{title} file without its extension, and the same corner; empty if it is missing'
        )
        fields[f'{modality}_valid'] = Field('float32', f'share of {title} values that are valid, 0 to 1')
    fields |= {name: FACTS[name] for name in FACTS if name in columns or name in _times(archive)}
    if layout.map:
        about = layout.map
        what = 'class' if isinstance(about, LabelMap) else 'number'
        meaning = f'{what} of each pixel of {about.resolution:g} m: {label_words(about)}'
        fields[MAP] = Field(about.dtype, meaning, about.size, indexed=False)
    if layout.classes:
        meaning = 'multi-hot; every tile has the labels of its image'
        fields['labels'] = Field('uint8', meaning, (len(layout.classes),))
    if layout.targets:
        meaning = f'{words(layout.targets)}; NaN where it is missing; every tile has the numbers of its image'
        fields[FIELD] = Field('float32', meaning, (len(layout.targets.names),))
    return Schema(
        name=archive.name,
        version=VERSION,
        groups=layout.groups,
        fields=fields,
        products={m: _product(archive, m, baseline, level) for m in archive.modalities},
        key='name',
        classes={'labels': layout.classes} if layout.classes else {},
        maps={MAP: layout.map} if isinstance(layout.map, LabelMap) else {},
        number_maps={MAP: layout.map} if isinstance(layout.map, NumberMap) else {},
        targets={FIELD: layout.targets} if layout.targets else {},
        description='Tiles cut from GeoTIFFs of one owner, '
        + ' and '.join(TITLES[m] for m in archive.modalities)
        + '; units and processing as declared when they were converted.',
    )


def _times(archive: Archive) -> list[str]:
    return [name for name in TIME if name[:2] in archive.modalities]


def _product(archive: Archive, modality: str, baseline: str, level: Level) -> Product:
    if modality in RADAR:
        orbit: Orbit = archive.s1_orbit
        if archive.s1_desc_root:
            orbit = 'asc' if modality == 's1' else 'desc'
        return Product(
            description='as declared by the owner of the files',
            platforms=archive.s1_platforms,
            processor=archive.s1_processor,
            calibration=archive.s1_calibration,
            terrain_correction=archive.s1_terrain_correction,
            dem=archive.s1_dem,
            orbit=orbit,
            speckle_filter=archive.s1_speckle_filter,
            border_noise=archive.s1_border_noise,
            thermal_noise=archive.s1_thermal_noise,
        )
    if modality == 'dem':
        return Product(description='as declared by the owner of the files', processor=archive.dem_processor)
    return Product(
        description='as declared by the owner of the files',
        platforms=archive.s2_platforms,
        processor=archive.s2_processor,
        level=level,
        baseline=archive.s2_baseline or baseline,
    )
