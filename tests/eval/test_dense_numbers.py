"""Maps of numbers: `dense_probe` and `dense_finetune` over a converted archive, and what they are made of."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from fusmae_jax.config.run import Augment
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval import metrics
from fusmae_jax.eval.config import Intervals, Knn, Task
from fusmae_jax.eval.config import check as check_knn
from fusmae_jax.eval.dense import heads, losses, numbers, score
from fusmae_jax.eval.dense.config import DenseFinetune, DenseKnn, DenseProbe, MapCalibration, check
from fusmae_jax.eval.dense.finetune import _arms, run_dense_finetune
from fusmae_jax.eval.dense.heads import HeadShape
from fusmae_jax.eval.dense.probe import run_dense_probe
from fusmae_jax.eval.dense.stored import read_head
from fusmae_jax.eval.dense.task import MappedSource, open_maps
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.finetune.stored import ENCODER, HEAD
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.input.number_maps import joined, moments
from tests.support.number_map_fixtures import QUANTITY, SIDE, SIZES, UNIT, archive, truth
from tests.support.probe_fixtures import checkpoint
from tests.support.result_rows import rows_of

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return archive(tmp_path_factory.mktemp('numbers'))


def settings(kind, path, labels='map', run='bands', **changes):
    values = {
        'data': Task(str(path), labels=labels, kind='map_regression', threads=1),
        'encoder': EncoderSettings(run, baselines=('prior',), modalities=(('s1',),), batch=8),
        'intervals': Intervals('scene', 20),
        'learning_rates': (0.3,),
        'head_seeds': (0,),
        'batch_size': 8,
        'epochs': 20.0,
    }
    return kind(**values | changes)


def probed(folder, *given, **changes):
    """Metric of the system, and of the mean of the training pixels -> row."""
    assert run_dense_probe(settings(DenseProbe, *given, **changes), folder) == 0
    rows = rows_of(folder, 'dense_probe')
    return [
        {r.metric: r for r in rows if r.label and (r.method == 'dense_probe') is of_probe}
        for of_probe in (True, False)
    ]


@pytest.fixture(scope='module')
def linear(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('linear')
    return (*probed(folder, data), folder)


def test_a_map_that_is_linear_in_the_pixels_is_learned_and_the_mean_is_the_floor(linear):
    measured, floor, folder = linear
    assert measured['r2'].estimate > 0.999 and measured['rmse'].estimate < 0.2
    assert measured['rmse'].unit == measured['mae'].unit == UNIT and measured['r2'].unit is None
    assert measured['r2'].label == QUANTITY and measured['r2'].clusters == 4
    assert measured['r2'].low <= measured['r2'].estimate <= measured['r2'].high
    every = np.concatenate([truth(0, i).ravel().astype(np.float64) for i in range(SIZES['train'])])
    test = np.concatenate([truth(2, i).ravel().astype(np.float64) for i in range(SIZES['test'])])
    test, mean = test[np.isfinite(test)], np.nanmean(every)
    assert floor['r2'].method == 'mean of the training pixels'
    for name, metric in (('mae', mean_absolute_error), ('rmse', root_mean_squared_error), ('r2', r2_score)):
        wanted = metric(test, np.full(len(test), mean))
        assert floor[name].estimate == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    (line,) = map(json.loads, (folder / 'differences-dense_probe.jsonl').read_text().splitlines())
    change = line['metrics'][f'rmse/{QUANTITY}']['estimate']
    assert change == pytest.approx(measured['rmse'].estimate - floor['rmse'].estimate)


def test_what_stands_in_pixels_without_a_number_changes_nothing(data, linear, tmp_path):
    """-9999 by the contract, or NaN and infinity, or -32768 beside whole numbers with scale and offset."""
    again, floor = probed(tmp_path / 'nan', data, 'nan')
    for one, other in ((again, linear[0]), (floor, linear[1])):
        assert [one[name].estimate for name in one] == [other[name].estimate for name in one]
    whole = MappedSource(Task(str(data), labels='whole', kind='map_regression'), 'test', ())
    for i in range(len(whole)):
        name = whole.index(['name'])['name'][i]
        np.testing.assert_allclose(whole[i][TARGETS], truth(2, int(name[-4:])), atol=0.006)


@pytest.mark.parametrize('field', ['noise', 'shifted'])
def test_noise_is_not_learned_and_a_map_one_pixel_to_the_side_is_noticed(field, data, tmp_path):
    measured, _ = probed(tmp_path, data, field, epochs=10.0)
    assert -0.05 < measured['r2'].estimate < 0.05


def test_flips_and_turns_move_images_and_map_together(data, tmp_path):
    augment = Augment(crop=False, hflip=0.5, vflip=0.5)
    assert probed(tmp_path, data, augment=augment, rot90=True)[0]['r2'].estimate > 0.999


def test_few_records_are_standardised_by_themselves(data):
    task, _ = open_maps(settings(DenseProbe, data))
    part = np.array([1, 3, 4])
    names = [task.train.keys[i] for i in part]
    here = np.concatenate([truth(0, int(name[-4:])).ravel() for name in names])
    scale = numbers.scale_of(task.train.labels[part], QUANTITY)
    assert scale.mean == pytest.approx(np.nanmean(here), rel=1e-6)
    assert scale.std == pytest.approx(np.nanstd(here), rel=1e-5)
    batch = MappedSource(settings(DenseProbe, data).data, 'train', (), part, scale)
    both = np.stack([batch[i][TARGETS] for i in range(3)])
    assert both.dtype == np.float32 and both.shape == (3, SIDE, SIDE)
    assert abs(np.nanmean(both)) < 1e-4 and np.nanstd(both) == pytest.approx(1, abs=1e-4)


def test_metrics_are_those_of_all_pixels_together():
    rng = np.random.default_rng(0)
    real = rng.normal(1000, 3, (6, 5, 4)).astype(np.float32)
    real[rng.random(real.shape) < 0.3] = np.nan
    real[2] = np.nan
    guess = rng.normal(1000, 3, real.shape).astype(np.float32)
    there = np.isfinite(real)
    each = np.stack([moments(x) for x in real])
    sums = np.asarray(score.errors(jnp.asarray(guess)[..., None], jnp.asarray(real)))
    assert sums[2].tolist() == [0, 0]
    measured = metrics.values(numbers.measured(sums, each, 'x'))
    wide, wanted = guess[there].astype(np.float64), real[there].astype(np.float64)
    assert measured['r2/x'] == pytest.approx(r2_score(wanted, wide), rel=1e-5)
    assert measured['rmse/x'] == pytest.approx(root_mean_squared_error(wanted, wide), rel=1e-5)
    assert measured['mae/x'] == pytest.approx(mean_absolute_error(wanted, wide), rel=1e-5)
    np.testing.assert_allclose(joined(each), moments(real), rtol=1e-12)
    guess[0, 0, 0] = np.inf
    sums = np.asarray(score.errors(jnp.asarray(guess)[..., None], jnp.asarray(real)))
    assert np.isnan(sums[0]).all() and np.isfinite(sums[1:]).all()
    with pytest.raises(InputError, match='has the model diverged'):
        numbers.measured(sums, each, 'x')


def test_a_pixel_without_a_number_has_a_gradient_of_exactly_zero():
    real = jnp.array([[[1.0, jnp.nan], [3.0, jnp.inf]]])
    guess = jnp.array([[[2.0, 7.0], [1.0, 9.0]]])[..., None]
    value, slope = jax.value_and_grad(losses.squared)(guess, real)
    assert value == 2.5 and slope[..., 0].tolist() == [[[1.0, 0.0], [-2.0, 0.0]]]
    assert not jax.grad(losses.squared)(guess, jnp.full((1, 2, 2), jnp.nan)).any()


@pytest.mark.parametrize('kind', heads.KINDS)
def test_a_head_says_its_numbers_in_the_units_of_the_data(kind):
    shape, scale = HeadShape(kind, 6, 1, 4, 5), Scale(np.float32(200), np.float32(30))
    head = jax.jit(lambda key: heads.init(key, shape))(jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (2, 3, 3, 6))
    apply = jax.jit(lambda params: score.scores(params, features, shape, (7, 11)))
    plain, moved = apply(head), apply(numbers.in_units(head, kind, scale))
    np.testing.assert_allclose(moved, 200 + 30 * plain, rtol=1e-5)


@pytest.mark.slow  # compiles forward and backward of an encoder with a decoder
def test_fine_tuning_learns_numbers_and_a_rerun_trains_nothing(data, tmp_path):
    run = checkpoint(tmp_path / 'run', data, depth=2)
    changes = {'head': 'shuffle', 'learning_rates': (1e-2,), 'batch_size': 4, 'epochs': 30.0}
    config = settings(DenseFinetune, data, 'map', run, **changes)
    assert run_dense_finetune(config, tmp_path) == 0
    rows = {(r.method, r.metric): r for r in rows_of(tmp_path, 'dense_finetune') if r.label}
    assert rows['dense_finetune', 'r2'].estimate > 0.3
    assert rows['dense_finetune', 'rmse'].estimate < rows['mean of the training pixels', 'rmse'].estimate
    before = (tmp_path / 'rows-dense_finetune.jsonl').read_text()
    assert run_dense_finetune(config, tmp_path) == 0
    assert (tmp_path / 'rows-dense_finetune.jsonl').read_text() == before
    # Encoder and head, opened again, score the test split as the fine-tuning did.
    (result,) = tmp_path.glob('points/*/*/result.json')
    file = str(result.parent / ENCODER)
    system, head = open_system(file, config.encoder), read_head(result.parent / HEAD)
    assert (head.labels.quantity, head.labels.unit, head.labels.size) == (QUANTITY, UNIT, (SIDE, SIDE))
    again = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, checkpoint=file))
    trainer = next(_arms(again, open_maps(again)[0], tmp_path)).trainer
    params = {'encoder': system.model.params['encoder'], 'head': head.params}
    scores = trainer.scores(params, MappedSource(config.data, 'test', trainer.fields))
    with np.load(result.parent / 'scores-test.npz') as stored:
        np.testing.assert_allclose(scores, stored['scores'], rtol=1e-4)


@pytest.mark.parametrize(
    ('kind', 'changes', 'message'),
    [
        (DenseKnn, {}, '`dense_probe` and `dense_finetune` learn maps of numbers'),
        (DenseProbe, {'calibration': MapCalibration(100)}, 'numbers to predict have no probabilities'),
        (DenseProbe, {'loss': 'dice'}, "loss='dice' is of classes"),
        (DenseProbe, {'metric': 'iou_macro'}, "metric='iou_macro'; did you mean|metric='iou_macro'; "),
        (Knn, {}, '`dense_probe` and `dense_finetune` take maps of numbers'),
    ],
)
def test_settings_that_cannot_be_are_one_error(kind, changes, message):
    data = Task('somewhere', labels='map', kind='map_regression')
    with pytest.raises(InputError, match=message):
        (check_knn if kind is Knn else check)(kind(data=data, **changes))


def test_a_field_of_the_other_kind_and_records_without_numbers_are_one_error(data, tmp_path):
    wrong = settings(DenseProbe, data, data=Task(str(data), labels='map', kind='segmentation'))
    with pytest.raises(InputError, match=r"it holds numbers: data\.kind='map_regression'"):
        run_dense_probe(wrong, tmp_path)
    with pytest.raises(InputError, match="no map of numbers 'mpa'"):
        run_dense_probe(settings(DenseProbe, data, 'mpa'), tmp_path)
    with pytest.raises(InputError, match='biomass: 1 labelled records have no number'):
        numbers.scale_of(np.zeros((1, 3)), QUANTITY)
