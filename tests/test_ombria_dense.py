"""Maps of floods on OMBRIA: records of a region, settings, and the table of what was measured."""

import json

import numpy as np
import pytest

from benchmarks import ombria_dense, ombria_maps, ombria_set
from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense.config import check
from fusmae_jax.eval.dense.task import open_maps
from fusmae_jax.input.source import Source
from tests.support.result_rows import VALUES
from tests.test_ombria import REGIONS, npz  # noqa: F401  # a fixture


@pytest.fixture(scope='module')
def data(npz, tmp_path_factory):  # noqa: F811
    return ombria_maps.write(npz, tmp_path_factory.mktemp('maps'))


def test_a_region_is_a_record_with_its_mask_and_both_dates(data, npz):  # noqa: F811
    arrays, labels = np.load(npz), []
    for split in ombria_set.SHARES:
        source = Source(data, split, ('s1', 'before_s2', 'map'))
        regions = source.index(['region'])['region']
        for i, region in enumerate(regions):
            record = source[i]
            late, early = (
                np.flatnonzero((arrays['region'] == region) & (arrays['after'] == side))[0]
                for side in (True, False)
            )
            np.testing.assert_array_equal(record['s1'], arrays['s1'][late])
            np.testing.assert_array_equal(record['before_s2'], arrays['s2'][early])
            np.testing.assert_array_equal(record['map'], np.unpackbits(arrays['flood'][late], axis=-1))
        labels += regions.tolist()
    assert len(labels) == len(set(labels)) == REGIONS


def test_the_settings_fit_the_data(data):
    for part in ombria_dense.PARTS:
        config = ombria_dense.settings(part, data, 'run', 0)
        check(config)
        assert open_maps(config)[0].classes == ('dry', 'flooded')


def test_a_region_without_one_of_its_dates_is_an_error(npz, tmp_path):  # noqa: F811
    arrays = {name: x[1:] for name, x in np.load(npz).items()}
    np.savez(tmp_path / 'less.npz', **arrays)
    with pytest.raises(InputError, match='region 3 needs one pair before its flood'):
        ombria_maps.write(str(tmp_path / 'less.npz'), tmp_path)


def test_the_table_has_a_row_for_each_system_and_difference(tmp_path):
    row = VALUES | {
        'chosen': {'learning_rate': [0.003]},
        'system': 'xae',
        'modalities': ['s1'],
        'label': 'flooded',
        'averaging': 'class',
    }
    numbers = {'estimate': 0.5, 'low': 0.4, 'high': 0.625, 'clusters': 4}
    (tmp_path / 'probe').mkdir()
    (tmp_path / 'probe' / 'rows-dense_probe.jsonl').write_text(json.dumps(row | numbers | {'metric': 'iou'}))
    line = {'system': 'xae', 'minus': 'random', 'modalities': ['s1'], 'metrics': {'iou/flooded': numbers}}
    (tmp_path / 'probe' / 'differences-dense_probe.jsonl').write_text(json.dumps(line))
    metrics = {'ece_before': numbers, 'ece_after': numbers | {'estimate': 0.45}}
    line = {'system': 'xae', 'modalities': ['s1'], 'temperatures': [1.25], 'metrics': metrics}
    (tmp_path / 'probe' / 'calibration-dense_probe.jsonl').write_text(json.dumps(line))
    text = ombria_dense.write(tmp_path, tmp_path / 'out', 0, 8)
    assert '| s1 | xae | - | 50.0 [40.0, 62.5] | - | - |' in text and '--steps=8' in text
    assert '| s1 | xae minus random | - | +50.0 [+40.0, +62.5] | - | - |' in text
    assert '| s1 | xae | 0.003 | 1.25 | 50.0 [40.0, 62.5] | 45.0 [40.0, 62.5] |' in text
    lines = (tmp_path / 'out' / 'ombria_dense.csv').read_text().splitlines()
    assert lines[1] == 'probe,xae,s1,iou/flooded,0.50000,0.40000,0.62500,4'
