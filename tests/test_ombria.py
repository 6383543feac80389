"""The OMBRIA experiment on a made-up file of its layout: conversion, splits, exchange, errors, report."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ombria_config, ombria_report, ombria_set, ombria_swap
from fusmae_jax.config import run as cfg
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from fusmae_jax.input import compatibility, normalise
from fusmae_jax.input import contract as contracts
from tests.support.helpers import weights

ROOT = Path(__file__).parents[1]
REGIONS = 20


@pytest.fixture(scope='module')
def npz(tmp_path_factory):
    rng = np.random.default_rng(0)
    region = np.repeat(np.arange(3, 3 + 2 * REGIONS, 2, dtype=np.int32), 2)
    after = np.tile([False, True], REGIONS)
    flood = np.zeros((2 * REGIONS, 128, 128), bool)
    flood[:, 16:32, 48:57] = True  # more than half of patch (1, 3), which is 16 wide
    flood[:, 16:32, 64:72] = True  # exactly half of patch (1, 4)
    arrays = {
        's1': rng.integers(0, 256, (2 * REGIONS, 128, 128, 1), np.uint8),
        's2': rng.integers(0, 256, (2 * REGIONS, 128, 128, 3), np.uint8),
        'flood': np.packbits(flood, axis=-1),
        'region': region,
        'after': after,
    }
    file = tmp_path_factory.mktemp('npz') / 'pairs.npz'
    np.savez(file, **arrays)
    return str(file)


@pytest.fixture(scope='module')
def data(npz, tmp_path_factory):
    return ombria_set.write(npz, tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def splits(data):
    return {name: ombria_swap.read_split(data, name) for name in ombria_set.SHARES}


def test_a_region_stands_in_one_split_and_records_are_those_of_the_file(npz, splits):
    arrays = np.load(npz)
    regions = {name: set(one.region.tolist()) for name, one in splits.items()}
    assert [len(x) for x in regions.values()] == [14, 2, 4]
    assert sum(map(len, regions.values())) == len(set.union(*regions.values())) == REGIONS
    test = splits['test']
    for i, (region, after) in enumerate(zip(test.region, test.after)):
        (row,) = np.flatnonzero((arrays['region'] == region) & (arrays['after'] == after))
        np.testing.assert_array_equal(test.images['s1'][i], arrays['s1'][row])
        np.testing.assert_array_equal(test.images['s2'][i], arrays['s2'][row])
    expected = np.zeros((8, 8))
    expected[1, 3] = 1
    for flooded, after in zip(test.flooded, test.after):
        np.testing.assert_array_equal(flooded, expected * after)


def test_the_contract_is_its_own(data):
    contract = contracts.read(data)
    assert {group.unit for group in contract.groups.values()} == {'8 bit'} and not contract.products
    config = ombria_config.pretraining('x', ('s2',), data, 0)
    modality = cfg.Modality(('B04', 'B03', 'B02'), 's2')  # in digital numbers
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities={'s2': modality}))
    with pytest.raises(InputError, match="is in '8 bit', the model needs 'DN'"):
        compatibility.check(compatibility.compare(config, contract), (), 'test')


def test_files_of_another_layout_are_one_message(npz, tmp_path):
    arrays = dict(np.load(npz))
    for changes, message in (
        ({'after': None}, "no array 'after'"),
        ({'s1': arrays['s1'][..., 0]}, 's1 is'),
        ({'flood': arrays['flood'][:5]}, 'flood is'),
    ):
        file = tmp_path / f'{message[:5]}.npz'
        np.savez(file, **{name: x for name, x in (arrays | changes).items() if x is not None})
        with pytest.raises(InputError, match=message):
            ombria_set.write(str(file), tmp_path / 'out')
    (tmp_path / 'broken.npz').write_bytes(b'no archive')
    with pytest.raises(InputError, match='not an archive'):
        ombria_set.write(str(tmp_path / 'broken.npz'), tmp_path / 'out')
    with pytest.raises(InputError, match='no such file'):
        ombria_set.write(str(tmp_path / 'none.npz'), tmp_path / 'out')


def test_radar_comes_from_another_region_on_the_same_side_of_the_flood(splits):
    train = splits['train']
    taken = ombria_swap.exchange(train, 0)
    assert sorted(taken) == list(range(len(taken)))
    assert (train.region[taken] != train.region).all()
    np.testing.assert_array_equal(train.after[taken], train.after)
    assert (ombria_swap.exchange(train, 1) != taken).any()


def test_settings_are_told_apart_wherever_the_data_lie(data):
    assert ombria_config.digest(0) != ombria_config.digest(1)
    one, other = (ombria_config.pretraining('', ('s2',), path, 0) for path in ('', data))
    assert one.model == other.model and one.data.path != other.data.path


def model(data, name, sensors):
    contract = contracts.read(data)
    config = normalise.resolve(ombria_config.pretraining(name, sensors, data, 0), contract)
    return Pretrained(config, contract, weights(config.model, 0), 'float32')


@pytest.mark.slow
def test_errors_are_of_masked_optical_patches_and_only_fusion_sees_radar(data, splits):
    test = splits['test']
    both, alone = model(data, 'xae', ('s1', 's2')), model(data, 'mae_s2', ('s2',))
    measured = ombria_swap.measure(both, alone, data, test)
    mean = measured[ombria_swap.MEAN].estimate['s2']
    # Shrinking white noise to half its size leaves (2 * 0.375**2 + 2 * 0.125**2)**2 of its variance.
    assert mean == pytest.approx(0.3125**2, rel=0.05) and measured[ombria_swap.TRUE].clusters == 4
    assert measured[ombria_swap.TRUE].estimate['s2'] != measured[ombria_swap.OTHER].estimate['s2']
    lines = ombria_swap.lines(measured)
    change = lines[f'{ombria_swap.TRUE} minus {ombria_swap.OTHER}']
    assert change.low <= change.estimate <= change.high
    errors = ombria_swap.optical_errors(alone, data)
    chosen = {'s2': ombria_swap.order(len(test.region), 64, 1, 0)}
    sums, squares, count = errors(test.images, chosen)
    assert (count == 48 * 8 * 8 * 3).all() and (squares > 0).all()
    again, _, _ = errors(test.images | {'s1': test.images['s1'] * 0}, chosen)
    np.testing.assert_array_equal(again, sums)


def test_the_report_holds_every_line(tmp_path, splits):
    one = ombria_swap.Interval(-0.0123, -0.02, -0.004, 0.95, 1000, 0, 4)
    lines = [
        ombria_report.line(ombria_report.MASKED, 'a minus b', '-', 'mse', one, 8),
        ombria_report.line(ombria_report.FLOOD, 'raw pixels', 's1+s2', 'AP', one, 4),
    ]
    text = ombria_report.write(tmp_path, lines, splits, 'abc', 0, '', 10)
    assert '| a minus b | -0.0123 | [-0.0200, -0.0040] |' in text and 'test 4 (8 pairs)' in text
    assert (tmp_path / 'ombria.md').read_text() == text
    assert (
        (tmp_path / 'ombria.csv').read_text().splitlines()[1].startswith('masked S2,a minus b,-,mse,-0.01230')
    )
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_the_script_runs_from_the_file_to_the_report(npz, tmp_path):
    command = [sys.executable, str(ROOT / 'benchmarks' / 'ombria.py'), f'--npz={npz}', '--steps=4']
    command += [f'--workdir={tmp_path / "run"}', f'--results={tmp_path / "out"}']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / 'out' / 'ombria.csv').read_text().splitlines()) == 1 + 7 + 5 + 7 + 5
    assert '--steps=4' in (tmp_path / 'out' / 'ombria.md').read_text()
