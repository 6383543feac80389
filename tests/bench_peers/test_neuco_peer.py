"""Embeddings of `neuco` through NeuCo-Bench itself: its loader, and its evaluation with S1, S2 and both.

Its own code runs in a Python of its own, $PEERS_PYTHON, which has its requirements.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fusmae_jax
from fusmae_jax.shipped.data.neuco import run
from fusmae_jax.shipped.data.neuco.settings import NeucoConfig
from fusmae_jax.shipped.data.ssl4eo_s12.schema import S2_BANDS
from tests.support import neuco_files
from tests.support.embed_fixtures import write_checkpoint
from tests.support.peers import clone

pytestmark = pytest.mark.bench_peers
NAMES = [f'{number:04d}' for number in range(11)] + ['3f8a']  # as hashes are, mostly digits
ACCEPT = ('order', 'offset', 'level', 'statistics')  # made-up spectra have no water and no forest
SENSORS = {'s1': ('s1',), 's2': ('s2',), 'both': ('s1', 's2')}
LOAD = """
import importlib, json, sys
from pathlib import Path
load_submission = importlib.import_module('data.embeddings').load_submission
names = set(json.loads(sys.argv[2]))
table, width = load_submission(Path(sys.argv[1]), names, expected_dim=1024, standardize=False)
print(json.dumps([table['id'].tolist(), [v.tolist() for v in table['embedding']], width]))
"""
CONFIG = """
k_folds: 4
probe_type: linear
probe_params: {batch_size: 8, epochs: 2, learning_rate: 0.001, device: cpu}
embedding_dim: 1024
standardize_embeddings: true
normalize_labels: true
enable_plots: false
update_leaderboard: false
store_probes: false
task_filter: null
"""


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def tables(checkpoint, tmp_path_factory):
    """The CSV of twelve made-up locations for each of SENSORS."""
    folder = tmp_path_factory.mktemp('neuco')
    archive = {name: neuco_files.images(number) for number, name in enumerate(NAMES)}
    data = neuco_files.write_archive(folder / 'data', archive)
    files = {name: folder / f'{name}.csv' for name in SENSORS}
    for name, file in files.items():
        config = NeucoConfig(SENSORS[name], batch=36, accept=ACCEPT)
        run.neuco(config, str(data), checkpoint, str(file))
    return files


def theirs(*words):
    python = os.environ.get('PEERS_PYTHON') or sys.executable
    folder = clone('NeuCo-Bench') / 'benchmark'
    done = subprocess.run([python, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize('name', SENSORS)
def test_the_loader_reads_what_was_written(tables, name):
    ids, vectors, width = json.loads(theirs('-c', LOAD, str(tables[name]), json.dumps(NAMES)))
    assert sorted(ids) == NAMES and width == 1024
    loaded = {key: np.array(vector, np.float32) for key, vector in zip(ids, vectors)}
    for key, *values in (line.split(',') for line in tables[name].read_text().splitlines()[1:]):
        vector = loaded[key.removesuffix('.zarr.zip')]
        np.testing.assert_array_equal(vector[: len(values)], np.array(values, np.float32))
        assert not vector[len(values) :].any()


def test_the_evaluation_gives_a_row_for_each_sensor_and_both(tables, tmp_path):
    (tmp_path / 'labels').mkdir()
    rows = ''.join(f'{name},{number / 11:.3f}\n' for number, name in enumerate(NAMES))
    (tmp_path / 'labels' / 'made_up__regression.csv').write_text(f'id,label\n{rows}')
    (tmp_path / 'config.yaml').write_text(CONFIG)
    for name, file in tables.items():
        theirs(
            *('main.py', '--submission_file', str(file), '--annotation_path', str(tmp_path / 'labels')),
            *('--config', str(tmp_path / 'config.yaml'), '--output_dir', str(tmp_path / 'results')),
            *('--method_name', name, '--phase', 'test'),
        )
    summaries = sorted((tmp_path / 'results' / 'test').glob('*/*summary*.json'))
    assert [path.parent.name.split('_')[0] for path in summaries] == ['both', 's1', 's2']
    for path in summaries:
        scores = json.loads(path.read_text())
        assert scores['task_q_scores'].keys() == {'made_up'} and np.isfinite(scores['overall_q_score'])


def test_a_row_is_the_mean_of_what_the_python_api_gives(tables, checkpoint):
    model, stored = fusmae_jax.load(checkpoint), neuco_files.images(0)
    order = [S2_BANDS['S2L2A'].index(band) for band in model.config.model.modalities['s2'].bands]
    s1, s2 = (np.moveaxis(stored[name], 1, -1).astype(np.float32) for name in ('s1', 's2'))
    at = [(top, left) for top in (0, 72, 144) for left in (0, 72, 144)]
    cut = [np.concatenate([x[:, t : t + 120, k : k + 120] for t, k in at]) for x in (s1, s2[..., order])]
    encoded = model.encode(dict(zip(('s1', 's2'), cut)), units={'s1': 'dB', 's2': 'DN'}, accept=ACCEPT)
    row = np.array(tables['both'].read_text().splitlines()[1].split(',')[1:], np.float32)
    np.testing.assert_allclose(row, encoded.pooled.mean(axis=0), rtol=2e-4, atol=2e-5)
