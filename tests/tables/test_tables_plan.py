"""Stages of a study: what tells them apart, when they run, impossible settings, and kills in each of them."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.config.build import from_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.errors import InputError
from fusmae_jax.tables import recipes
from fusmae_jax.tables.config import StudyArchive, StudySystem, StudyTable, Tables, check, digest
from fusmae_jax.tables.plan import StudyPlan
from fusmae_jax.tables.stages import Stage, changes, run, state
from tests.support.probe_fixtures import checkpoint
from tests.support.tables_fixtures import never, study


def test_other_weights_behind_a_path_are_another_cell(data, tmp_path):
    """Alone, as the architecture of an untrained model, and as a part of late fusion; wherever they lie."""
    runs = {s: checkpoint(tmp_path / s, data, depth=1, modalities=(s,)) for s in ('s1', 's2')}
    systems = {s: StudySystem(s, checkpoint=run, sensors=(s,)) for s, run in runs.items()}
    systems |= {'late': StudySystem('late', beside=('s1', 's2'))}
    systems |= {'random': StudySystem('random', baseline='random', like='s1', sensors=('s1',))}
    table = StudyTable('One', tuple(systems), ('linear_1',))
    config = study(data, systems=systems, tables={'one': table})

    def digests(config):
        plan = StudyPlan(config, tmp_path / 'study', never)
        return {name: plan.cell('linear_1', name, 0).digest for name in ('s1', 'late', 'random')}, plan.digest

    before, whole = digests(config)
    moved = shutil.copytree(runs['s1'], tmp_path / 'moved')
    there = dataclasses.replace(systems['s1'], checkpoint=str(moved))
    assert digests(dataclasses.replace(config, systems=systems | {'s1': there}))[0] == before
    shutil.rmtree(runs['s1'])
    checkpoint(tmp_path / 's1', data, seed=9, depth=1, modalities=('s1',))
    after, other = digests(config)
    assert whole != other
    assert not set(before.items()) & set(after.items())


def test_the_digest_follows_the_files_that_a_study_names(data, tmp_path):
    text, line = Path('configs/pretrain.py').read_text(), '    return config\n'
    digests = []
    for change in ('', '    config.masking.ratio = 0.5\n'):
        file = tmp_path / 'own.py'
        file.write_text(text.replace(line, change + line, 1))
        config = study(data)
        system = dataclasses.replace(config.systems['xae'], pretrain=f'{file}:xae')
        config = dataclasses.replace(config, systems=config.systems | {'xae': system})
        digests.append((digest(config), StudyPlan(config, tmp_path / 'out', never).digest))
    (same, first), (still, second) = digests
    assert same == still and first != second


def test_a_stage_is_run_until_it_is_complete_and_never_under_other_settings(tmp_path):
    ran = []

    def stage(seed=0, pairs=3, finishes=True):
        def action():
            ran.append(seed)
            return finishes

        below = Stage('data', tmp_path / 'data', 'data/a', {'pairs': pairs}, (), lambda: True)
        return Stage('pretrain', tmp_path / 'p', 'pretrain/b', {'seed': seed}, (below,), action)

    assert state(stage()) == 'missing'
    assert not run(stage(finishes=False)) and state(stage()) == 'begun'
    assert run(stage()) and state(stage()) == 'complete' and ran == [0, 0]
    assert state(stage(seed=1)) == 'changed' and changes(stage(seed=1)) == ['seed: made with 0, asked for 1']
    assert changes(stage(pairs=4)) == ['what it needs, data/a, has changed']
    with pytest.raises(InputError, match='made with other settings'):
        run(stage(seed=1))
    assert ran == [0, 0] and state(stage()) == 'complete'


def test_every_impossible_setting_is_told_at_once(data):
    config = study(data, 'somewhere', seeds=(1, 1), run=('pretrian',))
    odd = {'random': dataclasses.replace(config.systems['random'], like='xea')}
    systems = config.systems | odd | {'late': StudySystem('late', beside=('xae', 'random'), sensors=('s1',))}
    config = dataclasses.replace(config, systems=systems, archives={'probe': StudyArchive()})
    with pytest.raises(InputError) as error:
        check(config)
    known = ('seeds=(1, 1)', "did you mean 'pretrain'", "did you mean 'xae'", 'archives.probe')
    for words in (*known, "late.beside: 'random'", 'late.sensors'):
        assert words in str(error.value)


@pytest.mark.parametrize('system', ['xae', 'bands'])
def test_a_study_is_of_classes(system):
    """Its tables have no place for errors in units, and the paper no head for them."""
    config = study('somewhere')
    task = config.tasks['linear_1']
    task = dataclasses.replace(task, command='finetune', config='configs/finetune.py')
    task = dataclasses.replace(task, settings=('data.kind=regression', 'labels.fractions=(1.0,)'))
    config = dataclasses.replace(config, tasks={'biomass': task})
    with pytest.raises(InputError, match=r"tasks.biomass with .*data.kind='regression'; .* run `finetune`"):
        recipes.evaluation(config, 'biomass', system, (('s1',),))


def test_the_digest_is_of_what_changes_numbers(data):
    config = study(data, 'x')
    assert digest(config) == digest(dataclasses.replace(config, run=()))
    assert digest(config) != digest(dataclasses.replace(config, seeds=(3,)))


@pytest.mark.parametrize('variant', ['', ':demo', ':synthetic', ':fusion_masking'])
def test_the_configurations_name_what_exists(variant, tmp_path):
    config = from_dict(Tables, load_config(f'configs/tables.py{variant}'))
    check(config)
    plan = StudyPlan(config, tmp_path, never)
    stages = list(plan.stages())
    assert len({stage.name for stage in stages}) == len(stages)
    seen = set()
    for stage in stages:
        assert {needed.name for needed in stage.needs} <= seen
        seen.add(stage.name)


def test_the_synthetic_study_tests_enough():
    config = from_dict(Tables, load_config('configs/tables.py:synthetic'))
    (generated,) = config.archives.values()
    assert len(config.seeds) == 3 and generated.pairs // 2 * 0.1 >= 200
    assert config.systems['random'].like == 'xae'
    assert len(config.tables['need_both'].classes) == 4
    assert np.isin(['linear_10', 'linear_1'], list(config.tasks)).all()


ROOT = Path(__file__).parents[2]
# In the order in which they come.
STAGES = ('data/probe', 'pretrain/xae-0', 'linear_1/xae-0', 'pretrain/xae-1', 'linear_1/random-1')
KINDS = ('md', 'csv', 'tex')


def generated():
    """The study with 48 made-up pairs and two seeds."""
    from fusmae_jax.tables.config import StudyArchive

    config = study('')
    task = config.tasks['linear_1']
    settings = tuple(x for x in task.settings if not x.startswith(('data.labels', 'intervals.cluster')))
    two = dataclasses.replace(
        config.tables['two'], classes=('Arable land', 'Pastures'), metrics=('ap_classes',)
    )
    return dataclasses.replace(
        config,
        archives={'probe': StudyArchive(pairs=48, seed=3)},
        tasks={'linear_1': dataclasses.replace(task, settings=settings)},
        tables={'one': config.tables['one'], 'two': two},
        seeds=(0, 1),
    )


def worker(workdir):
    """What the killed process runs."""
    from fusmae_jax.shipped.data.generate.converted import make
    from fusmae_jax.tables.run import run_tables

    return run_tables(generated(), workdir, make)


def start(workdir):
    code = f'import sys; from tests.tables.test_tables_plan import worker; sys.exit(worker({str(workdir)!r}))'
    with open(workdir / 'log.txt', 'a') as log:
        return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=log, stderr=log)


def kill_in(stage, workdir):
    """Runs the study until a stage has begun, and a little longer; then it dies."""
    process, mark = start(workdir), workdir / stage / 'stage.json'
    while process.poll() is None and not mark.exists():
        time.sleep(0.02)
    time.sleep(0.1)
    assert process.poll() is None, (workdir / 'log.txt').read_text()[-2000:]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not json.loads(mark.read_text())['complete']


@pytest.mark.slow
def test_killed_in_any_stage_it_ends_with_the_same_tables(tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    for folder in (whole, broken):
        folder.mkdir()
    assert start(whole).wait() == 0, (whole / 'log.txt').read_text()[-2000:]
    for stage in STAGES:
        kill_in(stage, broken)
    assert start(broken).wait() == 0, (broken / 'log.txt').read_text()[-2000:]
    for kind in KINDS:
        assert (broken / f'tables.{kind}').read_bytes() == (whole / f'tables.{kind}').read_bytes()
