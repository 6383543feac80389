"""The command `finetune` over a converted archive: rows, what settles them, and runs that were killed."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config.run import Augment
from fusmae_jax.encoders.load import records_seen
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fingerprint, fit, open_system
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.eval.config import Intervals, Labels, Task
from fusmae_jax.eval.features import Extractor
from fusmae_jax.eval.finetune import command, rows
from fusmae_jax.eval.finetune.command import run_finetune, settle
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.finetune.objective import network
from fusmae_jax.eval.finetune.point import RESULT, train
from fusmae_jax.eval.finetune.stored import ENCODER, keep_linear, own_head
from fusmae_jax.eval.finetune.train import Point, Trainer
from fusmae_jax.eval.metrics import values
from fusmae_jax.eval.task import measure, read_task
from fusmae_jax.input.source import Source, read_index
from tests.support.probe_fixtures import CLASSES, SIZES, checkpoint
from tests.support.result_rows import rows_of


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, depth=2)


def settings(path, run, **changes):
    values = {
        'data': Task(path=str(path), labels='labels', threads=1),
        'encoder': EncoderSettings(checkpoint=run, modalities=(('s1',),), baselines=('prior',), batch=32),
        'intervals': Intervals('scene', 20),
        'learning_rates': (1e-3, 3e-3),
        'epochs': 2.0,
        'batch_size': 32,
    }
    return Finetune(**values | changes)


class KilledError(Exception):
    """What ends a run in the middle."""


class Bench:
    """A trainer over the archive, and one point of it after the other."""

    def __init__(self, data, run):
        self.config = config = settings(data, run, epoch='best', epochs=3.0, drop_path=0.1, max_skips=3)
        self.task = read_task(config.data)
        self.system = open_system(run, config.encoder)
        self.fitted = fit(self.system.model, self.task.contract, ('s1',), config.encoder, 'data')
        net = network(self.system, self.fitted, self.task.contract, config, 'mean_patch', len(CLASSES))
        self.trainer = Trainer(config, net, self.system.model.params['encoder'], jax.devices()[:2])
        self.train, self.val = (Source(str(data), name, self.trainer.fields) for name in ('train', 'val'))

    def point(self, rate=1e-3, seed=0, records=SIZES['train']):
        positions = np.arange(records, dtype=np.int32)
        labels = self.task.train.labels[positions]
        about = rows.point_identity({}, positions, labels, rate, seed, (0, 0))
        return Point(rate, seed, positions, labels, about)

    def __call__(self, folder, point, kill_in=0):
        epochs = iter(range(1, 100))

        def judge(scores):
            if next(epochs) == kill_in:
                raise KilledError
            return values(measure(self.task, self.task.val, scores, 'multi_label', 0.0))['ap_micro']

        return train(self.trainer, self.train, self.val, point, judge, epath.Path(folder))


@pytest.fixture(scope='module')
def bench(data, run):
    return Bench(data, run)


@pytest.fixture(scope='module')
def traces():
    """How often each function was traced."""
    counts: dict[str, int] = {}

    def listen(event, _, **about):
        if event.endswith('jaxpr_trace_duration'):
            name = about.get('fun_name', '')
            counts[name] = counts.get(name, 0) + 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)


def state_of(bench, folder):
    checkpoints = Checkpoints(folder)
    state = checkpoints.restore(bench.trainer.abstract, checkpoints.latest())
    checkpoints.close()
    return jax.device_get(state)


def test_a_killed_point_goes_on_bit_by_bit_in_the_step_that_all_points_share(bench, traces, tmp_path):
    whole = bench(tmp_path / 'whole', bench.point())
    with pytest.raises(KilledError):
        bench(tmp_path / 'killed', bench.point(), kill_in=2)
    assert not (tmp_path / 'killed' / RESULT).exists()
    again = bench(tmp_path / 'killed', bench.point())
    assert again == whole and len(whole.values) == len(whole.losses) == 3
    assert whole.value == max(whole.values) and whole.step in whole.steps
    jax.tree.map(
        np.testing.assert_array_equal,
        state_of(bench, tmp_path / 'whole'),
        state_of(bench, tmp_path / 'killed'),
    )
    other = bench(tmp_path / 'other', bench.point(rate=3e-3, seed=1, records=40))
    assert other.losses != whole.losses and len(other.losses) == 3
    assert traces['step'] == 1 and traces['scores'] == 1
    assert bench(tmp_path / 'whole', bench.point(), kill_in=1) == whole  # finished: nothing is run
    with pytest.raises(InputError, match=r'learning_rate: 0\.001 there, 0\.002 here'):
        bench(tmp_path / 'whole', bench.point(rate=2e-3))


def test_at_a_rate_of_0_it_is_a_frozen_head(bench):
    """Drop path and flips belong to training: the scores know nothing of them."""
    point = bench.point(rate=0.0)
    before = jax.device_get(bench.trainer.start(point)['params'])
    state, _ = bench.trainer.advance(bench.trainer.start(point), bench.train, point, 0, 2)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state['params']))
    extractor = Extractor(bench.system, bench.config.data, ('s1',), ('mean_patch',), bench.config.encoder)
    features = extractor('val')['mean_patch'].values
    frozen = features @ before['head']['kernel'] + before['head']['bias']
    scores = bench.trainer.scores(state['params'], bench.val)
    np.testing.assert_allclose(scores, frozen, rtol=1e-4, atol=1e-5)


def test_the_encoder_of_a_point_opens_as_any_other(bench, data, tmp_path):
    point = bench.point(records=32)
    params = bench.trainer.start(point)['params']
    params = jax.tree.map(lambda x: x * 1.05, params)
    about = bench.system, bench.fitted, bench.task.contract, bench.config.data
    keep_linear(*about, 'mean_patch', params, point, epath.Path(tmp_path))
    file = str(tmp_path / ENCODER)
    system = open_system(file, EncoderSettings())
    assert system.name == f'{bench.system.name}, fine-tuned' and system.model.contract.dataset == 'probe'
    assert system.fingerprint == fingerprint(system.model) != bench.system.fingerprint
    known, before = records_seen(file), bench.system.seen
    assert before is None or (len(known.names.id) >= 32 and 'fine-tuning for labels' in known.sources[-1])
    # The head reads the same off its features as off the network that was trained.
    extractor = Extractor(system, bench.config.data, ('s1',), ('mean_patch',), bench.config.encoder)
    head = own_head(file, 'mean_patch', 'labels', CLASSES)
    read = extractor('val')['mean_patch'].values @ head['kernel'][:, 0] + head['bias'][0]
    scores = bench.trainer.scores(params, bench.val)
    np.testing.assert_allclose(read, scores, rtol=1e-4, atol=1e-5)
    for given in ((file, 'cls', 'labels'), (file, 'mean_patch', 'one')):
        with pytest.raises(InputError, match="a head for 'labels' on 'mean_patch'"):
            own_head(*given, CLASSES)
    # Of the same field of another data set, with its classes in another order, or more of them.
    for classes in (CLASSES[::-1], (*CLASSES, 'new')):
        with pytest.raises(InputError, match=r'a head for 3 classes of .* with the same ones in this order'):
            own_head(file, 'mean_patch', 'labels', classes)
    with pytest.raises(InputError, match=r'no head\.npz beside it'):
        own_head('runs/xae', 'mean_patch', 'labels', CLASSES)


@pytest.mark.slow
def test_it_learns_a_small_set_by_heart(bench):
    point = bench.point(rate=3e-3, records=32)
    point = point._replace(labels=np.random.default_rng(5).integers(0, 2, (32, 3)).astype(np.uint8))
    state = bench.trainer.start(point)
    pace = state['opt_state'].pace._replace(total=np.int32(400))
    state['opt_state'] = state['opt_state']._replace(pace=jax.device_put(pace, state['step'].sharding))
    state, loss = bench.trainer.advance(state, bench.train, point, 0, 200)
    state, last = bench.trainer.advance(state, bench.train, point, 200, 210)
    assert last < 0.35 < loss
    right = (bench.trainer.scores(state['params'], bench.train)[:32] > 0) == point.labels
    assert right.mean() > 0.9


def test_a_rate_that_diverges_is_out(bench, tmp_path):
    lost = bench(tmp_path, bench.point(rate=1e38))
    assert lost.step == 0 and lost.value == -np.inf and bench(tmp_path, bench.point(rate=1e38)) == lost


def test_what_settles_a_sweep(tmp_path):
    rates, lost = (1.0, 2.0, 3.0), -np.inf

    def settled(*rows, together=True):
        return list(settle(rates, {f'arm {i}': row for i, row in enumerate(rows)}, together).values())

    assert settled([0.1, 0.3, 0.2]) == [2]
    assert settled([0.25, 0.75, 0.5], [0.75, 0.125, 0.5]) == [1, 1]  # equal to 3: the first
    assert settled([0.25, 0.875, 0.25], [0.5, lost, 0.25]) == [1, 1]  # 2 diverged in one of them
    assert settled([0.1, 0.9, 0.2], [0.5, lost, 0.4], together=False) == [2, 1]
    with pytest.raises(DivergedError, match='every learning rate'):
        settled([lost, lost, lost])
    folders = [epath.Path(tmp_path / name) for name in 'ab']
    for folder, arms in zip(folders, ({'x': [0.25, 0.875, 0.25]}, {'x': [0.5, lost, 0.25], 'y': [0, 1, 0]})):
        folder.mkdir()
        command.write_sweep(folder, rates, arms)
    assert command.settled(folders[:1]) == 2 and command.settled(folders) == 1
    (folders[1] / command.SWEEP).write_text('{')
    with pytest.raises(InputError, match='not a sweep that can be read'):
        command.settled(folders)


@pytest.fixture(scope='module')
def first(data, run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('first')
    assert run_finetune(settings(data, run), workdir) == 0
    return workdir


def lines_of(workdir):
    return (workdir / 'rows-finetune.jsonl').read_text().splitlines()


def results_of(workdir):
    return {str(f.relative_to(workdir)): json.loads(f.read_text()) for f in workdir.rglob(RESULT)}


@pytest.mark.slow
def test_rows_say_everything(first):
    rows = {r.system: r for r in rows_of(first, 'finetune') if (r.metric, r.averaging) == ('ap', 'micro')}
    assert list(rows) == ['pretrain', 'train prior']
    one, prior = rows.values()
    assert (one.method, one.preset, one.pooled, one.head_seeds) == ('finetune', 'custom', 'mean_patch', (0,))
    assert (one.train_records, one.records, one.classes) == (SIZES['train'], SIZES['test'], CLASSES)
    assert one.sweep['learning_rate'] == (1e-3, 3e-3) and one.sweep['epochs'] == (2.0,)
    assert (
        one.chosen.keys() == {'learning_rate'}
        and one.settled_on == 'val, ap_micro; last epoch'
        and one.absent == 'self'
    )
    assert one.image == 'resize 32 x 32' and one.leaks['id'] == 0 and one.low < one.high
    assert prior.chosen == {} and prior.modalities == () and 0 < prior.estimate < 1
    (difference,) = [json.loads(x) for x in (first / 'differences-finetune.jsonl').read_text().splitlines()]
    assert difference['metrics']['ap_micro']['estimate'] == pytest.approx(one.estimate - prior.estimate)
    kept = {f.parent.parent.name for f in first.glob('points/*/*/checkpoints/*') if f.name.isdigit()}
    assert kept == {f'1-draw0-seed0-lr{one.chosen["learning_rate"][0]:g}'}
    assert {f.parent.name for f in first.glob(f'points/*/*/{ENCODER}')} == kept


@pytest.mark.slow
def test_a_killed_run_gives_the_same_rows(first, data, run, tmp_path):
    """A run of which one point and the scores of another are missing; it was killed before the rows."""
    copy = tmp_path / 'copy'
    shutil.copytree(first, copy)
    wanted = lines_of(first)
    (copy / 'rows-finetune.jsonl').unlink()
    for folder in (copy / 'points').glob('*/*'):
        if (folder / 'checkpoints').exists():
            (folder / 'scores-test.npz').unlink()
        else:
            shutil.rmtree(folder)
    run_finetune(settings(data, run), copy)
    assert lines_of(copy) == wanted
    with pytest.raises(InputError, match=r'recipe: .* use another --workdir'):
        run_finetune(settings(data, run, weight_decay=0.1), copy)
    # What was refused leaves the settings that the rows are of.
    assert json.loads((copy / 'settings-finetune.json').read_text())['weight_decay'] == 0.05


@pytest.mark.slow
def test_test_labels_change_neither_what_is_learned_nor_what_is_chosen(first, data, run, tmp_path):
    copy = Path(shutil.copytree(data, tmp_path / data.parent.name / data.name))
    index = read_index(copy, 'test')
    index['labels'] = 1 - index['labels'][::-1]
    np.savez(copy / 'index-test.npz', **index)
    run_finetune(settings(copy, run), tmp_path / 'out')
    assert results_of(tmp_path / 'out') == results_of(first)
    pairs = list(zip(rows_of(first, 'finetune'), rows_of(tmp_path / 'out', 'finetune')))
    assert all(a.chosen == b.chosen for a, b in pairs)
    assert any(a.estimate != b.estimate for a, b in pairs)


@pytest.mark.slow
def test_one_class_a_record_in_four_crops_by_the_recommended_preset(data, run, tmp_path):
    """Both sensors beside the untrained baseline, two label draws and two seeds."""
    config = settings(
        data,
        run,
        data=Task(path=str(data), labels='one', kind='single_label'),
        encoder=EncoderSettings(
            checkpoint=run,
            modalities=(('s1', 's2'),),
            baselines=('random', 'prior'),
            batch=32,
            accept=('resolution',),
        ),
        labels=Labels(fractions=(0.1, 1.0), seeds=(0, 1)),
        image='crops',
        augment=Augment(crop_scale=(0.5, 1.0), vflip=0.5),
        layer_decay=0.65,
        drop_path=0.1,
        epoch='best',
        settle='each',
        head_seeds=(0, 1),
        preset='recommended',
    )
    run_finetune(config, tmp_path)
    rows = {(r.system, r.label_fraction): r for r in rows_of(tmp_path, 'finetune') if r.metric == 'top1'}
    assert len(rows) == 6
    one = rows['pretrain', 0.1]
    assert (one.runs, one.draw_seeds, one.train_records, one.modalities) == (4, (0, 1), 6, ('s1', 's2'))
    assert one.image == 'crops 4 x 12, resize 32 x 32' and len(one.chosen['epoch']) == 4
    before = lines_of(tmp_path)
    run_finetune(config, tmp_path)
    assert lines_of(tmp_path) == before
