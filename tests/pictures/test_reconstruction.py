"""Pictures and error ratios, on arrays whose answers are known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input.prepare import patchify, statistics
from fusmae_jax.pictures.attention import Look, attention_figure
from fusmae_jax.pictures.figure import (
    COLUMNS,
    Panel,
    figure,
    in_raster_order,
    pictures,
    recorded,
    sensor_units,
)
from fusmae_jax.pictures.panels import errors, summary
from fusmae_jax.run.attention import parse_patch
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.tiny import tiny_config


@pytest.fixture
def scene():
    config = tiny_config()
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 12)).astype(np.float32)
    target = np.asarray(patchify(jnp.asarray(image), 8))[0]
    valid = np.ones_like(target, bool)
    visible = np.arange(16) < 4
    return config, image[0], Panel(target, target.copy(), valid, visible)


def test_ratios_of_known_guesses(scene):
    config, image, panel = scene
    perfect = errors(panel, config)
    assert perfect['model'] == 0
    means = np.broadcast_to(image.mean((0, 1)), image.shape)
    guess = panel._replace(predicted=np.asarray(patchify(jnp.asarray(means[None]), 8))[0])
    assert errors(guess, config)['model'] == pytest.approx(errors(guess, config)['mean'], rel=1e-5)
    # White noise: the mean of a block of 64 pixels leaves 63/64 of the variance.
    assert perfect['block'] / perfect['mean'] == pytest.approx(63 / 64, rel=0.01)
    blocks = image.reshape(4, 8, 4, 8, 12).mean((1, 3)).repeat(8, 0).repeat(8, 1)
    guess = panel._replace(predicted=np.asarray(patchify(jnp.asarray(blocks[None]), 8))[0])
    assert errors(guess, config)['model'] == pytest.approx(perfect['block'], rel=1e-5)


def test_visible_and_invalid_numbers_do_not_count(scene):
    config, _, panel = scene
    wrong = panel._replace(predicted=panel.target + panel.visible[:, None])
    assert errors(wrong, config)['model'] == 0
    valid = panel.valid.copy()
    valid[10] = False
    lost = panel._replace(predicted=panel.target + (np.arange(16) == 10)[:, None], valid=valid)
    assert errors(lost, config)['model'] == 0


def test_summary_leaves_snow_out_and_says_when_nothing_is_left(scene):
    config, _, panel = scene
    worse = panel._replace(predicted=panel.target + 1)
    result = summary({'s2': [panel, worse]}, [False, True], config)
    assert result['s2_vs_mean_without_snow'] == 0
    assert result['s2_vs_mean'] > 0.3
    assert summary({'s2': [worse]}, [True], config)['s2_vs_mean_without_snow'] is None


def test_panels_come_back_in_raster_order_and_sensor_units(scene):
    config, image, panel = scene
    order = np.random.default_rng(1).permutation(16)[None]
    predictions = panel.target[order[0, 4:]][None] + 1
    (back,) = in_raster_order(panel.target[None], panel.valid[None], predictions, order, 4)
    assert sorted(order[0, :4]) == list(np.flatnonzero(back.visible))
    np.testing.assert_allclose(
        back.predicted - panel.target, np.broadcast_to(~back.visible[:, None], (16, 768)), atol=1e-6
    )
    mean, std = statistics(config.model.modalities['s2'])
    np.testing.assert_allclose(sensor_units(panel.target, config, 's2'), image * std + mean, rtol=1e-5)


def test_a_figure_has_a_line_for_each_sample_and_sensor(scene):
    config, _, panel = scene
    batch = raw_batch(2)
    records = [
        {name: batch[name][i] for name in CONTRACT.groups} | {'s2_name': b'S2_patch'} for i in range(2)
    ]
    records[1]['s1'] = np.full_like(records[1]['s1'], np.nan)
    narrow = Panel(panel.target[:, :128], panel.target[:, :128], panel.valid[:, :128], panel.visible)
    one = figure({'s1': [narrow] * 1, 's2': [panel]}, records[:1], config, CONTRACT, 'one')
    two = figure({'s1': [narrow] * 2, 's2': [panel] * 2}, records, config, CONTRACT, 'two')
    assert one.dtype == np.uint8 and one.shape[2] == 3
    assert one.shape[1] == two.shape[1] and 1.8 < two.shape[0] / one.shape[0] < 2.1
    assert len(COLUMNS) == 4 and one.std() > 20


def only_group(modality, **changes):
    """The test contract with all bands of a modality in one group of another making."""
    group = next(g for g in CONTRACT.groups.values() if g.modality == modality)
    return dataclasses.replace(CONTRACT, groups={modality: dataclasses.replace(group, **changes)})


def test_a_band_that_the_data_lack_is_drawn_as_its_mean():
    config = tiny_config(data=cfg.Data(absent_bands='mean'))
    bands = tuple(b for b in config.model.modalities['s2'].bands if b != 'B03')
    contract = only_group('s2', bands=bands, size=(4, 4))
    record = {'s2': np.random.default_rng(0).integers(100, 3000, (4, 4, len(bands))).astype(np.uint16)}
    image = recorded(record, contract, config, 's2')
    mean, _ = statistics(config.model.modalities['s2'])
    absent = config.model.modalities['s2'].bands.index('B03')
    np.testing.assert_array_equal(image[..., absent], mean[absent])
    np.testing.assert_array_equal(np.delete(image, absent, axis=-1), record['s2'])


@pytest.mark.parametrize(('unit', 'factor'), [('linear', 10), ('amplitude', 20)])
def test_what_was_recorded_is_drawn_in_the_unit_of_the_model(unit, factor):
    config = tiny_config()
    contract = only_group('s1', unit=unit, scale=0.5, offset=0.0, nodata=(7.0,), dtype='float32', size=(2, 3))
    stored = np.array([[[1, 2], [7, 0.2], [0, 4]], [[np.nan, 8], [3, 7], [5, 6]]], np.float32)
    image = recorded({'s1': stored}, contract, config, 's1')
    with np.errstate(divide='ignore'):
        expected = factor * np.log10(stored * 0.5)
    expected[(stored == 7) | (stored == 0)] = np.nan
    np.testing.assert_allclose(image, expected, rtol=1e-5)


def test_nothing_measured_is_black_in_the_picture(scene):
    config, _, _ = scene
    record = {'s1': np.full((8, 8, 2), -99, np.float32)}
    record['s1'][:, 4:] = -12
    contract = only_group('s1', size=(8, 8), nodata=(-99.0,))
    target = np.random.default_rng(0).normal(size=(16, 128)).astype(np.float32)
    panel = Panel(target, target, np.ones_like(target, bool), np.arange(16) < 4)
    (given, *_), _ = pictures(panel, record, config, contract, 's1')
    assert (given[:, :4] == 0).all() and (given[:, 4:, :2] > 0).all()


def test_a_picture_of_attention_outlines_the_patch_and_tells_the_shares():
    image = np.zeros((40, 40, 3))
    even, one = np.full((4, 4), 0.5 / 16), np.zeros((4, 4))
    one[2, 1] = 0.25
    look = Look('a record', 's2', {'s1': image, 's2': image}, {'block 1': {'s1': one, 's2': even}})
    picture = attention_figure([look], (1, 2), 'title')
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    # The outline is red, and stands in the image of its sensor alone: the second of four columns.
    rows, columns = np.nonzero(picture[..., 0] - picture[..., 1:].max(-1).astype(int) > 80)
    assert len(rows) > 20 and 0.25 < columns.min() / picture.shape[1] < columns.max() / picture.shape[1] < 0.5


def test_a_patch_must_be_one_of_the_grid():
    config = tiny_config()
    assert parse_patch('3,0', config) == (3, 0)
    for text, part in (('4,0', r'4 x 4 patches, 0,0 to 3,3'), ('1', 'such as 4,7'), ('a,b', 'such as 4,7')):
        with pytest.raises(InputError, match=part):
            parse_patch(text, config)
