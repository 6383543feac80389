"""The order of two dates, as names of files say them, and the options that an error names."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.predict.dates import check_order


def taken(sensor, day):
    """A raster whose name says when it was taken."""
    return {sensor: SimpleNamespace(modality=sensor, file=Path(f'{day}T050000.tif'), tags=dict)}


@pytest.mark.parametrize(
    ('sensor', 'options'), [('s1', '--before-s1=.*--s1='), ('s1_desc', '--before.s1_desc=.*--file.s1_desc=')]
)
def test_an_exchange_is_said_with_the_options_of_the_sensor(sensor, options):
    early, late = taken(sensor, 20200101), taken(sensor, 20200203)
    check_order(late, early)
    with pytest.raises(InputError, match=f'{options}.*exchange the two'):
        check_order(early, late)
