"""Pictures and error ratios, on arrays whose answers are known."""

import numpy as np
import pytest

from fusmae_jax.eval.reconstruction import errors, summary
from fusmae_jax.input.patchify import patchify
from fusmae_jax.input.prepare import statistics
from fusmae_jax.visualize import COLUMNS, Panel, figure, in_raster_order, sensor_units
from tests.conftest import tiny_config
from tests.helpers import CONTRACT, raw_batch


@pytest.fixture
def scene():
    config = tiny_config()
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 12)).astype(np.float32)
    target = np.asarray(patchify(image, 8))[0]
    valid = np.ones_like(target, bool)
    visible = np.arange(16) < 4
    return config, image[0], Panel(target, target.copy(), valid, visible)


def test_ratios_of_known_guesses(scene):
    config, image, panel = scene
    perfect = errors(panel, config)
    assert perfect['model'] == 0
    means = np.broadcast_to(image.mean((0, 1)), image.shape)
    guess = panel._replace(predicted=np.asarray(patchify(means[None], 8))[0])
    assert errors(guess, config)['model'] == pytest.approx(errors(guess, config)['mean'], rel=1e-5)
    # White noise: the mean of a block of 64 pixels leaves 63/64 of the variance.
    assert perfect['block'] / perfect['mean'] == pytest.approx(63 / 64, rel=0.01)
    blocks = image.reshape(4, 8, 4, 8, 12).mean((1, 3)).repeat(8, 0).repeat(8, 1)
    guess = panel._replace(predicted=np.asarray(patchify(blocks[None], 8))[0])
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
