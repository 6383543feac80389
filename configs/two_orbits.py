"""Sentinel-1 of ascending and of descending passes as two sensors, beside Sentinel-2, from scenes to a table.

The two passes see slopes from opposite sides and the ground at other times of the day; in one sensor they are
mixed, and one mean and deviation stands for both. Here each is a block under `model.modalities` with
statistics of its own, and may be absent like any other sensor. A small model, for a CPU core.

    python main.py generate --layout=two_orbits --out=runs/two_orbits/raw --pairs=3000
    python main.py convert --config=configs/convert_paired_folder.py --config.output=runs/two_orbits/data ...
    python main.py pretrain --config=configs/two_orbits.py --workdir=runs/two_orbits/xae
    python main.py linear_probe --config=configs/two_orbits.py:probe --workdir=runs/two_orbits/probe

`generate` prints the settings of the conversion. The table of the last command has a row for each of the
seven choices of sensors.

Variants:
    probe       the settings of `linear_probe`
"""

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.config.run import Modality
from fusmae_jax.errors import InputError
from fusmae_jax.shipped.configs import three_sensors

RUN = 'runs/two_orbits'
DATA = f'{RUN}/data/paired_folder/1.0.0'
SENSORS = ('s1', 's1_desc', 's2')
# Of both passes. Mean and deviation are those of the data (`data.stats`), of each pass its own; these numbers
# only hold their place.
RADAR = Modality(bands=('VV', 'VH'), resample='bilinear', unit='dB', mean=(0.0, 0.0), std=(1.0, 1.0))


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `Config`, or of the settings of a linear probe."""
    if variant == 'probe':
        return three_sensors.probe(f'{RUN}/xae', DATA, SENSORS)
    if variant:
        raise InputError(f"configs/two_orbits.py: no variant {variant!r}; did you mean 'probe'?")
    config = three_sensors.small('two_orbits', DATA)
    with config.unlocked():
        for name in ('s1', 's1_desc'):
            config.model.modalities[name] = config_dict(RADAR)
    return config
