"""Embeds georeferenced Sentinel-1 / Sentinel-2 images of any size with a pretrained encoder.

    python main.py encode --config=configs/encode.py --s1=a.tif --s2=b.tif --checkpoint=DIR --out=emb.tif

with both files or one of them, projected in metres, north up, covering the same ground; `--s2` may be a
folder NAME.SAFE, both may be items of STAC with files beside them. `--dem` and `--file.NAME` give the files
of other sensors of the encoder, `--config.sensors.NAME` says what is known of the latter. `--out` ends in
.tif (a COG: a band for each number, a pixel for each patch token), .zarr (Zarr v3) or .parquet (GeoParquet, a
row for each token). What the files do not say themselves is declared here; the model's input contract is
checked against it first.

    --config.s1.unit=linear                    power instead of decibels
    --config.s2.offset=-1000                   digital numbers of processing baseline 04.00 and newer, 0 for
                                               others; needed where the metadata of the file do not say it
    --config.s2.bands="('B02', 'B03', ...)"    for a file whose bands have no names
    --config.sensors.s1_desc.unit=linear       of a sensor by its name, with --file.s1_desc=c.tif
    --config.s1.product.calibration=gamma0     told to the contract; a shift has to be accepted
    --config.accept="('calibration',)"
    --config.vrt=True                          take a VRT of local GeoTIFFs
    --config.reproject=10                      files in degrees, onto 10 m in the local UTM zone
    --config.georeference=none                 chips without a place, with --config.s1.pixel=10
    --config.anchor=image                      windows from the corner of the image, not on the ground's grid
    --config.stac=True                         a STAC item beside the output; --config.datetime=... with it
    --config.dtype=int8                        a quarter of the size; the scale of each channel is stored

Variants: `int8`, `pooled` (one vector a window), `cls`.
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.embed.settings import EncodeConfig
from fusmae_jax.errors import InputError, nearest

VARIANTS = ('int8', 'pooled', 'cls')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `EncodeConfig`, for files in decibels and digital numbers; variants join with commas."""
    config = config_dict(EncodeConfig())
    config.s1.unit = 'dB'
    config.s2.unit = 'DN'
    for part in variant.split(',') if variant else []:
        if part not in VARIANTS:
            raise InputError(f'configs/encode.py: no variant {part!r}; {nearest(part, VARIANTS)}')
        if part == 'int8':
            config.dtype = part
        else:
            config.output = part
    return config
