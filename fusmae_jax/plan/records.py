"""Stand-in records for a run whose data are not on this machine: the BigEarthNet-MM layout."""

from etils import epath

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.mixture import open_train
from fusmae_jax.sensors import SENSORS

EXTENT = 1200  # metres on a side of a BigEarthNet patch
STORED = {'dB': 'float32', 'DN': 'uint16'}
# Published pairs of BigEarthNet-MM v1; `rest` are those outside the official lists.
PAIRS = {'train': 269_695, 'val': 123_723, 'test': 125_866, 'rest': 71_042}


def layout(config: Config, examples: int = 0) -> tuple[Contract, int, tuple[str, ...]]:
    """The input contract, the number of training records, and what was assumed, in words.

    From the data where they are; else from the sensor tables, as BigEarthNet-MM stores them: each band on
    its native grid, 1.2 km on a side. `examples` (if not 0) replaces the number of records.
    """
    paths = [part.path for part in config.data.mixture.values()] or [config.data.path]
    if all(path and epath.Path(path).exists() for path in paths):
        source = open_train(config)
        return source.contract, examples or len(source), ()
    missing = next(path for path in paths if not path or not epath.Path(path).exists())
    # Refuses sensors that are not in the table, before that is asked for their products.
    groups = _groups(config)
    products = {name: SENSORS[m.sensor].product for name, m in config.model.modalities.items()}
    contract = Contract('bigearthnet_mm', 'layout', groups, products)
    notes = [f'{missing or "data.path"!r} is not here: records are planned as BigEarthNet-MM stores them']
    if config.data.mixture:
        contract = Contract(dataset='a mixture', parts=dict.fromkeys(config.data.mixture, contract))
    if not examples:
        examples = _pairs(config)
        notes.append(f'{examples:,} records, as published for this split of BigEarthNet-MM')
    return contract, examples, tuple(notes)


def _groups(config: Config) -> dict[str, Group]:
    """One field for each sensor and native grid."""
    groups = {}
    for name, modality in config.model.modalities.items():
        if modality.sensor not in SENSORS:
            raise InputError(
                f'model.modalities.{name} is of no known sensor, so its records cannot be guessed; set '
                'data.path to a converted data set that has it'
            )
        sensor = SENSORS[modality.sensor]
        grids = sorted({band.resolution for band in sensor.bands.values()})
        for metres in grids:
            field = name if len(grids) == 1 else f'{name}_{metres}m'
            pixels = EXTENT // metres
            groups[field] = Group(
                name,
                tuple(band for band, facts in sensor.bands.items() if facts.resolution == metres),
                (pixels, pixels),
                STORED[sensor.unit],
                sensor.unit,
                float(metres),
                nodata=(0.0,) if sensor.unit == 'DN' else (),
            )
    return groups


def _pairs(config: Config) -> int:
    """Published size of the training split; raises InputError for one that has none."""
    known = PAIRS | {'all_minus_val_test': PAIRS['train'] + PAIRS['rest']}
    split = config.data.train_split
    if config.data.mixture or split not in known:
        which = 'of a mixture' if config.data.mixture else f'of split {split!r}; {nearest(split, known)}'
        raise InputError(f'the number of records is not known {which}: give --examples=N')
    return known[split]
