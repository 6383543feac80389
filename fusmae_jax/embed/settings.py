"""The settings of `python main.py encode`, and the impossible ones among them."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.config.setting import SPARSE, range_problems, setting
from fusmae_jax.errors import raise_all
from fusmae_jax.geo.bands import RADAR, SKIP
from fusmae_jax.sensors import Product

USUAL = ('s1', 's2', 'dem')  # sensors with an option and a group of settings of their own


@dataclasses.dataclass(frozen=True)
class SensorFile:
    """What is known of one input file beyond what it says itself.

    The physical value is `stored * scale + offset`, in `unit`.
    """

    unit: str = ''  # radar: dB, linear, amplitude; optical: DN, reflectance; elevation: m
    bands: tuple[str, ...] = ()  # names of the file's bands in its order; () takes its band descriptions
    scale: float = 0.0  # 0: from the scale tag of the file, 1 without one
    # None: from the file's metadata, or an error for Sentinel-2 if they do not say. In digital numbers -1000
    # for products of baseline 04.00 and newer as delivered, 0 for older and for harmonised ones.
    offset: float | None = None
    nodata: tuple[float, ...] = ()  # stored values without meaning, beside the file's own nodata and NaN
    product: Product = dataclasses.field(default_factory=Product)  # what is known of its making
    pixel: float = setting(0.0, least=0)  # metres, with georeference='none'; else the file says it


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """Everything that `encode` can be told."""

    s1: SensorFile = dataclasses.field(default_factory=SensorFile)
    s2: SensorFile = dataclasses.field(default_factory=SensorFile)
    # An elevation model, for encoders that have learned from one
    dem: SensorFile = dataclasses.field(default=SensorFile(unit='m'), metadata=SPARSE)
    # Any other sensor, by its name in the encoder, such as s1_desc
    sensors: Mapping[str, SensorFile] = dataclasses.field(default_factory=dict, metadata=SPARSE)
    output: Literal['tokens', 'pooled', 'cls'] = 'tokens'  # one vector a patch token, or one a window
    # Cells that neighbouring windows share; -1 is the least that is a quarter window
    overlap: int = setting(-1, least=-1)
    merge: Literal['mean', 'centre'] = 'mean'  # where windows overlap: a tapered mean, or the nearer window
    # Where windows begin: at multiples of their stride in the reference system, so that every cut of a scene
    # has the same windows and cells, or at the upper left corner of the image
    anchor: Literal['ground', 'image'] = 'ground'
    # Cells with a part in windows that reach beyond the image: kept, or left out, so that cuts agree
    edges: Literal['keep', 'drop'] = 'keep'
    # Metres of ground a side, for imported weights, which do not say it; 0: as their records have it
    window: float = setting(0.0, least=0)
    batch: int = setting(32, least=1)  # windows; rounded down so that batches come out even
    dtype: Literal['float32', 'int8'] = 'float32'
    calibration: int = setting(256, least=1)  # windows that the scale of int8 is taken from
    stats: Literal['checkpoint', 'dataset'] = 'checkpoint'  # dataset: measured over these files
    absent_bands: Literal['error', 'mean'] = 'error'  # bands that a file lacks: refuse, or use the mean
    accept: tuple[str, ...] = ()  # differences from what the model knows, such as 'level'
    compress: Literal['none', 'deflate', 'zstd'] = 'zstd'
    cog: bool = True  # lay a .tif out as a Cloud Optimized GeoTIFF: a copy at the end, as long as the writing
    stac: bool = False  # describe the output for catalogues as well, in OUT.stac.json
    # Of the acquisition, for STAC: 2024-05-01T10:20:31Z, or two with a slash; '' takes the tags of the files
    datetime: str = ''
    overwrite: bool = False  # replace the output, and the .json of an earlier run beside it
    vrt: bool = False  # take a VRT of local GeoTIFFs as an input
    # Of inputs in degrees, or in metres that are none of ground: pixels (metres) in the local UTM zone that
    # they are interpolated to; 0 refuses them
    reproject: float = setting(0.0, least=0)
    # none: chips whose place is not known or does not matter, of pixels as large as `s1.pixel`, `s2.pixel`
    georeference: Literal['required', 'none'] = 'required'


def sensor_file(config: EncodeConfig, sensor: str) -> SensorFile:
    """What is known of the file of a sensor."""
    return getattr(config, sensor) if sensor in USUAL else config.sensors.get(sensor, SensorFile())


def settings_name(sensor: str) -> str:
    """What the group of settings of a sensor is called."""
    return f'config.{sensor}' if sensor in USUAL else f'config.sensors.{sensor}'


def option_name(sensor: str, before: bool = False) -> str:
    """The option that gives the file of a sensor, of the earlier date of two or of the only one."""
    if sensor in USUAL:
        return f'--before-{sensor}' if before else f'--{sensor}'
    return f'--before.{sensor}' if before else f'--file.{sensor}'


def add_sensors(config: ml_collections.ConfigDict, sensors: Iterable[str]) -> None:
    """Gives each sensor a group in a configuration that is still to be changed, unless it has one."""
    with config.unlocked():
        for name in sensors:
            if name not in USUAL and name not in config.sensors:
                config.sensors[name] = config_dict(SensorFile(unit='dB' if name in RADAR else ''))


def check_settings(config: EncodeConfig) -> None:
    """Raises InputError with every setting that is impossible whatever the files hold."""
    problems = range_problems(config)
    if config.output != 'tokens' and config.overlap > 0:
        problems.append(
            f'overlap={config.overlap}: output={config.output!r} gives one vector a window, and windows that '
            'overlap have no grid of their own; leave overlap at -1'
        )
    if config.georeference == 'none':
        for setting_name in ('stac', 'reproject'):
            if getattr(config, setting_name):
                problems.append(f"{setting_name}: needs a place on the ground, and georeference is 'none'")
        if config.edges == 'drop':
            problems.append(
                "edges='drop': without a place there is no grid of the ground; leave it at 'keep'"
            )
    for name in set(config.sensors) & set(USUAL):
        problems.append(f'sensors.{name}: what is known of {name} belongs into {settings_name(name)}')
    for sensor_name in (*USUAL, *config.sensors):
        sensor, name = sensor_file(config, sensor_name), settings_name(sensor_name).removeprefix('config.')
        for field in ('scale', 'offset', 'nodata'):
            value = getattr(sensor, field)
            if not all(map(math.isfinite, value if isinstance(value, tuple) else (value or 0.0,))):
                problems.append(f'{name}.{field}={value} must be finite; NaN is invalid in files anyhow')
        if doubled := {band for band in sensor.bands if band != SKIP and sensor.bands.count(band) > 1}:
            problems.append(f'{name}.bands: {", ".join(sorted(doubled))} stands there twice')
    raise_all('config: these settings cannot be used', problems)
