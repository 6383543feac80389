"""Backscatter in 16 bits: what the model sees, what the contract says, and what cannot be stored so."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.input.contract import Group
from fusmae_jax.input.prepare import make_prepare
from fusmae_jax.input.source import Source, read_index
from fusmae_jax.shipped.configs.convert_bigearthnet_mm import get_config
from fusmae_jax.shipped.data import convert, s1_storage, sharded, stats_command
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.doctor.command import run as doctor
from fusmae_jax.shipped.data.records import RecordError
from tests.support.data_fixtures import digests
from tests.support.tiny import tiny_config

KINDS = ('int16', 'float16')


@pytest.fixture(scope='module')
def sets(example_archive, tmp_path_factory):
    """The six real pairs, by the type of their backscatter; the 16-bit ones without compression."""
    return {
        kind: sharded.convert(
            example_archive.source(),
            tmp_path_factory.mktemp(kind),
            storing=sharded.Storing(kind, compression),
        )[0]
        for kind, compression in (('float32', 'zstd'), ('int16', 'none'), ('float16', 'none'))
    }


def images(folder):
    source = Source(str(folder), 'train', tuple(SCHEMA.groups))
    records = [source[i] for i in range(len(source))]
    return {name: np.stack([record[name] for record in records]) for name in source.fields}


@pytest.mark.parametrize('kind', KINDS)
def test_the_model_sees_the_same_values_within_the_declared_change(kind, sets):
    exact, stored = images(sets['float32']), images(sets[kind])
    about = contract.read(sets[kind])
    group, limit = about.groups['s1'], s1_storage.LIMITS[kind]
    assert (
        stored['s1'].dtype == kind
        and f'changes by at most {limit:.2g} dB' in about.products['s1'].description
    )
    change = np.abs(stored['s1'].astype(np.float32) * np.float32(group.scale) - exact['s1']).max()
    report = json.loads((sets[kind] / 'conversion_report.json').read_text())
    assert report['largest_change']['s1'] == pytest.approx(change, abs=3e-6)
    assert 0 < change <= limit
    for field in ('s2_10m', 's2_20m', 's2_60m'):
        np.testing.assert_array_equal(stored[field], exact[field])
    config = tiny_config()
    std = min(config.model.modalities['s1'].std or (4.6, 4.5))
    see = {
        name: jax.jit(make_prepare(config, contract.read(sets[name]), None))(data)['s1']
        for name, data in (('float32', exact), (kind, stored))
    }
    np.testing.assert_array_equal(see[kind].valid, see['float32'].valid)
    off = np.abs(np.asarray(see[kind].values) - np.asarray(see['float32'].values)).max()
    assert 0 < off <= 1.001 * limit / std


@pytest.mark.parametrize('kind', KINDS)
def test_doctor_and_stats_read_it(kind, sets, capsys):
    """In dB, as those of the set that was rounded."""
    assert doctor([str(sets[kind])]) == doctor([str(sets['float32'])])
    capsys.readouterr()
    means = []
    for name in (kind, 'float32'):
        assert stats_command.run(str(sets[name]), 'train', as_json=True) == 0
        fields = json.loads(capsys.readouterr().out)['fields']
        means.append(fields['s1']['physical']['mean'])
    np.testing.assert_allclose(means[0], means[1], atol=s1_storage.LIMITS[kind])


def test_an_image_has_one_digest_however_it_is_stored(sets):
    known = [read_index(folder, 'train', ['content_s1'])['content_s1'].tolist() for folder in sets.values()]
    assert known[0] == known[1] == known[2] and b'' not in known[0]


STORED = {kind: s1_storage.stored_schema(SCHEMA, kind) for kind in KINDS}


def record(values, name='A'):
    s1 = np.full((120, 120, 2), -12.3456, np.float32)
    s1.flat[: len(values)] = values
    return {'s2_name': name, 's1': s1}


def test_invalid_pixels_stay_invalid_and_zero_stays_a_value():
    for kind, schema in STORED.items():
        stored, _ = s1_storage.store(record([np.nan, np.inf, -np.inf, 0.0, -40.004]), SCHEMA, schema)
        valid = s1_storage.validity(stored['s1'], schema.groups['s1'])
        assert valid.ravel()[:5].tolist() == [False, False, False, True, True], kind
        assert valid.sum() == valid.size - 3
    hidden = dataclasses.replace(
        SCHEMA, groups={'s1': dataclasses.replace(SCHEMA.groups['s1'], nodata=(0.0,))}
    )
    stored, _ = s1_storage.store(record([0.0, 0.001]), hidden, s1_storage.stored_schema(hidden, 'int16'))
    assert stored['s1'].ravel()[:2].tolist() == [s1_storage.NODATA, 0]


@pytest.mark.parametrize(
    ('kind', 'value'), [('int16', 327.7), ('int16', -9999), ('float16', 1e5), ('float16', 65)]
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_record(kind, value):
    with pytest.raises(RecordError, match=rf'patch_7: s1 VH: {value:.6g} dB, and s1_storage={kind} holds'):
        s1_storage.store(record([-10, value], 'patch_7'), SCHEMA, STORED[kind])


@pytest.mark.parametrize(
    ('groups', 'message'),
    [
        ({'s2': Group('s2', ('B02',), (8, 8), 'uint16', 'DN')}, 'has no Sentinel-1'),
        ({'s1': Group('s1', ('VV',), (8, 8), 'float32', 'linear')}, "s1 is float32 in 'linear'"),
        ({'s1': Group('s1', ('VV',), (8, 8), 'int16', 'dB', scale=0.1)}, "s1 is int16 in 'dB'"),
    ],
)
def test_what_has_no_float32_decibels_is_refused(groups, message):
    schema = dataclasses.replace(SCHEMA, groups=groups)
    assert s1_storage.stored_schema(schema, 'float32') is schema
    with pytest.raises(InputError, match=message):
        s1_storage.stored_schema(schema, 'int16')


def test_compression_changes_no_record_and_is_part_of_the_settings(example_archive, tmp_path, sets):
    source = example_archive.source()
    plain, _ = sharded.convert(source, tmp_path, storing=sharded.Storing(compression='none'))
    assert contract.read(plain) == contract.read(sets['float32'])
    changed = {name for name, value in digests(plain).items() if digests(sets['float32'])[name] != value}
    assert changed == {'bigearthnet_mm-train.array_record-00000-of-00001', 'dataset_info.json'}
    with pytest.raises(InputError, match='other inputs or settings'):
        sharded.convert(source, tmp_path)


def test_the_command_stores_as_it_is_told(tmp_path, capsys):
    values = get_config('example').to_dict() | {'output': str(tmp_path), 's1_storage': 'int16'}
    assert convert.run(values) == 0
    assert 's1 is stored with a loss: no value changed by more than 0.005 dB' in capsys.readouterr().out
