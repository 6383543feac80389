"""Statistics of a split: against NumPy on the whole array, in any grouping, in every unit."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax import sensors
from fusmae_jax.config.build import build, config_dict
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import units
from fusmae_jax.input.contract import Group
from fusmae_jax.input.normalise import statistics
from fusmae_jax.shipped.data import sharded, stats_command
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.records import Field, Item, RecordSource
from fusmae_jax.shipped.data.statistics import PERCENTILES, RELATIVE_ERROR, Distribution, sensor_unit

GROUPS = {
    'db': Group('s1', ('VV', 'VH'), (9, 8), 'float32', 'dB'),
    'half': Group('s1', ('VV', 'VH'), (9, 8), 'float16', 'dB'),
    'power': Group('s1', ('VV', 'VH'), (9, 8), 'float32', 'linear', nodata=(-9999.0,)),
    'hundredths': Group('s1', ('VV', 'VH'), (9, 8), 'int16', 'dB', scale=0.01, nodata=(-32768.0,)),
    'numbers': Group('s2', ('B02', 'B03', 'B04'), (6, 5), 'uint16', 'DN', offset=-1000.0, nodata=(0.0,)),
    'signed': Group('s2', ('B02', 'B03'), (6, 5), 'int16', 'DN'),
    'reflectance': Group('s2', ('B02',), (6, 5), 'float64', 'reflectance'),
}
SCALES = {'linear': (0.05, 0.03), 'reflectance': (0.2, 0.1), 'dB': (-12.0, 5.0), 'DN': (1800.0, 700.0)}


def images(group, count=70, seed=0):
    rng = np.random.default_rng(seed)
    mean, std = SCALES[group.unit]
    values = (rng.normal(mean, std, (count, *group.size, len(group.bands))) - group.offset) / group.scale
    if group.dtype == 'uint16':
        values = values.clip(1)
    values = values.astype(group.dtype)
    for bad in (*group.nodata, *((np.nan, np.inf) if values.dtype.kind == 'f' else ())):
        values[rng.random(values.shape) < 0.02] = bad
    return values


def valid_pixels(values, group, band):
    pixels = values[..., band].ravel()
    keep = np.isfinite(pixels)
    for nodata in group.nodata:
        keep &= pixels != nodata
    return pixels[keep]


def check(view, band, values, error):
    assert view['valid'][band] == values.size
    np.testing.assert_allclose(view['mean'][band], values.mean(), rtol=1e-12)
    np.testing.assert_allclose(view['std'][band], values.std(), rtol=1e-12)
    np.testing.assert_allclose(view['minimum'][band], values.min(), rtol=1e-12)
    np.testing.assert_allclose(view['maximum'][band], values.max(), rtol=1e-12)
    for percent in PERCENTILES:
        exact = np.percentile(values, percent, method='inverted_cdf')
        np.testing.assert_allclose(view[f'p{percent}'][band], exact, rtol=error, atol=1e-9)


@pytest.mark.parametrize('field', GROUPS)
def test_statistics_are_those_of_the_whole_array(field):
    group = GROUPS[field]
    values = images(group)
    distribution = Distribution(group)
    distribution.add(list(values))
    exact = group.dtype in ('uint16', 'int16', 'float16')
    stored, physical = distribution.stored(), distribution.physical()
    for band in range(len(group.bands)):
        raw = valid_pixels(values, group, band).astype(np.float64)
        check(stored, band, raw, 0.0 if exact else RELATIVE_ERROR)
        assert stored['invalid'][band] == values[..., band].size - raw.size
        check(physical, band, raw * group.scale + group.offset, 1e-12 if exact else RELATIVE_ERROR)
    assert physical['unit'] == group.unit


@pytest.mark.parametrize(('unit', 'factor'), [('linear', 10), ('amplitude', 20)])
def test_power_is_given_in_decibels_of_its_positive_pixels(unit, factor):
    group = dataclasses.replace(GROUPS['power'], unit=unit, scale=2.0)
    values = images(GROUPS['power'])
    distribution = Distribution(group)
    distribution.add(list(values))
    view = distribution.model()
    assert view['unit'] == 'dB'
    for band in range(2):
        power = valid_pixels(values, group, band).astype(np.float64) * 2
        decibels = factor * np.log10(power[power > 0])
        assert 0 < decibels.size < power.size
        # A relative error of the power is an absolute one of its logarithm.
        moved = {name: view[name] for name in view}
        for percent in PERCENTILES:
            exact = np.percentile(decibels, percent, method='inverted_cdf')
            assert abs(view[f'p{percent}'][band] - exact) <= factor * np.log10(1 + 2 * RELATIVE_ERROR)
            moved[f'p{percent}'] = [exact] * 2
        check(moved, band, decibels, 1e-12)


def test_the_units_are_those_that_training_converts():
    for given, wanted in units.CONVERSIONS:
        modality = next((name for name, s in sensors.SENSORS.items() if s.unit == wanted), '')
        if not modality:
            continue
        group = Group(modality, ('VV',), (4, 4), 'float64', given)
        assert sensor_unit(group) == wanted
        values = np.random.default_rng(1).uniform(0.1, 0.9, (4, 4, 1))
        distribution = Distribution(group)
        distribution.add([values])
        expected = np.asarray(units.convert(jnp.asarray(values, jnp.float32), given, wanted))
        np.testing.assert_allclose(distribution.model()['mean'][0], expected.mean(), rtol=1e-5)


def test_an_unknown_sensor_keeps_its_unit():
    assert sensor_unit(Group('s3', ('Oa01',), (4, 4), 'float32', 'linear')) == 'linear'


@pytest.mark.parametrize('field', GROUPS)
def test_any_grouping_gives_the_same(field):
    group, values = GROUPS[field], images(GROUPS[field], 12, seed=3)

    def part(start, stop):
        distribution = Distribution(group)
        distribution.add(list(values[start:stop]))
        return distribution

    def merged(*parts):
        first = parts[0]
        for other in parts[1:]:
            first.merge(other)
        return first

    whole = part(0, 12)
    left = merged(merged(part(0, 1), part(1, 5)), part(5, 12))
    right = merged(part(0, 1), merged(part(1, 5), part(5, 12)))
    other_order = merged(part(5, 12), part(0, 1), part(1, 5))
    for grouped in (left, right, other_order):
        for here, there in zip(
            (grouped.stored(), grouped.physical(), grouped.model()),
            (whole.stored(), whole.physical(), whole.model()),
        ):
            for key in here:
                if key in ('mean', 'std'):
                    np.testing.assert_allclose(here[key], there[key], rtol=1e-12)
                else:
                    assert here[key] == there[key]


def test_no_valid_pixel_and_no_spread():
    group = GROUPS['numbers']
    values = np.zeros((2, 6, 5, 3), np.uint16)
    values[..., 1] = 1500
    values[..., 2] = np.arange(30).reshape(6, 5) + 1
    distribution = Distribution(group)
    distribution.add(list(values))
    view = distribution.physical()
    assert (view['valid'], view['invalid']) == ([0, 60, 60], [60, 0, 0])
    assert (view['mean'][0], view['p50'][0], view['maximum'][0]) == (0, 0, 0)
    assert (view['p1'][1], view['p99'][1], view['std'][1]) == (500, 500, 0)
    fields = {'numbers': {'modality': 's2', 'bands': list(group.bands), 'model': distribution.model()}}
    assert stats_command.configuration(fields)['s2']['bands'] == ['B04']


def test_every_record_is_read_once():
    class Counting(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    reads: list[int] = []
    group = GROUPS['db']
    values = images(group, 70)
    stats_command.measure(Counting({'db': image} for image in values), {'db': group})
    assert sorted(reads) == list(range(70))


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Forty small records in two splits, radar as power, optics with an offset; and the records."""
    groups = {'radar': GROUPS['power'], 'optics': GROUPS['numbers']}
    arrays = {name: images(group, 40, seed=5) for name, group in groups.items()}
    schema = dataclasses.replace(
        SCHEMA,
        name='small',
        groups=groups,
        fields={'s2_name': Field('text', 'key')},
        classes={},
        split_aliases={'all': 'train+val'},
    )

    def read(item):
        return {**{name: array[item.values[0]] for name, array in arrays.items()}, 's2_name': item.key}

    splits = {
        'train': [Item(f'{i:02d}', (i,)) for i in range(25)],
        'val': [Item(f'{i:02d}', (i,)) for i in range(25, 40)],
    }
    folder, _ = sharded.convert(
        RecordSource(schema, splits, read, {'input': 'made up'}), tmp_path_factory.mktemp('stats'), 8
    )
    return folder, arrays


def test_the_command(dataset, tmp_path, capsys):
    folder, arrays = dataset
    out = tmp_path / 'statistics-train.json'
    assert stats_command.run(str(folder), 'train', as_json=True, out=str(out)) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result
    assert (result['records'], result['split'], result['contract_agrees']) == (25, 'train', True)
    pixels = valid_pixels(arrays['optics'][:25], GROUPS['numbers'], 1).astype(np.float64)
    check(result['fields']['optics']['stored'], 1, pixels, 0.0)
    check(result['fields']['optics']['model'], 1, pixels - 1000, 1e-12)
    made = contracts.read(folder).statistics['optics']
    np.testing.assert_allclose(result['fields']['optics']['stored']['mean'], made.mean, rtol=1e-12)
    np.testing.assert_allclose(result['fields']['optics']['stored']['std'], made.std, rtol=1e-12)
    assert list(tmp_path.iterdir()) == [out]


def test_splits_aliases_and_parts(dataset, capsys):
    folder, _ = dataset
    counted = {}
    for split in ('train', 'val', 'all', 'train[:8]'):
        stats_command.run(str(folder), split, as_json=True)
        counted[split] = json.loads(capsys.readouterr().out)
    assert {name: result['records'] for name, result in counted.items()} == {
        'train': 25,
        'val': 15,
        'all': 40,
        'train[:8]': 8,
    }
    assert [result['contract_agrees'] for result in counted.values()] == [True, None, None, None]


def test_text_says_all_units_and_its_lines_go_into_a_configuration(dataset, capsys):
    folder, arrays = dataset
    stats_command.run(str(folder), 'train')
    printed = capsys.readouterr().out
    for title in (
        'radar (float32), linear',
        'radar (float32), dB',
        'optics (uint16), as stored',
        'optics (uint16), DN',
    ):
        assert title in printed
    assert 'contract.json says the same' in printed
    config = config_dict(Config())
    exec(printed.split('# For a configuration file:')[1], {'config': config})
    modality = build(config.to_dict()).model.modalities['s2']
    assert modality.bands == ('B02', 'B03', 'B04')
    mean, std = statistics(modality)
    for band in range(3):
        pixels = valid_pixels(arrays['optics'][:25], GROUPS['numbers'], band).astype(np.float64) - 1000
        np.testing.assert_allclose((mean[band], std[band]), (pixels.mean(), pixels.std()), rtol=1e-6)


def test_a_changed_contract_is_noticed(dataset, capsys):
    folder, _ = dataset
    file = folder / contracts.FILE
    before = file.read_text()
    values = json.loads(before)
    values['statistics']['radar']['mean'][1] *= 1.0001
    file.write_text(json.dumps(values))
    try:
        stats_command.run(str(folder), 'train')
    finally:
        file.write_text(before)
    assert 'contract.json says otherwise' in capsys.readouterr().out


def test_wrong_requests(dataset, tmp_path):
    folder, _ = dataset
    before = sorted(p.name for p in folder.iterdir())
    for changes, message in (
        ({'split': 'trian'}, "did you mean 'train'"),
        ({'path': str(tmp_path / 'none')}, 'does not exist'),
        ({'out': str(folder / 'statistics.json')}, 'lies in the data set'),
        ({'out': str(tmp_path / 'none' / 'a.json')}, 'there is no folder'),
    ):
        with pytest.raises(InputError, match=message):
            stats_command.run(**{'path': str(folder), 'split': 'train', **changes})
    assert sorted(p.name for p in folder.iterdir()) == before


def test_processes_give_the_same_bits(example_dataset, monkeypatch, capsys):
    monkeypatch.setattr(stats_command, 'RUN', 4)
    results = []
    for processes in (1, 2):
        stats_command.run(str(example_dataset), 'train', as_json=True, processes=processes)
        results.append(capsys.readouterr().out)
    assert results[0] == results[1]
    assert json.loads(results[0])['contract_agrees'] is True
