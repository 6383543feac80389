"""One checkpoint of a tiny model for all tests of a file, and programs that are compiled once."""

import pytest

from fusmae_jax.encoders.load import load
from tests.support.embed_fixtures import compiled_once, write_checkpoint


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('checkpoint'))


@pytest.fixture(scope='module')
def model(checkpoint, tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp('programs')):
        yield load(checkpoint)
