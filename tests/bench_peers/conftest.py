"""What the comparisons with several benchmarks start from."""

import pytest

from fusmae_jax.export.command import run_export
from fusmae_jax.shipped.data.bigearthnet_mm.samples import six_pairs
from tests.support.embed_fixtures import write_checkpoint


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """An untrained encoder: its checkpoint, and the folder for PyTorch."""
    folder = tmp_path_factory.mktemp('export')
    checkpoint = write_checkpoint(folder / 'model')
    run_export(checkpoint, 'torch', str(folder / 'torch'), six_pairs)
    return checkpoint, str(folder / 'torch')
