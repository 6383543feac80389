"""Settings of a user's folder of GeoTIFFs, and which of them cannot be true."""

import dataclasses
import re
from typing import Any, Literal

from fusmae_jax.config.setting import range_problems, setting
from fusmae_jax.errors import nearest, raise_all
from fusmae_jax.geo.bands import BANDS, RADAR, SKIP, band_of
from fusmae_jax.input.label_maps import MOST

HOW_S1 = (
    "say what the Sentinel-1 files hold, s1_unit='dB', 'linear' or 'amplitude'. `rio info --stats --bidx 1 "
    'FILE` prints minimum, maximum and mean; over land decibels have means from -25 to -5 and are negative '
    'almost everywhere; linear power lies between 0 and 1 with means of 0.005 to 0.3; amplitude is its root, '
    'with means of 0.07 to 0.5; whole numbers with means of 50 to 1000 are the digital numbers of a GRD '
    'product, to be calibrated first'
)
HOW_S2 = (
    "say what the Sentinel-2 files hold, s2_unit='DN' (reflectance x 10,000: whole numbers with means of "
    "some hundreds to thousands) or 'reflectance' (0 to 1, with decimals; or whole numbers whose scale tag "
    'or s2_scale makes it so)'
)
HOW_DEM = "elevation is in metres, dem_unit='m'; dem_scale turns other units into them"

SENSORS = ('s1', 's1_desc', 's2', 'dem')
Offset = Literal['auto', '0', '-1000']
LOWEST, HIGHEST = -(2**31), 2**31 - 1  # values of a label raster, which has 32 bits at most


def prefix_of(modality: str) -> str:
    """How settings of a sensor begin, but for those of its files: both passes have those of `s1`."""
    return 's1' if modality in RADAR else modality


@dataclasses.dataclass(frozen=True)
class Archive:
    """A folder of GeoTIFFs for each sensor, and what only their owner knows about them."""

    # Folder of the Sentinel-1 files, with all folders in it; '': Sentinel-2 alone
    s1_root: str = setting('', path=True)
    # Descending passes as a sensor of their own, `s1_desc`; `s1_root` then holds the ascending ones, and what
    # is said of Sentinel-1 holds for both. '': one sensor
    s1_desc_root: str = setting('', path=True)
    s2_root: str = setting('', path=True)  # the same for Sentinel-2; may be the same folder
    dem_root: str = setting('', path=True)  # the same for elevation, a third sensor; '': none
    name: str = 'paired_folder'  # of the data set
    # Which files belong together: those whose names are equal without these, or those in a row of the table.
    s1_prefix: str = ''  # how the names of Sentinel-1 files begin, such as 'S1_'
    s1_suffix: str = ''  # how they end before the extension, such as '_s1'
    s1_desc_prefix: str = ''
    s1_desc_suffix: str = ''
    s2_prefix: str = ''
    s2_suffix: str = ''
    dem_prefix: str = ''
    dem_suffix: str = ''
    s1_parts: tuple[str, ...] = ()  # endings after the suffix where an image lies in several files
    s2_parts: tuple[str, ...] = ()  # such as ('_10m', '_20m') or ('_B02', '_B03'), one pixel size a file
    dem_parts: tuple[str, ...] = ()
    # CSV: s1, s2, dem (relative to the roots) and whatever else of table.COLUMNS is known
    table: str = setting('', path=True)
    # The channels of a file in their order, '-' for one to leave out; () takes the band descriptions.
    s1_bands: tuple[str, ...] = ()
    s2_bands: tuple[str, ...] = ()
    dem_bands: tuple[str, ...] = ()  # ('ELEVATION',) where the files do not call their channel so
    # What the values are: stored x scale + offset is in `unit`.
    s1_unit: Literal['', 'dB', 'linear', 'amplitude'] = ''  # must be said
    s2_unit: Literal['', 'DN', 'reflectance'] = ''  # must be said; DN is reflectance x 10,000
    dem_unit: Literal['', 'm'] = 'm'  # metres above the geoid or the ellipsoid
    s1_scale: float = setting(0.0, least=0)  # 0: from the scale tag of the files, 1 without one
    s2_scale: float = setting(0.0, least=0)
    dem_scale: float = setting(0.0, least=0)  # 0.3048 for feet
    s2_offset: Offset = 'auto'  # in DN; auto: from the metadata in the files, or error
    s1_nodata: tuple[float, ...] = ()  # stored values that mean nothing, beside those of the files
    s2_nodata: tuple[float, ...] = ()  # the same; whole numbers without such a tag: 0, as in all products
    dem_nodata: tuple[float, ...] = ()  # such as (-9999.0,), where the files do not say it
    # How the values came about; '' where it is not known.
    s1_calibration: Literal['', 'sigma0', 'gamma0', 'beta0'] = ''
    s1_terrain_correction: Literal['', 'none', 'geometric', 'flattened'] = ''
    s1_dem: str = ''
    s1_orbit: Literal['', 'asc', 'desc', 'mixed'] = ''
    s1_speckle_filter: str = ''  # its name, or 'none'
    s1_border_noise: Literal['', 'kept', 'removed'] = ''
    s1_thermal_noise: Literal['', 'kept', 'removed'] = ''
    s1_platforms: tuple[str, ...] = ()
    s1_processor: str = ''
    s2_level: Literal['', 'L1C', 'L2A'] = ''
    s2_baseline: str = ''  # '' takes PROCESSING_BASELINE from the metadata in the files, if it is there
    s2_platforms: tuple[str, ...] = ()
    s2_processor: str = ''
    dem_processor: str = ''  # the elevation model, such as 'Copernicus GLO-30'
    # A pair of which one sensor is missing: an error, or kept with nothing but nodata for that sensor
    missing: Literal['error', 'keep'] = 'error'
    # none: chips whose place is not known, of pixels as large as these say; records have no place then
    georeference: Literal['required', 'none'] = 'required'
    s1_pixel: float = setting(0.0, least=0)  # metres, with georeference='none' alone
    s2_pixel: float = setting(0.0, least=0)
    dem_pixel: float = setting(0.0, least=0)
    # Tiles, in pixels of the finest file.
    tile: int = setting(120, least=1)
    stride: int = setting(0, least=0)  # from one tile to the next; 0: as far as a tile is wide
    edge: Literal['drop', 'pad'] = 'drop'  # what a tile does not fill: left out, or filled with nodata
    # Leave out tiles with a smaller valid share of a sensor; reads all pixels twice
    min_valid: float = setting(0.0, least=0, below=1)
    # Splits and labels.
    # Share of the files that goes to val, whole files by a hash of their name
    val_share: float = setting(0.0, least=0, below=1)
    classes: tuple[str, ...] = ()  # in the order of the label vector; (): those in the table, sorted
    # Parts the texts of the column labels; '' is ';', and refuses other signs that may part them.
    labels_separator: str = ''
    # Columns of the table that hold a number to predict, such as ('biomass', 'height')
    targets: tuple[str, ...] = ()
    target_units: tuple[str, ...] = ()  # of each, such as ('t/ha', 'm'); () where they are not known
    target_nodata: tuple[float, ...] = ()  # numbers that mean no value, beside empty cells
    # Numbers that were measured, though they mostly mean no value, such as (-99.0,) of depths
    target_measured: tuple[float, ...] = ()
    # A raster of labels for each image: a class for each pixel, one channel of whole numbers.
    # Folder of the label rasters, whose names pair as those of the sensors do; '': none
    map_root: str = setting('', path=True)
    map_prefix: str = ''
    map_suffix: str = ''
    map_classes: tuple[str, ...] = ()  # names, in the order of `map_values`
    # The value of each class; (): 0, 1, 2, ...
    map_values: tuple[int, ...] = setting((), least=LOWEST, most=HIGHEST)
    # Values of pixels without a label, beside the nodata value of the files
    map_ignore: tuple[int, ...] = setting((), least=LOWEST, most=HIGHEST)
    # What a raster of numbers holds, such as 'biomass', in place of `map_classes`
    map_quantity: str = ''
    map_unit: str = ''  # of its numbers, such as 't/ha'; '' where it is not known
    # Stored values that mean no number, beside the nodata value of the files and NaN
    map_nodata: tuple[float, ...] = ()
    # Stored values that were measured, though they mostly mean no number: (-99.0, -999.0)
    map_measured: tuple[float, ...] = ()

    def of(self, modality: str, name: str) -> Any:
        """A setting of a sensor; those of Sentinel-1 but for its files hold for both of its passes."""
        of_files = name in ('root', 'prefix', 'suffix')
        return getattr(self, f'{modality if of_files else prefix_of(modality)}_{name}')

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sensors that there are files of."""
        return tuple(m for m in SENSORS if self.of(m, 'root'))

    @property
    def sources(self) -> tuple[str, ...]:
        """The sensors, and 'map' where there are label rasters."""
        return (*self.modalities, 'map') if self.map_root else self.modalities

    @property
    def map_codes(self) -> tuple[int, ...]:
        """The value of each class of the label rasters."""
        return self.map_values or tuple(range(len(self.map_classes)))

    @property
    def step(self) -> int:
        """Pixels from one tile to the next."""
        return self.stride or self.tile


def check(archive: Archive) -> None:
    """Raises one InputError with everything that is missing or cannot be."""
    problems = range_problems(archive)
    if not archive.modalities:
        problems.append('s1_root, s2_root and dem_root are empty: give the folder of at least one sensor')
    if not re.fullmatch(r'[a-z][a-z0-9_]*', archive.name):
        problems.append(f'name={archive.name!r} must be small letters, digits and _, a letter first')
    for modality in dict.fromkeys(map(prefix_of, archive.modalities)):
        problems += _modality_problems(archive, modality)
    if archive.s1_desc_root and (not archive.s1_root or archive.s1_orbit not in ('', 'asc')):
        problems.append(
            f's1_desc_root: s1_root={archive.s1_root!r}, s1_orbit={archive.s1_orbit!r}: with the descending '
            'passes apart s1_root must hold the ascending ones; files of one pass are s1_root alone'
        )
    if archive.missing == 'keep' and len(archive.modalities) < 2:
        problems.append(
            "missing='keep': needs files of two sensors or more; with one root nothing is missing"
        )
    if archive.classes and not archive.table:
        problems.append('classes: labels come from the table; give one, or leave the classes out')
    if archive.labels_separator and not archive.table:
        problems.append('labels_separator: labels come from the table; give one, or leave the separator out')
    if any(map(str.isalnum, archive.labels_separator)):
        problems.append(f'labels_separator={archive.labels_separator!r} must hold no letter and no digit')
    if len(set(archive.classes)) < len(archive.classes):
        problems.append(f'classes={archive.classes}: a class is named twice')
    problems += _target_problems(archive) + _map_problems(archive)
    raise_all('config.archive: these settings cannot be used', problems)


def _target_problems(archive: Archive) -> list[str]:
    """What cannot be among the settings of numbers to predict."""
    names, units, problems = archive.targets, archive.target_units, []
    if not names:
        given = [
            name for name in ('target_units', 'target_nodata', 'target_measured') if getattr(archive, name)
        ]
        return [f'{name}: there are no targets; name them, or leave it out' for name in given]
    if not archive.table:
        problems.append('targets: numbers come from the table; give one, or leave the targets out')
    if len(set(names)) < len(names):
        problems.append(f'targets={names}: a column is named twice')
    if both := [name for name in names if name in archive.classes]:
        problems.append(f'targets={names}: {both[0]!r} is one of the classes too')
    if units and len(units) != len(names):
        problems.append(f'target_units={units}: {len(units)} units for {len(names)} targets')
    return problems + _both_problems(archive, 'target')


def _both_problems(archive: Archive, what: str) -> list[str]:
    """A number that is said to be measured and to be none."""
    measured = getattr(archive, f'{what}_measured')
    both = sorted({*measured} & {*getattr(archive, f'{what}_nodata')})
    return [f'{what}_measured={measured}: {both[0]:g} is in {what}_nodata too'] if both else []


def _map_problems(archive: Archive) -> list[str]:
    """What cannot be among the settings of the label rasters."""
    names, values = archive.map_classes, archive.map_values
    if not archive.map_root:
        given = [
            f.name for f in dataclasses.fields(archive) if f.name[:4] == 'map_' and getattr(archive, f.name)
        ]
        return [f'{name}: there are no label rasters; give map_root, or leave it out' for name in given]
    if archive.map_quantity:
        return _number_map_problems(archive)
    problems = [
        f'{name}: goes with a raster of numbers; say what it holds with map_quantity, or leave it out'
        for name in ('map_unit', 'map_nodata', 'map_measured')
        if getattr(archive, name)
    ]
    if not 2 <= len(names) <= MOST:
        problems.append(
            f'map_classes={names}: name the classes of the label rasters in the order of their values, 2 to '
            f"{MOST}, such as ('dry', 'flooded'); of rasters of numbers say what they hold, map_quantity"
        )
    if len(set(names)) < len(names):
        problems.append(f'map_classes={names}: a class is named twice')
    if values and len(values) != len(names):
        problems.append(f'map_values={values}: {len(values)} values for {len(names)} map_classes')
    if len(set(archive.map_codes)) < len(archive.map_codes):
        problems.append(f'map_values={values}: a value means two classes')
    if both := sorted({*archive.map_codes} & {*archive.map_ignore}):
        problems.append(f'map_ignore={archive.map_ignore}: {both[0]} is a class too')
    return problems


def _number_map_problems(archive: Archive) -> list[str]:
    """The same of rasters of numbers."""
    problems = [
        f'{name}: of classes, but map_quantity={archive.map_quantity!r} says that the rasters hold numbers; '
        'leave one of the two out'
        for name in ('map_classes', 'map_values', 'map_ignore')
        if getattr(archive, name)
    ]
    if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_ -]*', archive.map_quantity):
        problems.append(
            f'map_quantity={archive.map_quantity!r} must be letters, digits, _ and -, a letter first'
        )
    return problems + _both_problems(archive, 'map')


def _modality_problems(archive: Archive, modality: str) -> list[str]:
    problems = []
    if not archive.of(modality, 'unit'):
        how = {'s1': HOW_S1, 's2': HOW_S2, 'dem': HOW_DEM}[modality]
        problems.append(f"{modality}_unit='': {how}")
    pixel, chips = archive.of(modality, 'pixel'), archive.georeference == 'none'
    if chips and not pixel:
        problems.append(
            f"{modality}_pixel=0: with georeference='none' say how large a pixel is, in metres: 10"
        )
    if pixel and not chips:
        problems.append(
            f"{modality}_pixel={pixel:g}: the files say it; it goes with georeference='none' alone"
        )
    if chips and archive.of(modality, 'parts'):
        problems.append(
            f'{modality}_parts: files of several pixel sizes need a place; leave georeference alone'
        )
    names = archive.of(modality, 'bands')
    for name in names:
        if name != SKIP and not band_of(name, modality):
            problems.append(f'{modality}_bands: {name!r}; {nearest(name, BANDS[modality])}')
    known = [band_of(name, modality) for name in names if name != SKIP]
    if len(set(known)) < len(known) or (names and not known):
        problems.append(f'{modality}_bands={names}: every band once, at least one, {SKIP!r} for others')
    return problems
