"""Numbers to predict, from a table to rows: metrics, missing values, units, and the commands on them."""

import csv
import dataclasses
import functools

import jax
import numpy as np
import pytest
import rasterio
from sklearn import metrics as sklearn

from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval import cells, intervals, knn, linear_probe, regression
from fusmae_jax.eval.config import Calibration, Intervals, Knn, Labels, LinearProbe, Task, check
from fusmae_jax.eval.features import Extractor
from fusmae_jax.eval.finetune import command
from fusmae_jax.eval.finetune.command import run_finetune
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.finetune.config import check as check_finetune
from fusmae_jax.eval.finetune.stored import HEAD
from fusmae_jax.eval.metrics import judged, values
from fusmae_jax.eval.probe import run_knn, run_linear_probe
from fusmae_jax.eval.row import number_fields
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.source import read_index
from fusmae_jax.shipped.data import report, sharded
from fusmae_jax.shipped.data.paired_folder import pairs
from fusmae_jax.shipped.data.paired_folder.settings import Archive
from tests.support.probe_fixtures import checkpoint
from tests.support.result_rows import rows_of

SIZES = {'train': 48, 'val': 24, 'test': 24}
TARGETS, UNITS = ('height', 'noise'), ('m', '')
ACCEPT = ('order', 'range', 'level', 'offset', 'brightness', 'floor', 'fill', 'statistics', 'resolution')


def folder_of_images(folder):
    """Radar images whose mean VV explains `height`, and `noise` that they do not. Some cells are empty."""
    rng = np.random.default_rng(3)
    (folder / 's1').mkdir(parents=True)
    rows = []
    for i, split in enumerate(name for name, count in SIZES.items() for _ in range(count)):
        level = rng.uniform(-18, -6)
        image = rng.normal([[[level]], [[level - 7]]], 1, (2, 24, 24)).astype(np.float32)
        place = rasterio.Affine(10, 0, 300_000 + 1000 * i, 0, -10, 5_900_000)
        with rasterio.open(
            folder / 's1' / f'a{i}.tif',
            'w',
            driver='GTiff',
            count=2,
            height=24,
            width=24,
            dtype='float32',
            crs='EPSG:32632',
            transform=place,
        ) as file:
            file.write(image)
            file.descriptions = ('VV', 'VH')
        height = '' if i % 12 == 5 else f'{200 + 5 * image[0].mean():.4f}'
        row = {'s1': f'a{i}.tif', 'split': split, 'scene': f'scene{i % 6}', 'height': height}
        rows.append(row | {'noise': 'nan' if i % 12 == 7 else f'{rng.normal():.3f}'})
    write_table(folder, rows)
    return rows


def write_table(folder, rows):
    with (folder / 'table.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def archive(folder, **changes):
    given = {'s1_root': str(folder / 's1'), 's1_unit': 'dB', 's1_calibration': 'sigma0', 'tile': 24}
    return Archive(
        **given | {'table': str(folder / 'table.csv'), 'targets': TARGETS, 'target_units': UNITS} | changes
    )


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp('numbers')
    return folder, folder_of_images(folder)


@pytest.fixture(scope='module')
def converted(raw, tmp_path_factory):
    source = pairs.source(archive(raw[0]))
    return sharded.convert(source, tmp_path_factory.mktemp('data'), records_per_shard=7)


@pytest.fixture(scope='module')
def numbers(converted):
    return str(converted[0])


def settings(kind, data, run, **changes):
    given = {
        'data': Task(path=data, labels='targets', kind='regression', threads=1),
        'encoder': EncoderSettings(
            checkpoint=run,
            modalities=(('s1',),),
            baselines=('prior',),
            batch=24,
            stats='dataset',
            accept=ACCEPT,
        ),
        'labels': Labels(fractions=(1.0,)),
        'intervals': Intervals('scene', 50),
        'batch_size': 16,
        'head_seeds': (0,),
    }
    return kind(**given | changes)


def test_the_records_have_the_numbers_of_the_table_with_their_units(raw, numbers):
    made = contracts.read(numbers)
    assert made.targets == {'targets': contracts.Targets(TARGETS, UNITS)}
    assert made.fields['targets'].startswith('height (m), noise; NaN where it is missing')
    index = read_index(numbers, 'train')
    stored = dict(zip(index['name'].tolist(), index['targets']))
    for row in (row for row in raw[1] if row['split'] == 'train'):
        numbers_of_record = stored[f'{row["s1"][:-4]}_0_0'.encode()]
        expected = [float(row[name] or 'nan') for name in TARGETS]
        np.testing.assert_array_equal(numbers_of_record, np.float32(expected))
    assert np.isnan(index['targets']).sum(axis=0).tolist() == [4, 4]
    again = contracts.from_json(made.to_json(), 'again')
    assert again.digest == made.digest and again.targets == made.targets


def test_a_conversion_says_how_many_records_have_which_numbers(raw, converted):
    _, made = converted
    for split, about in made['splits'].items():
        cells = [row['height'] for row in raw[1] if row['split'] == split]
        there = np.float32([float(cell) for cell in cells if cell]).astype(np.float64)
        heights = about['targets']['targets']['height']
        assert (heights['unit'], heights['records']) == ('m', len(there)) and len(there) < len(cells)
        extremes = [heights[name] for name in ('mean', 'minimum', 'maximum')]
        np.testing.assert_allclose(extremes, [there.mean(), there.min(), there.max()])
    text = report.summary(made)
    assert '44 of 48 records, mean' in text and text.count('height (m)') == 3


@pytest.mark.parametrize(
    ('cell', 'changes', 'message'),
    [
        ('3,5', {}, r"row 2, height: '3,5' is no number; write one with a decimal point"),
        ('tall', {}, r"row 2, height: 'tall' is no number"),
        (
            '-9999',
            {},
            r'row 2, height: -9999, which mostly stands for no value; set config.archive.target_nodata',
        ),
        ('-99', {}, r'row 2, height: -99, .* target_measured=\(-99\.0,\) if it was measured'),
        ('1_5', {}, r"row 2, height: '1_5' is no number"),
        ('1', {'target_measured': (1.0,), 'target_nodata': (1.0,)}, r'1 is in target_nodata too'),
        ('inf', {}, r'row 2, height: inf, which mostly stands for no value; leave the cell empty'),
        ('1', {'targets': ('heigth',), 'target_units': ()}, r"no column 'heigth' .*did you mean 'height'"),
        ('1', {'targets': ('split',), 'target_units': ()}, r"column 'split' has another meaning"),
        ('1', {'target_units': ('m',)}, r'1 units for 2 targets'),
        ('1', {'targets': (), 'target_units': ('m',)}, r'target_units: there are no targets'),
        ('1', {'targets': ('height', 'height')}, r'a column is named twice'),
    ],
)
def test_what_is_no_number_is_refused(raw, tmp_path, cell, changes, message):
    folder, rows = raw
    write_table(tmp_path, [rows[0] | {'height': cell}, *rows[1:]])
    with pytest.raises(InputError, match=message):
        pairs.source(archive(folder, table=str(tmp_path / 'table.csv'), **changes))


def test_a_value_declared_as_missing_is_missing(raw, tmp_path):
    folder, rows = raw
    write_table(tmp_path, [rows[0] | {'height': '-9999.0'}, *rows[1:]])
    source = pairs.source(archive(folder, table=str(tmp_path / 'table.csv'), target_nodata=(-9999.0,)))
    records = [source.read(item) for item in source.splits['train'] if item.key == 'a0_0_0']
    assert np.isnan(records[0]['targets'][0]) and np.isfinite(records[0]['targets'][1])
    # Or measured, where that is what it is.
    measured = pairs.source(archive(folder, table=str(tmp_path / 'table.csv'), target_measured=(-9999.0,)))
    (record,) = (measured.read(item) for item in measured.splits['train'] if item.key == 'a0_0_0')
    assert record['targets'][0] == -9999
    # A single value is one, though 32 bits round it.
    write_table(tmp_path, [row | {'height': '0.1' if i == 1 else ''} for i, row in enumerate(rows)])
    pairs.source(archive(folder, table=str(tmp_path / 'table.csv')))
    # 32 bits hold steps of 128 there.
    write_table(tmp_path, [row | {'height': f'{1.7e9 + i}'} for i, row in enumerate(rows)])
    with pytest.raises(InputError, match=r'32 bits, would change them by up to .*; subtract a constant'):
        pairs.source(archive(folder, table=str(tmp_path / 'table.csv')))
    write_table(tmp_path, [row | {'noise': ''} for row in rows])
    with pytest.raises(InputError, match="column 'noise': no row has a number"):
        pairs.source(archive(folder, table=str(tmp_path / 'table.csv')))


def test_metrics_equal_those_of_scikit_learn_over_the_values_that_there_are():
    rng = np.random.default_rng(0)
    truth, scores = rng.normal(5, 3, (2, 40, 3))
    truth[rng.random(truth.shape) < 0.2] = np.nan
    truth[:, 2] = np.nan  # a target that this split lacks
    metrics = values(regression.predicted(scores, truth, ('a', 'b', 'c')))
    for i, name in enumerate('ab'):
        known = np.isfinite(truth[:, i])
        y, p = truth[known, i], scores[known, i]
        assert metrics[f'rmse/{name}'] == pytest.approx(sklearn.root_mean_squared_error(y, p), rel=1e-12)
        assert metrics[f'mae/{name}'] == pytest.approx(sklearn.mean_absolute_error(y, p), rel=1e-12)
        assert metrics[f'r2/{name}'] == pytest.approx(sklearn.r2_score(y, p), rel=1e-10)
    assert np.isnan(metrics['r2/c']) and np.isnan(metrics['mae/c'])
    assert metrics['r2_macro'] == pytest.approx((metrics['r2/a'] + metrics['r2/b']) / 2)
    # A record that counts twice is as if it stood there twice.
    groups, multiplicity = np.arange(40), rng.integers(0, 3, 40)
    drawn = np.repeat(groups, multiplicity)
    once = values(regression.predicted(scores[drawn], truth[drawn], ('a', 'b', 'c')))
    resampled = regression.predicted(scores, truth, ('a', 'b', 'c')).grouped(groups, 40)(multiplicity)
    for name, value in once.items():
        np.testing.assert_allclose(resampled[name], value, rtol=1e-9)


def test_a_resample_of_one_value_alone_has_no_r2():
    """Of shares such as that of water many are 0; rounding of their variation must not divide anything."""
    truth = np.repeat([[0.0], [0.0], [0.7], [0.1]], 25, axis=0)
    weighted = regression.predicted(truth + 0.01, truth, ('share',)).grouped(np.arange(100) // 25, 4)
    alone = weighted(np.array([3, 1, 0, 0]))
    assert np.isnan(alone['r2/share']) and np.isnan(alone['r2_macro'])
    assert alone['rmse/share'] == pytest.approx(0.01) and alone['mae/share'] == pytest.approx(0.01)
    assert weighted(np.array([1, 0, 1, 0]))['r2/share'] == pytest.approx(1 - 0.01**2 / 0.35**2)


def test_errors_in_units_of_any_size_make_rows():
    """Sums differ in their last digits with the order of records, by more the larger the errors are."""
    rng = np.random.default_rng(0)
    truth, clusters = 1e8 * rng.normal(3, 1, (400, 2)), np.arange(400) % 37
    measures = {
        (draw, head): regression.predicted(truth + 5e7 * rng.normal(size=truth.shape), truth, TARGETS)
        for draw in range(3)
        for head in range(2)
    }
    runs = cells.summarise(measures, clusters, Intervals('scene', 3))
    for name, interval in runs.intervals.items():
        values_of = {run: metrics[name] for run, metrics in runs.each.items()}
        fields = number_fields(interval, intervals.spread(values_of))
        assert fields['lowest'] <= fields['estimate'] <= fields['highest']


def test_a_validation_split_of_one_number_settles_nothing_and_says_so():
    truth = np.zeros((4, 1))
    with pytest.raises(InputError, match=r'val: the metric .* is nan; .* or one number alone to predict'):
        judged(truth, lambda scores: values(regression.predicted(scores, truth, 'a'))['r2_macro'], 'val')


def test_a_missing_target_has_no_loss_and_heads_come_back_in_units():
    rng = np.random.default_rng(1)
    labels = rng.normal([50, -3], [20, 0.1], (30, 2)).astype(np.float32)
    labels[::3, 0] = np.nan
    scale = regression.target_scale(labels, TARGETS)
    np.testing.assert_allclose(scale.mean, np.nanmean(labels, axis=0, dtype=np.float64), rtol=1e-6)
    scaled = regression.standardised(labels, scale)
    np.testing.assert_allclose(regression.restored(scaled, scale), labels, rtol=1e-5)
    logits, recipe = rng.normal(size=(30, 1, 2)).astype(np.float32), linear_probe.Recipe('regression')
    there = np.isfinite(scaled)
    expected = np.mean((logits[:, 0][there] - scaled[there]) ** 2)
    np.testing.assert_allclose(linear_probe.loss(logits, scaled, recipe), [expected], rtol=1e-5)
    with pytest.raises(InputError, match=r'height: 30 labelled records have 7 alone, so there is nothing'):
        regression.target_scale(np.where(there, [7.0, 1.0], np.nan), TARGETS)


def numbers_of(workdir, command):
    """System -> metric of a target -> its row."""
    by_system: dict[str, dict[str, object]] = {}
    for row in rows_of(workdir, command):
        by_system.setdefault(row.system, {})[f'{row.metric}/{row.label}'] = row
    return by_system


def system_and_prior(workdir, command):
    """Metric of a target -> row, of what was evaluated and of the mean of the labelled records."""
    by_system = numbers_of(workdir, command)
    (system,) = [name for name in by_system if 'prior' not in name]
    return by_system[system], by_system['train prior']


def test_a_linear_probe_explains_what_the_pixels_do_and_nothing_else(numbers, tmp_path, capsys):
    """By the mean and deviation of each band, of which `height` is a linear function."""
    config = settings(LinearProbe, numbers, 'bands', learning_rates=(0.03,), epochs=60.0, preset='none')
    assert run_linear_probe(config, tmp_path) == 0
    by_system = numbers_of(tmp_path, 'linear')
    bands, prior = (
        next(rows for name, rows in by_system.items() if part in name) for part in ('band', 'prior')
    )
    height = bands['r2/height']
    assert height.estimate > 0.98 and 0.9 < height.low <= height.estimate <= height.high <= 1
    assert (
        bands['rmse/height'].unit == 'm'
        and 0 < bands['mae/height'].estimate <= bands['rmse/height'].estimate < 3
    )
    assert bands['rmse/noise'].unit is None and height.unit is None and height.averaging == 'class'
    assert -1 < bands['r2/noise'].estimate < 0.2
    assert abs(prior['r2/height'].estimate) < 0.3 and prior['rmse/height'].estimate > 10
    assert bands['r2/height'].classes == TARGETS and bands['r2/height'].preset == 'none'
    assert 'r2/height' in capsys.readouterr().out


def test_neighbours_say_numbers_in_units_and_rows_tell_where_they_have_none(numbers, tmp_path, caplog):
    """A record whose one neighbour has no height gets the mean of the labelled ones."""
    shared = settings(LinearProbe, numbers, 'bands')
    config = Knn(shared.data, shared.encoder, shared.labels, shared.intervals, k=1)
    assert run_knn(config, tmp_path) == 0
    rows, prior = system_and_prior(tmp_path, 'knn')
    assert rows['r2/height'].estimate > 0.5 and rows['rmse/height'].unit == 'm'
    assert rows['rmse/height'].estimate < 0.6 * prior['rmse/height'].estimate
    assert rows['r2/height'].method == 'knn' and rows['r2/height'].settled_on is None
    assert rows['r2/height'].sweep['k'] == (1.0,)

    index = {split: read_index(numbers, split)['targets'] for split in ('train', 'test')}
    bands = open_system('bands', config.encoder)
    extracted = Extractor(bands, config.data, ('s1',), ('mean_patch',), config.encoder)
    train, test = (extracted(split)['band_stats'].values for split in ('train', 'test'))
    scale = linear_probe.batch_norm(train)
    means = knn.knn_means(scale(test), scale(train), index['train'], 1, config.temperature)
    lacking = np.isnan(means)
    assert 0 < lacking.sum() < 12 and prior['r2/height'].filled == ()
    for i, name in enumerate(TARGETS):
        assert rows[f'r2/{name}'].filled == ((lacking[:, i].sum(),) if lacking[:, i].any() else ())
        assert rows[f'rmse/{name}'].filled == rows[f'r2/{name}'].filled
    scores = np.where(lacking, np.nanmean(index['train'], axis=0), means)
    expected = values(regression.predicted(scores, index['test'], TARGETS))
    for name in ('r2/height', 'rmse/height', 'mae/noise'):
        assert rows[name].estimate == pytest.approx(expected[name], rel=1e-4)
    assert 'have no neighbour with a value, and get the mean of the labelled ones' in caplog.text


def test_finetune_learns_numbers_and_leaves_a_head_in_their_units(numbers, tmp_path, monkeypatch):
    # One device compiles in a fraction of the time of eight.
    monkeypatch.setattr(command, 'Trainer', functools.partial(command.Trainer, devices=jax.devices()[:1]))
    run = checkpoint(tmp_path / 'run', numbers, depth=1, modalities=('s1',), trained_on='')
    config = settings(
        Finetune,
        numbers,
        run,
        learning_rates=(1e-2,),
        epochs=3.0,
        warmup_epochs=0.25,
        batch_size=8,
        preset='none',
    )
    assert run_finetune(config, tmp_path / 'work') == 0
    by_system = numbers_of(tmp_path / 'work', 'finetune')
    (system,) = [name for name in by_system if 'prior' not in name]
    rows = by_system[system]
    assert rows['r2/height'].estimate > 0.9 and rows['rmse/height'].estimate < 6
    assert rows['rmse/height'].unit == 'm' and rows['r2/noise'].estimate < 0.3
    head = np.load(next((tmp_path / 'work' / 'points').rglob(HEAD)))
    # Its bias is near the mean of the heights, which no standardised head's is.
    assert 50 < head['bias'][0, 0] < 250


def test_impossible_settings_are_refused(numbers):
    for kind, look in ((LinearProbe, check), (Finetune, check_finetune)):
        with pytest.raises(InputError, match=r'calibration\.alpha: numbers to predict have no probabilities'):
            look(settings(kind, numbers, 'random', calibration=Calibration(alpha=0.1)))
    config = settings(LinearProbe, 'elsewhere', 'bands')
    config = dataclasses.replace(config, data=Task(path=numbers, labels='target', kind='regression'))
    with pytest.raises(InputError, match=r"no field of numbers to predict 'target'.*did you mean 'targets'"):
        run_linear_probe(config, '/nonexistent')
