"""The command over a converted archive: conditions, intervals, figure, and what a head never sees."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from fusmae_jax.config.build import from_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fit, open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.features import Extractor
from fusmae_jax.eval.reliance import report
from fusmae_jax.eval.reliance.command import run_reliance
from fusmae_jax.eval.reliance.config import CleanHead, Reliance
from fusmae_jax.eval.reliance.features import Disturbed
from fusmae_jax.input import contract as contracts
from tests.support.probe_fixtures import CLASSES, SIZES, archive, checkpoint

HEAD = CleanHead(epochs=30.0, batch_size=16, learning_rates=(1e-2, 3e-2), seeds=(0, 1), batch_norm=True)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return archive(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, trained_on='test[:4]', depth=1)


def settings(path, run, **changes):
    values = {
        'data': Task(path=str(path), labels='labels'),
        'checkpoints': (run,),
        'names': ('XAE',),
        'head': HEAD,
        'intervals': Intervals('scene', 40),
        'attention_records': 20,
        'batch': 32,
    }
    return Reliance(**(values | changes))


@pytest.fixture(scope='module')
def found(data, run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('out')
    assert run_reliance(settings(data, run), workdir) == 0
    return workdir


def lines(file):
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_every_condition_and_class_has_a_line(found):
    rows = lines(found / report.PRECISION)
    names = ['all sensors', 's1 only', 's2 only', 's1 shuffled', 's2 shuffled', 's2 clouded']
    assert list(dict.fromkeys(row['condition'] for row in rows)) == names
    assert {row['class'] for row in rows} == {*CLASSES, report.MACRO, report.MICRO}
    assert len(rows) == 6 * 5 and {row['records'] for row in rows} == {str(SIZES['test'])}
    for row in rows:
        assert float(row['low']) <= float(row['ap']) <= float(row['high']) and row['clusters'] == '7'
        whole = next(r for r in rows if (r['condition'], r['class']) == (names[0], row['class']))
        assert float(row['change']) == pytest.approx(float(row['ap']) - float(whole['ap']), abs=2e-5)
    assert {float(row['change']) for row in rows[:5]} == {0.0}


def test_a_class_falls_where_its_own_sensor_is_gone(found):
    """In these data `rough` moves the radar bands alone, `bright` the optical ones."""
    ap = {(row['condition'], row['class']): float(row['ap']) for row in lines(found / 'reliance.csv')}
    assert ap['all sensors', 'bright'] > 0.75
    assert ap['all sensors', 'bright'] - ap['s2 shuffled', 'bright'] > 0.15
    assert abs(ap['all sensors', 'bright'] - ap['s1 shuffled', 'bright']) < 0.1


def test_attention_has_a_line_for_each_pair_and_the_protocol_is_told(found):
    rows = lines(found / report.ATTENTION)
    first = {(r['from'], r['to']): float(r['share']) for r in rows if r['block'] == '1'}
    assert first == {('s1', 's1'): 0, ('s1', 's2'): 1, ('s2', 's1'): 1, ('s2', 's2'): 0}
    for block, name in {(r['block'], r['from']) for r in rows}:
        own = [r for r in rows if (r['block'], r['from']) == (block, name)]
        assert sum(float(r['share']) for r in own) == pytest.approx(1, abs=1e-4)
        assert sum(float(r['share_of_tokens']) for r in own) == pytest.approx(1, abs=1e-4)
        assert all(float(r['low']) <= float(r['share']) <= float(r['high']) for r in own)
        assert {r['records'] for r in own} == {'20'}
    told = json.loads((found / 'settings-reliance.json').read_text())
    assert told['systems'][0]['leaks']['id'] == 4 and told['systems'][0]['absent'] == 'self'
    assert told['settings']['cloud']['cover'] == 0.7 and told['records']['test'] == SIZES['test']
    with Image.open(found / report.FIGURE) as picture:
        assert picture.size[0] > picture.size[1] > 200
        assert np.asarray(picture.convert('L')).std() > 20
    assert not list(found.glob('*.part'))


@pytest.mark.slow
def test_conditions_change_their_own_sensor_alone(data, run):
    """Features of the complete input and of one sensor are those of the linear probe, and as valid."""
    task = Task(path=str(data), labels='labels', test_split='val', val_split='test')
    config, encoder = settings(data, run, data=task), EncoderSettings(checkpoint=run, batch=32)
    system = open_system(run, encoder)
    fitted = fit(system.model, contracts.read(data), ('s1', 's2'), encoder, str(data))
    count = SIZES['val']
    nobody = Disturbed(config, system, fitted).features(np.arange(count))
    for name in ('s1 shuffled', 's2 shuffled'):  # each with its own image
        np.testing.assert_allclose(nobody[name].values, nobody['all sensors'].values, rtol=1e-4, atol=1e-5)
    for sensors, name in ((('s1', 's2'), 'all sensors'), (('s1',), 's1 only'), (('s2',), 's2 only')):
        probe = Extractor(system, config.data, sensors, ('mean_patch',), encoder)('val')['mean_patch']
        np.testing.assert_allclose(nobody[name].values, probe.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(nobody[name].valid, probe.valid)
    lost = {name: int((~found.valid).sum()) for name, found in nobody.items()}
    assert {name: count for name, count in lost.items() if count} == {'s1 only': 1}  # one has no radar
    assert np.abs(nobody['s2 clouded'].values - nobody['all sensors'].values).mean() > 0.01


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'checkpoints': ()}, 'give one working directory or more'),
        ({'head': CleanHead(feature='concat_per_sensor')}, "head.feature='concat_per_sensor'"),
        ({'names': ('a', 'b')}, 'one for each of 1 checkpoints'),
        ({'intervals': Intervals('')}, 'name an index field'),
        ({'data': Task(path='nowhere')}, 'does not exist'),
    ],
)
def test_impossible_settings_are_one_message(data, run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run_reliance(settings(data, run, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_file_in_configs_builds():
    config = from_dict(Reliance, load_config('configs/reliance.py', ["checkpoints=('runs/a', 'runs/b')"]))
    assert config.checkpoints == ('runs/a', 'runs/b') and config.head.feature == 'mean_patch'
