"""The study: what runs, what is kept, and that the tables say what there is."""

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.config.build import from_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.eval.config import LinearProbe
from fusmae_jax.eval.intervals import read_replicates
from fusmae_jax.eval.probe import run_linear_probe
from fusmae_jax.tables.config import StudySystem, StudyTable, StudyTask
from fusmae_jax.tables.plan import StudyPlan
from fusmae_jax.tables.published import FINETUNE, LINEAR, METRICS, SEN12MS, SENSORS, published
from fusmae_jax.tables.run import run_tables
from tests.support.probe_fixtures import checkpoint
from tests.support.result_rows import rows_of
from tests.support.tables_fixtures import SHORT, TINY, never, study, with_features

pytestmark = pytest.mark.usefixtures('one_device')
BOTH = ('s1', 's2')


@pytest.fixture(scope='module')
def weights(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, depth=2)


@pytest.fixture(scope='module')
def done(tmp_path_factory, data, weights):
    """A finished study and its folder."""
    workdir = tmp_path_factory.mktemp('study')
    config = study(data, weights)
    assert run_tables(config, workdir, never) == 0
    return config, workdir


def numbers(workdir):
    """(table, kind, system, source, sensors, metric) -> line of the CSV."""
    lines = csv.DictReader(io.StringIO((workdir / 'tables.csv').read_text()))
    keys = ('table', 'kind', 'system', 'source', 'sensors', 'metric')
    return {tuple(line[key] for key in keys): line for line in lines}


def test_the_paper_is_quoted_as_its_versions_differ():
    xad = {version: published(version, 'XAD') for version in ('v1', 'v2')}
    gain = [
        round(xad['v2'][task, names, 'ap_micro'] - xad['v1'][task, names, 'ap_micro'], 1)
        for task in (FINETUNE, LINEAR)
        for names in SENSORS
    ]
    assert gain == [1.6, -0.9, 0.3, 5.5, 11.4, 9.1]
    assert published('v1', 'XAE') == {} and published('v2', 'XAE&D') == {}
    odd = [
        (version, name)
        for version in ('v1', 'v2')
        for name in ('ImageNet', 'DINO-MM', 'SatViT', 'XAD', 'XAE', 'XAE&D')
        if (known := published(version, name))
        and known[SEN12MS, None, METRICS[0]] != known[SEN12MS, None, 'recall_weighted']
    ]
    assert odd == [('v2', 'XAD')]  # recall is top-1 by definition; the paper has one slip


def test_numbers_are_those_of_the_rows_and_the_paper_stands_beside_them(done):
    _, workdir = done
    cells = numbers(workdir)
    row = next(
        r
        for r in rows_of(workdir / 'linear_1' / 'xae-0')
        if (r.metric, r.averaging, r.modalities) == ('ap', 'micro', BOTH)
    )
    line = cells['one', 'numbers', 'xae', 'here', 's1+s2', 'ap_micro']
    assert float(line['estimate']) == row.estimate and float(line['low']) == row.low
    assert (float(line['lowest']), float(line['highest'])) == (row.lowest, row.highest)
    assert line['runs'] == '2' and line['seeds'] == '1'
    assert float(cells['one', 'numbers', 'xae', 'v2', 's1+s2', 'ap_micro']['estimate']) == pytest.approx(0.7)
    assert ('one', 'numbers', 'xae', 'v1', 's1+s2', 'ap_micro') not in cells
    each = {r.label: r for r in rows_of(workdir / 'linear_1' / 'xae-0') if r.modalities == BOTH}
    two = cells['two', 'numbers', 'xae', 'here', 's1+s2', 'ap_classes']
    assert float(two['estimate']) == pytest.approx((each['dark'].estimate + each['bright'].estimate) / 2)


def test_what_was_not_run_says_so_beside_what_the_paper_says(done):
    _, workdir = done
    line = numbers(workdir)['one', 'numbers', 'satvit', 'here', 's1', 'ap_micro']
    assert line['note'] == 'not run' and line['estimate'] == ''
    text = (workdir / 'tables.md').read_text()
    assert 'linear_1/satvit-0: not run: systems.satvit.checkpoint is not given' in text
    assert '| SatViT | not run | not run |' in text
    assert '| ... paper, v2 | 52.4 | 58.0 |' in text
    assert r'... paper, v2 & 52.4 & 58.0 \\' in (workdir / 'tables.tex').read_text()


def test_class_shares_have_one_number_for_all_sensors(done):
    _, workdir = done
    cells = numbers(workdir)
    values = {cells['one', 'numbers', 'prior', 'here', s, 'ap_micro']['estimate'] for s in ('s1', 's1+s2')}
    assert len(values) == 1


@pytest.mark.slow
def test_differences_are_paired_and_agree_with_those_of_one_run(done, data, weights, tmp_path):
    _, workdir = done
    values = load_config('configs/linear_probe.py:paper', SHORT)
    config = from_dict(LinearProbe, values)
    encoder = dataclasses.replace(
        config.encoder, checkpoint=weights, baselines=('random',), modalities=(BOTH,), seed=0
    )
    task = dataclasses.replace(config.data, path=str(data))
    for name in ('xae-0', 'random-0'):
        shutil.copytree(workdir / 'features' / name, tmp_path / 'features', dirs_exist_ok=True)
    run_linear_probe(dataclasses.replace(config, data=task, encoder=encoder), tmp_path)
    (line,) = (tmp_path / 'differences-linear.jsonl').read_text().splitlines()
    wanted = json.loads(line)['metrics']['ap_micro']
    cell = numbers(workdir)['one', 'difference', 'xae', 'here', 's1+s2', 'ap_micro']
    for name in ('estimate', 'low', 'high'):
        assert float(cell[name]) == pytest.approx(wanted[name], abs=1e-12)


def test_a_rerun_runs_nothing_and_changed_settings_are_told(done, data, capsys):
    config, workdir = done
    before = {kind: (workdir / f'tables.{kind}').read_bytes() for kind in ('md', 'csv', 'tex')}
    times = {f: f.stat().st_mtime_ns for f in workdir.rglob('rows-*.jsonl')}
    assert run_tables(config, workdir, never) == 0
    assert {kind: (workdir / f'tables.{kind}').read_bytes() for kind in before} == before
    assert {f: f.stat().st_mtime_ns for f in workdir.rglob('rows-*.jsonl')} == times
    capsys.readouterr()
    task = config.tasks['linear_1']
    other = dataclasses.replace(task, settings=(*task.settings, 'epochs=5.0'))
    run_tables(dataclasses.replace(config, tasks={'linear_1': other}, run=()), workdir, never)
    text = capsys.readouterr().out
    assert '| XAE | settings changed | settings changed |' in text
    assert 'epochs: made with 4.0, asked for 5.0' in text
    assert {f: f.stat().st_mtime_ns for f in workdir.rglob('rows-*.jsonl')} == times
    run_tables(config, workdir, never)
    assert {kind: (workdir / f'tables.{kind}').read_bytes() for kind in before} == before


def test_a_data_set_that_is_not_there_leaves_cells_empty(tmp_path, weights, capsys):
    config = study(tmp_path / 'nowhere', weights)
    assert run_tables(config, tmp_path / 'out', never) == 0
    text = capsys.readouterr().out
    assert '| XAE | not run | not run |' in text and 'nowhere' in text


def test_a_stage_that_fails_is_told_and_the_others_go_on(done, tmp_path, data, weights, capsys):
    config = study(data, weights)
    systems = {'xae': config.systems['xae'], 'lost': StudySystem('lost', checkpoint=str(tmp_path / 'none'))}
    table = dataclasses.replace(config.tables['one'], systems=('lost', 'xae'), against='', fusion=False)
    columns = dataclasses.replace(config.tasks['linear_1'], columns=(('s1',),))
    config = dataclasses.replace(config, systems=systems, tables={'one': table}, tasks={'linear_1': columns})
    out = with_features(done[1], tmp_path / 'out')
    assert run_tables(config, out, never) == 1
    cells = numbers(out)
    assert cells['one', 'numbers', 'lost', 'here', 's1', 'ap_micro']['note'] == 'failed'
    assert cells['one', 'numbers', 'xae', 'here', 's1', 'ap_micro']['estimate']
    assert 'no checkpoints/ folder here' in capsys.readouterr().out


@pytest.mark.slow  # tests/encoders/test_load.py runs every time
def test_late_fusion_is_a_row_of_encoders_side_by_side(data, tmp_path):
    alone = {
        f'mae_{s}': StudySystem(
            s, checkpoint=checkpoint(tmp_path / s, data, depth=1, modalities=(s,)), sensors=(s,)
        )
        for s in ('s1', 's2')
    }
    systems = alone | {'late': StudySystem('late', beside=tuple(alone))}
    table = StudyTable('One', tuple(systems), ('linear_1', 'tuned'))
    task = study(data).tasks['linear_1']
    tuned = dataclasses.replace(task, command='finetune', config='configs/finetune.py:paper', settings=())
    config = study(
        data, systems=systems, tables={'one': table}, tasks={'linear_1': task, 'tuned': tuned}, seeds=(0, 1)
    )
    plan = StudyPlan(config, tmp_path / 'plan', never)
    assert not plan.sensors('tuned', 'late') and plan.sensors('tuned', 'mae_s1') == (('s1',),)
    assert (
        run_tables(
            dataclasses.replace(
                config,
                tasks={'linear_1': task},
                tables={'one': dataclasses.replace(table, tasks=('linear_1',))},
            ),
            tmp_path / 'out',
            never,
        )
        == 0
    )
    cells = numbers(tmp_path / 'out')
    radar, late = (cells['one', 'numbers', name, 'here', 's1', 'ap_micro'] for name in ('mae_s1', 'late'))
    assert late['estimate'] == radar['estimate']  # the other encoder takes no part
    both = cells['one', 'numbers', 'late', 'here', 's1+s2', 'ap_micro']
    assert float(both['estimate']) != float(late['estimate']) and both['seeds'] == '1'
    trained = {
        name: StudySystem(name, f'configs/pretrain.py:{name}', TINY, 'probe', sensors=one.sensors)
        for name, one in alone.items()
    }
    with_trained = dataclasses.replace(config, systems=systems | trained, tasks={'linear_1': task})
    stage = StudyPlan(with_trained, tmp_path / 'plan', never).cell('linear_1', 'late', 1)
    assert [needed.name for needed in stage.needs] == ['pretrain/mae_s1-1', 'pretrain/mae_s2-1']


@pytest.mark.slow
def test_one_learning_rate_is_settled_over_all_rows(data, weights, tmp_path):
    """Each system is trained at every rate; what all do best with is what is tested."""
    config = study(data, weights)
    settings = ('data.labels=labels', 'intervals.cluster=scene', 'intervals.replicates=30', 'epochs=2.0')
    settings += ('learning_rates=(1e-4, 3e-3, 3e-2)', 'batch_size=16', 'warmup_epochs=0.5')
    task = StudyTask('all', 'finetune', 'configs/finetune.py:paper', settings, 'probe', (('s1',), BOTH))
    table = StudyTable('One', ('xae', 'random', 'satvit'), ('tuned',))
    systems = {name: config.systems[name] for name in table.systems}
    config = study(data, systems=systems, tasks={'tuned': task}, tables={'one': table})
    assert run_tables(config, tmp_path, never) == 0
    folders = [tmp_path / 'sweeps' / 'tuned' / f'{name}-0' for name in ('xae', 'random')]
    means = np.concatenate(
        [
            list(json.loads((folder / 'sweep-finetune.json').read_text())['means'].values())
            for folder in folders
        ]
    )
    assert means.shape == (4, 3)
    best = (1e-4, 3e-3, 3e-2)[int(np.argmax(means.mean(axis=0)))]
    for name in ('xae', 'random'):
        rows = rows_of(tmp_path / 'tuned' / f'{name}-0', 'finetune')
        assert {one.chosen['learning_rate'] for one in rows} == {(best,)}
        assert rows[0].sweep['learning_rate'] == (1e-4, 3e-3, 3e-2)
    stages = {one.name: one for one in StudyPlan(config, tmp_path, never).stages()}
    assert 'sweeps/tuned/satvit-0' not in stages  # a row that cannot be had holds nobody up
    shutil.rmtree(tmp_path / 'tuned')
    times = {f: f.stat().st_mtime_ns for f in tmp_path.rglob('result.json')}
    assert run_tables(config, tmp_path, never) == 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob('result.json')} == times


def test_a_finished_cell_does_not_need_what_it_was_made_from(done, tmp_path):
    config, workdir = done
    copy = Path(shutil.copytree(workdir, tmp_path / 'copy', symlinks=True))
    shutil.rmtree(copy / 'features')
    (copy / 'linear_1' / 'random-0' / 'stage.json').unlink()
    run_tables(dataclasses.replace(config, run=()), copy, never)
    cells = numbers(copy)
    assert cells['one', 'numbers', 'xae', 'here', 's1', 'ap_micro']['estimate']
    assert cells['one', 'numbers', 'random', 'here', 's1', 'ap_micro']['note'] == 'not run'


@pytest.mark.slow  # a study of its own
def test_seeds_are_averaged_resample_by_resample(done, data, weights, tmp_path):
    config, workdir = done
    two = dataclasses.replace(config, seeds=(0, 4), run=('evaluate',))
    systems = {name: config.systems[name] for name in ('xae', 'random')}
    table = dataclasses.replace(config.tables['one'], systems=('xae', 'random'), fusion=False)
    two = dataclasses.replace(two, systems=systems, tables={'one': table})
    copy = Path(shutil.copytree(workdir, tmp_path / 'copy', symlinks=True))
    assert run_tables(two, copy, never) == 0
    line = numbers(copy)['one', 'numbers', 'random', 'here', 's1', 'ap_micro']
    each = [
        next(r for r in rows_of(copy / 'linear_1' / f'random-{seed}') if r.modalities == ('s1',))
        for seed in (0, 4)
    ]
    assert each[0].checkpoints != each[1].checkpoints
    values = [
        next(
            x
            for x in read_replicates(copy / 'linear_1' / f'random-{seed}', 'linear')
            if x.about['modalities'] == ('s1',)
        )
        for seed in (0, 4)
    ]
    mean = np.mean([x.replicates.values['ap_micro'] for x in values], axis=0)
    assert line['seeds'] == '2' and line['runs'] == '4'
    assert float(line['low']) == pytest.approx(np.quantile(mean, 0.025), abs=1e-12)
    estimates = [x.replicates.estimate['ap_micro'] for x in values]
    assert float(line['estimate']) == pytest.approx(np.mean(estimates), abs=1e-12)
