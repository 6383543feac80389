"""The nine real samples with which GEO-Bench-2 tests itself: converted, and what the doctor says of them."""

import numpy as np
import pytest

from fusmae_jax.input import contract
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.doctor.checks import examine
from fusmae_jax.shipped.data.doctor.opening import open_paths
from fusmae_jax.shipped.data.geobench2 import samples
from tests.support.data_fixtures import read
from tests.support.peers import clone

pytestmark = pytest.mark.bench_peers


def findings(path):
    (evidence,) = open_paths([str(path)])
    return {f.code: f for f in examine(evidence) if f.severity in ('warning', 'error')}


def test_nine_real_samples_become_records_that_the_doctor_lets_pass(tmp_path):
    file = clone('GEO-Bench-2') / 'tests/data/benv2/benv2.tortilla'
    stated = findings(file)
    assert stated.keys() == {'s1.order', 'pair.geotransform'}
    assert all('9 of 9' in finding.evidence for finding in stated.values())
    folder, report = sharded.convert(samples.source(samples.Archive(path=str(file))), tmp_path)
    assert {name: split['records'] for name, split in report['splits'].items()} == {
        'train': 5,
        'val': 2,
        'test': 2,
    }
    assert not findings(folder)
    made = contract.read(folder)
    assert np.subtract(*made.statistics['s1'].mean) > 5  # VV - VH in dB
    # Cells of 1.2 km of a tile whose corner is known: 34VER begins at 499,980 and 7,100,040.
    places = {record['s2_name'].decode()[-12:]: record['upper_left'] for record in read(folder, 'train')}
    assert tuple(places['T34VER_12_41']) == (499_980 + 1200 * 12, 7_100_040 - 1200 * 41)
