"""Whether a held-out loss is held out."""

import pytest

from fusmae_jax.input.seen import collect
from fusmae_jax.input.source import Source
from fusmae_jax.run import validation
from fusmae_jax.shipped.data.synthetic import write


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp('data'), 10)


@pytest.mark.parametrize(('split', 'shared'), [('train[8:]', 0), ('train[6:9]', 2), ('train', 8)])
def test_records_that_are_learned_from_are_counted(split, shared, data, caplog):
    source = Source(data, split, ())
    validation.tell_seen({'': source}, collect(data, 'train[:8]'))
    told = [record.getMessage() for record in caplog.records if 'held-out' in record.getMessage()]
    assert len(told) == bool(shared)
    assert all(f'{shared} of {len(source)} records of {data}, split {split}, ' in line for line in told)
