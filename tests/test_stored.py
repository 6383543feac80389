"""What earlier code has written, and this code must read: a data set, runs, rows, a study.

`before_rooms.tar.xz` was written before the package was ordered into folders: 24 records (`data`), 4 steps of
a tiny XAE with checkpoints at 2 and 4 (`run`), 2 steps of a tiny DINO-MM (`dino`), a linear probe (`probe`),
a study with its settings (`study`, `study.json`), and features of both encoders (`features.json`).
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.config.build import from_dict
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.features import Extractor
from fusmae_jax.tables.config import Tables
from fusmae_jax.tables.run import run_tables
from main import main
from tests.support.result_rows import rows_of
from tests.support.tables_fixtures import never

pytestmark = pytest.mark.usefixtures('one_device')
ROOT = Path(__file__).parents[1]
STORED = ROOT / 'tests' / 'support' / 'stored' / 'before_rooms.tar.xz'
DATA = 'data/probe/1.0.0'


@pytest.fixture
def stored(tmp_path, monkeypatch):
    shutil.unpack_archive(STORED, tmp_path, filter='data')
    # Settings in it name their files relative to the folder that it was written in.
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(folder):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {(line['step'], name): value for line in lines for name, value in line.items() if 'loss' in name}


def test_a_run_goes_on_from_its_checkpoint(stored):
    before = losses(stored / 'run')
    shutil.rmtree('run/checkpoints/4')
    os.remove('run/COMPLETE')
    config = stored / 'again.py'
    values = json.loads(Path('run/config.json').read_text())
    values = values.get('config', values)
    config.write_text(
        f'import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({values!r})\n'
    )
    assert main(['main.py', 'pretrain', f'--config={config}', '--workdir=run']) == 0
    after = losses(stored / 'run')
    assert after.keys() == before.keys()
    # Another processor, or compiler, rounds differently.
    np.testing.assert_allclose([*after.values()], [*before.values()], rtol=1e-4)


@pytest.mark.parametrize(('name', 'feature'), [('run', 'mean_patch'), ('dino', 'cls')])
def test_an_encoder_gives_the_same_features(stored, name, feature):
    expected = json.loads(Path('features.json').read_text())
    settings = EncoderSettings(name, batch=8)
    system = open_system(name, settings)
    assert system.fingerprint == expected[f'{name}_weights']
    extract = Extractor(
        system, Task(DATA, labels='labels', threads=1, prefetch=1), ('s1', 's2'), (feature,), settings
    )
    np.testing.assert_allclose(extract('val')[feature].values, np.array(expected[name]), rtol=1e-4, atol=1e-5)


def test_rows_are_read(stored):
    rows = rows_of(Path('probe'))
    assert {(r.system, tuple(r.modalities)) for r in rows} == {
        ('pretrain', ('s1', 's2')),
        ('band statistics', ('s1', 's2')),
        ('train prior', ()),
    }


def test_a_finished_study_runs_nothing_again(stored):
    def state():
        return {path: path.stat().st_mtime_ns for path in (stored / 'study').rglob('*/*.*') if path.is_file()}

    before, tables = state(), Path('study/tables.csv').read_bytes()
    study = from_dict(Tables, json.loads(Path('study.json').read_text()), 'study.json')
    assert run_tables(study, stored / 'study', never) == 0
    assert state() == before and Path('study/tables.csv').read_bytes() == tables
