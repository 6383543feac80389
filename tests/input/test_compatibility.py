"""Do these data fit this model: every kind of difference, and what the model then sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import units
from fusmae_jax.input.compatibility import check, compare
from fusmae_jax.input.contract import Contract, Group, Product, Statistics
from fusmae_jax.input.normalise import resolve, statistics
from fusmae_jax.input.prepare import make_prepare, unpatchify
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.tiny import tiny_config

CONFIG = tiny_config()


def changed(field='s1', products=None, **values):
    groups = dict(CONTRACT.groups)
    groups[field] = dataclasses.replace(groups[field], **values)
    return dataclasses.replace(CONTRACT, groups=groups, products=products or {})


def found(contract, config=CONFIG, trained=None):
    return {(d.kind, d.name) for d in compare(config, contract, trained)}


def with_data(**values):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **values))


@pytest.mark.parametrize(
    ('contract', 'kind', 'name'),
    [
        (changed(unit='linear'), 'converted', 'unit'),
        (changed(unit='amplitude'), 'converted', 'unit'),
        (changed('s2_20m', unit='reflectance'), 'converted', 'unit'),
        (changed(scale=0.01), 'converted', 'scale'),
        (changed('s2_10m', offset=-1000.0), 'converted', 'scale'),
        (changed(bands=('VV', 'VH', 'HH')), 'converted', 'bands'),
        (changed(unit=''), 'fatal', 'unit'),
        (changed(unit='furlong'), 'fatal', 'unit'),
        (changed(bands=('VV', 'HH')), 'fatal', 'bands'),
        (changed(products={'s1': Product(calibration='gamma0')}), 'shift', 'calibration'),
        (changed(products={'s1': Product(terrain_correction='flattened')}), 'shift', 'terrain_correction'),
        (changed(products={'s2': Product(level='L1C')}), 'shift', 'level'),
        (changed(products={'s2': Product(level='')}), 'note', 'level'),
    ],
)
def test_each_difference_has_its_class(contract, kind, name):
    assert (kind, name) in found(contract)


def test_what_is_fatal_or_not_declared_is_refused_all_at_once():
    contract = changed(unit='', products={'s2': Product(level='L1C')})
    with pytest.raises(InputError) as error:
        check(compare(CONFIG, contract), (), 'folder')
    for part in ('folder', 'does not say its unit', 'L1C', "add 'level' to `accept`"):
        assert part in str(error.value)
    contract = changed(products={'s2': Product(level='L1C')})
    lines = check(compare(CONFIG, contract), ('level',), 'folder')
    assert any(line.startswith('accepted: s2: level is L1C') for line in lines)
    with pytest.raises(InputError, match="did you mean 'level'"):
        check([], ('levle',), 'folder')


def test_statistics_of_ones_own_need_no_table():
    modalities = {
        'modalities': {
            name: dataclasses.replace(m, mean=(1.0,) * len(m.bands), std=(9.0,) * len(m.bands))
            for name, m in CONFIG.model.modalities.items()
        }
    }
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **modalities))
    assert ('shift', 'level') not in found(changed(products={'s2': Product(level='L1C')}), config)


def trained(**s1):
    return changed(products={'s1': Product(**{'calibration': 'sigma0', 'orbit': 'mixed', **s1})})


def test_a_checkpoint_is_held_against_what_it_was_trained_on():
    gamma = changed(products={'s1': Product(calibration='gamma0', orbit='asc')})
    assert ('shift', 'calibration') in found(gamma, trained=trained())
    assert not {name for _, name in found(gamma, trained=trained(calibration='gamma0'))}
    assert ('shift', 'orbit') in found(gamma, trained=trained(calibration='gamma0', orbit='desc'))
    assert ('shift', 'resolution') in found(changed(resolution=20.0), trained=trained())
    assert ('shift', 'statistics') in found(CONTRACT, with_data(stats='dataset'), trained=trained())
    assert ('shift', 'statistics') not in found(CONTRACT, with_data(stats='dataset'))


def measured(offset=0.0, images=1000, scale=1.0):
    """CONTRACT with measured statistics: those of the sensor tables, moved."""
    values = {}
    for field, group in CONTRACT.groups.items():
        modality = dataclasses.replace(CONFIG.model.modalities[group.modality], bands=group.bands)
        mean, std = (x.astype(float) for x in statistics(modality))
        n = len(group.bands)
        values[field] = Statistics(
            mean=tuple(mean * scale + offset * (group.modality == 's2')),
            std=tuple(std * scale),
            minimum=(0.0,) * n,
            maximum=(1.0,) * n,
            valid=(images * group.size[0] * group.size[1],) * n,
            invalid=(0,) * n,
        )
    return dataclasses.replace(
        CONTRACT, dataset='set', version='1', statistics=values, statistics_split='train'
    )


def test_an_offset_left_in_shows_in_the_measured_statistics():
    assert ('shift', 'statistics') not in found(measured())
    assert ('shift', 'statistics') in found(measured(offset=1000))
    assert ('shift', 'statistics') in found(measured(scale=10))
    assert ('shift', 'statistics') not in found(measured(offset=1000, images=6))
    assert ('shift', 'statistics') in found(measured(scale=3, images=6))  # radar at -38 dB


def test_dataset_statistics_become_explicit_numbers_in_the_unit_of_the_model():
    contract = measured(offset=500)
    config = resolve(with_data(stats='dataset'), contract)
    mean, _ = statistics(config.model.modalities['s2'])
    table, _ = statistics(CONFIG.model.modalities['s2'])
    np.testing.assert_allclose(mean, table + 500, rtol=1e-6)
    assert config.data.stats == 'config' and 'split train' in config.model.modalities['s2'].statistics_from
    assert resolve(config, contract) == config
    with pytest.raises(InputError, match=r'main\.py stats'):
        resolve(with_data(stats='dataset'), CONTRACT)


def prepared(config, contract, batch):
    out = jax.jit(make_prepare(config, contract, None))(batch, None)
    return {name: unpatchify(np.asarray(p.values), config.model.grid, 8) for name, p in out.items()}, {
        name: unpatchify(np.asarray(p.valid), config.model.grid, 8) for name, p in out.items()
    }


def test_the_same_scene_in_any_unit_order_or_scale_gives_the_same_input():
    batch = raw_batch(2)
    expected, _ = prepared(CONFIG, CONTRACT, batch)
    power = 10 ** (batch['s1'].astype(np.float64) / 10)
    variants = [
        (changed(unit='linear'), {'s1': power.astype(np.float32)}),
        (changed(unit='amplitude'), {'s1': np.sqrt(power).astype(np.float32)}),
        (changed(bands=('VH', 'VV')), {'s1': batch['s1'][..., ::-1]}),
        (
            changed(scale=0.01, dtype='int16'),
            {'s1': np.rint(batch['s1'] * 100).astype(np.int16)},
        ),
        (changed('s2_10m', offset=-1000.0), {'s2_10m': batch['s2_10m'] + 1000}),
        (
            changed('s2_20m', unit='reflectance', dtype='float32'),
            {'s2_20m': batch['s2_20m'].astype(np.float32) / 10_000},
        ),
    ]
    for contract, change in variants:
        check(compare(CONFIG, contract), (), 'variant')
        other, _ = prepared(CONFIG, contract, batch | change)
        for name in expected:
            np.testing.assert_allclose(
                other[name], expected[name], atol=3e-3 if 'int16' in str(contract) else 1e-4
            )


def test_a_power_that_is_not_positive_is_no_measurement():
    batch = raw_batch(1)
    batch['s1'] = np.full_like(batch['s1'], 0.05)
    batch['s1'][0, :60] = 0
    batch['s1'][0, 60:62] = -0.01
    values, valid = prepared(CONFIG, changed(unit='linear'), batch)
    assert np.isfinite(values['s1']).all()
    assert not valid['s1'][0, :14].any() and valid['s1'][0, 20:].all()


def test_absent_bands_are_an_error_the_mean_or_gone():
    groups = {name: group for name, group in CONTRACT.groups.items() if name != 's2_60m'}
    contract = dataclasses.replace(CONTRACT, groups=groups)
    with pytest.raises(InputError, match="band 'B01' is not in the data"):
        check(compare(CONFIG, contract), (), 'folder')
    batch = raw_batch(2)
    bands = CONFIG.model.modalities['s2'].bands
    absent = [bands.index(band) for band in ('B01', 'B09')]
    full, _ = prepared(CONFIG, CONTRACT, batch)

    config = with_data(absent_bands='mean')
    assert any('filled with the mean' in line for line in check(compare(config, contract), (), 'folder'))
    values, valid = prepared(resolve(config, contract), contract, batch)
    assert not valid['s2'][..., absent].any() and not values['s2'][..., absent].any()
    there = [i for i in range(12) if i not in absent]
    np.testing.assert_array_equal(values['s2'][..., there], full['s2'][..., there])

    config = resolve(with_data(absent_bands='drop'), contract)
    assert config.model.modalities['s2'].bands == tuple(bands[i] for i in there)
    values, _ = prepared(config, contract, batch)
    np.testing.assert_array_equal(values['s2'], full['s2'][..., there])


@pytest.mark.parametrize(('given', 'wanted'), list(units.CONVERSIONS))
def test_units_have_the_right_size_and_a_clean_gradient(given, wanted):
    physical = {'linear': 0.1, 'amplitude': 0.1**0.5, 'dB': -10.0, 'reflectance': 0.25, 'DN': 2500.0}
    value = jnp.float32(physical[given])
    assert float(units.convert(value, given, wanted)) == pytest.approx(physical[wanted], rel=1e-5)
    assert np.isfinite(jax.grad(lambda x: units.convert(x, given, wanted))(value))
    assert given in units.accepted(wanted) and units.convertible(given, wanted)
    assert not units.convertible('dB', 'DN')


def test_a_contract_of_an_older_format_is_named(tmp_path):
    file = tmp_path / contracts.FILE
    file.write_text('{"dataset": "old", "calibration": {"s1": "sigma0"}}')
    with pytest.raises(InputError, match=r'format 1.*convert the data'):
        contracts.read(tmp_path)
    whole = dataclasses.replace(
        CONTRACT, products={'s1': Product(orbit='asc')}, parts={'a': Contract(groups={'s1': Group('s1')})}
    )
    assert contracts.from_json(whole.to_json(), 'here') == whole
