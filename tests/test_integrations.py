"""Contributed files for other programs: what they decide, without those programs."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / 'integrations'


class Spec(NamedTuple):
    """What is read of a band of torchgeo-bench."""

    sensor: str
    name: str
    mean: float


@pytest.fixture
def adapter(monkeypatch):
    """The file for torchgeo-bench, with empty modules for what it imports."""
    torch = types.ModuleType('torch')
    torch.Tensor, torch.no_grad = object, lambda: lambda function: function
    interface = types.ModuleType('torchgeo_bench.models.interface')
    interface.BenchModel = object
    for name in ('torchgeo_bench', 'torchgeo_bench.models'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, 'torch', torch)
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    return loaded('fusmae_torchgeo_bench.py')


def loaded(name):
    spec = importlib.util.spec_from_file_location('adapter', FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def entry(monkeypatch):
    """The file for rs-embed, with what it imports made of nothing but errors and decorators."""
    core, tools = ('embedding', 'errors', 'registry', 'specs', 'types'), ('runtime', 'shape', 'spatial')
    names = [f'core.{x}' for x in core] + [f'tools.{x}' for x in tools]
    names += ['embedders.base', 'embedders.meta', 'embedders.shared', 'providers.fetch']
    for name in ('torch', *(f'rs_embed.{x}' for x in names)):
        monkeypatch.setitem(sys.modules, name, mock.MagicMock())
    sys.modules['rs_embed.core.errors'].ModelError = ValueError
    sys.modules['rs_embed.core.registry'].register = lambda name: lambda cls: cls
    sys.modules['rs_embed.embedders.base'].EmbedderBase = object
    sys.modules['torch'].inference_mode = lambda: lambda function: function
    return loaded('fusmae_rs_embed.py')


def test_the_channel_with_the_higher_mean_is_vv_unless_names_are_asked_for(adapter):
    named = [Spec('s2', 'b02', 400.0), Spec('s1', 'vv', -19.4), Spec('s1', 'vh', -12.6)]
    right = [Spec('s2', 'b02', 400.0), Spec('sar', 'vv', -12.6), Spec('sar', 'vh', -19.4)]
    assert adapter.exchanged(named) and not adapter.exchanged(right) and not adapter.exchanged(named[:2])
    for bands, radar, expected in (
        (named, 'by_level', [2, 1]),
        (named, 'by_name', [1, 2]),
        (right, 'by_level', [1, 2]),
    ):
        channels = adapter.channels_of(bands, 's1', ('VV', 'VH'), 'dB', radar)
        assert [channel.index for channel in channels] == expected


def test_reflectance_becomes_digital_numbers_and_a_band_may_be_absent(adapter):
    bands = [Spec('s2', 'b8a', 0.2), Spec('s2', 'b02', 0.13)]
    channels = adapter.channels_of(bands, 's2', ('B01', 'B02', 'B8A'), 'DN')
    assert channels == [(None, 1e4), (1, 1e4), (0, 1e4)]
    numbers = [Spec('s2', 'b02', 434.7)]
    assert adapter.channels_of(numbers, 's2', ('B02',), 'DN') == [(0, 1)]
    assert adapter.channels_of(numbers, 's2', ('B02',), 'reflectance') == [(0, 1e-4)]


def test_radar_that_is_not_in_decibels_is_refused(adapter):
    with pytest.raises(ValueError, match='no backscatter in dB'):
        adapter.channels_of([Spec('s1', 'vv', 0.0), Spec('s1', 'vh', 0.0)], 's1', ('VV', 'VH'), 'dB')
    with pytest.raises(ValueError, match='s1: none of'):
        adapter.channels_of([Spec('s2', 'b02', 0.0)], 's1', ('VV', 'VH'), 'dB')


def test_radar_of_rs_embed_is_in_decibels_vv_first_and_fill_is_not_measured(entry):
    power = np.stack([np.full((2, 2), 0.1), np.full((2, 2), 0.01)]).astype(np.float32)
    power[:, 0, 0] = 0
    decibels = entry.decibels(power, linear=True)
    assert np.isnan(decibels[:, 0, 0]).all()
    np.testing.assert_allclose(decibels[:, 1, 1], [-10, -20], rtol=1e-6)
    np.testing.assert_array_equal(entry.decibels(decibels, linear=False), decibels)
    with pytest.raises(ValueError, match=r'VV is 10\.0 dB below VH: the channels are exchanged'):
        entry.decibels(power[::-1], linear=True)
    with pytest.raises(ValueError, match='not in dB'):
        entry.decibels(power, linear=False)
    # That is what rs-embed takes values for unless it is told otherwise: their logarithms would all be NaN.
    with pytest.raises(ValueError, match='not linear; set use_float_linear=False'):
        entry.decibels(decibels, linear=True)
    # A place that no orbit has seen is no wrong unit.
    for linear in (True, False):
        assert np.isnan(entry.decibels(np.zeros((2, 3, 3), np.float32), linear)).all()


def test_bands_of_rs_embed_are_ours_without_the_zero(entry):
    assert [entry.plain(band) for band in ('B1', 'B01', 'B8A', 'B11', 'VV')] == [
        'B1',
        'B1',
        'B8A',
        'B11',
        'VV',
    ]
    assert [len(bands) for bands in entry.BANDS.values()] == [2, 12, 14]
