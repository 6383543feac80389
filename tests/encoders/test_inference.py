import dataclasses

import jax
import numpy as np
import pytest

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.encoders.load import load
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.errors import InputError
from tests.support.embed_fixtures import write_checkpoint
from tests.support.helpers import CONTRACT, raw_batch, weights
from tests.support.tiny import tiny_config


@pytest.fixture(scope='module')
def model():
    config = tiny_config()
    return Pretrained(config, CONTRACT, weights(config.model), 'float32')


@pytest.fixture(scope='module')
def images():
    batch = raw_batch(3)
    grids = {name: batch[name] for name in CONTRACT.groups if name.startswith('s2')}
    bands = [band for name in grids for band in CONTRACT.groups[name].bands]
    full = np.concatenate(
        [
            np.kron(x.astype(np.float32), np.ones((1, 120 // x.shape[1], 120 // x.shape[2], 1)))
            for x in grids.values()
        ],
        axis=-1,
    )
    order = [bands.index(b) for b in tiny_config().model.modalities['s2'].bands]
    return {'s1': batch['s1'], 's2': full[..., order].astype(np.float32), 'native': grids}


UNITS = {'s1': 'dB', 's2': 'DN'}


def test_any_subset_and_native_grids(model, images):
    both = model.encode({'s1': images['s1'], 's2': images['native']}, units=UNITS)
    assert both.tokens['s1'].shape == both.tokens['s2'].shape == (3, 16, 32)
    assert both.cls.shape == both.pooled.shape == (3, 32)
    mean = np.concatenate([both.tokens['s1'], both.tokens['s2']], axis=1).mean(axis=1)
    np.testing.assert_allclose(both.pooled, mean, atol=1e-5)
    alone = model.encode({'s1': images['s1']}, units=UNITS)
    assert list(alone.tokens) == ['s1']
    np.testing.assert_allclose(alone.pooled, alone.tokens['s1'].mean(axis=1), atol=1e-5)
    one = model.encode({'s1': images['s1'][1]}, units=UNITS)
    np.testing.assert_allclose(one.pooled[0], alone.pooled[1], atol=1e-5)
    missing = np.full_like(images['s2'], np.nan)
    declared = model.encode({'s1': images['s1'], 's2': missing}, units=UNITS)
    np.testing.assert_allclose(declared.pooled, alone.pooled, rtol=1e-5, atol=1e-6)


def test_units_are_converted(model, images):
    expected = model.encode({'s1': images['s1'], 's2': images['s2']}, units=UNITS)
    other = model.encode(
        {'s1': 10 ** (images['s1'] / 10), 's2': images['s2'] / 10_000},
        units={'s1': 'linear', 's2': 'reflectance'},
    )
    np.testing.assert_allclose(other.pooled, expected.pooled, atol=1e-4)


def test_nothing_is_masked_and_calls_repeat(model, images):
    first = model.encode({'s2': images['s2']}, units=UNITS)
    np.testing.assert_array_equal(first.pooled, model.encode({'s2': images['s2']}, units=UNITS).pooled)
    changed = images['s2'].copy()
    for row in range(4):
        for column in range(4):
            changed[:, row * 30 : row * 30 + 30, column * 30 : column * 30 + 30] += 500
            assert (
                np.abs(model.encode({'s2': changed}, units=UNITS).tokens['s2'] - first.tokens['s2'])[
                    :, row * 4 + column
                ].max()
                > 1e-4
            )


@pytest.mark.parametrize(
    ('images', 'units', 'part'),
    [
        ({}, {}, 'empty'),
        ({'s3': 0}, {}, "images['s3'] is not a modality"),
        ({'s1': np.zeros((2, 8, 8, 3))}, {'s1': 'dB'}, 'bands VV, VH last'),
        ({'s1': np.ones((2, 8, 8, 2))}, {}, "units['s1']=''"),
        ({'s1': np.full((2, 8, 8, 2), 0.02)}, {'s1': 'dB'}, 'linear power'),
        ({'s1': np.full((2, 8, 8, 2), -1900.0)}, {'s1': 'dB'}, 'dB x 100'),
        ({'s1': np.full((2, 8, 8, 2), -19.0)}, {'s1': 'linear'}, 'cannot be negative'),
        ({'s2': np.full((2, 8, 8, 12), 0.2)}, {'s2': 'DN'}, 'reflectance'),
        ({'s2': np.full((2, 8, 8, 12), 900.0)}, {'s2': 'reflectance'}, 'digital numbers'),
        ({'s2': {'s2_10m': np.full((1, 120, 120, 4), 900)}}, {'s2': 'DN'}, "'B01'"),
        ({'s2': {'s2_30m': np.full((1, 120, 120, 4), 900)}}, {'s2': 'DN'}, "['s2_30m'] is not a field"),
    ],
)
def test_what_cannot_be_right_is_refused(model, images, units, part):
    with pytest.raises(InputError) as error:
        model.encode(images, units=units)
    assert part in str(error.value)


def test_batches_must_agree(model):
    images = {'s1': np.full((2, 32, 32, 2), -12.0), 's2': np.full((3, 32, 32, 12), 900.0)}
    with pytest.raises(InputError, match='number of images'):
        model.encode(images, units=UNITS)


def test_masked_values_are_not_measured(model, images):
    hidden = np.zeros(images['s2'].shape, bool)
    hidden[:, :48] = True
    expected = model.encode({'s2': np.where(hidden, np.nan, images['s2'])}, units=UNITS).pooled
    masked = np.ma.MaskedArray(np.where(hidden, 12_000, images['s2']), hidden)
    for given in (masked, list(masked)):
        np.testing.assert_array_equal(model.encode({'s2': given}, units=UNITS).pooled, expected)
    grids = {name: np.ma.MaskedArray(x, False) for name, x in images['native'].items()}
    whole = model.encode({'s2': images['native']}, units=UNITS).pooled
    np.testing.assert_array_equal(model.encode({'s2': grids}, units=UNITS).pooled, whole)
    grids['s2_10m'] = np.ma.MaskedArray(images['native']['s2_10m'], np.ones((3, 120, 120, 4), bool))
    without = images['native'] | {'s2_10m': np.full((3, 120, 120, 4), np.nan)}
    expected = model.encode({'s2': without}, units=UNITS).pooled
    np.testing.assert_array_equal(model.encode({'s2': grids}, units=UNITS).pooled, expected)
    assert np.abs(expected - whole).max() > 1e-3


def test_a_stored_nodata_value_is_a_measurement_in_physical_units(model, images):
    groups = {
        name: dataclasses.replace(group, offset=-1000.0, nodata=(0.0,)) if group.modality == 's2' else group
        for name, group in CONTRACT.groups.items()
    }
    other = Pretrained(model.config, dataclasses.replace(CONTRACT, groups=groups), model.params, 'float32')
    water = images['s2'].copy()
    water[:, :30, :, 8:] = 0  # dark in the infrared, and measured
    embedding = other.encode({'s2': water}, units=UNITS)
    near = other.encode({'s2': np.where(water == 0, 1e-3, water)}, units=UNITS)
    np.testing.assert_allclose(embedding.pooled, near.pooled, atol=1e-4)
    gone = other.encode({'s2': np.where(water == 0, np.nan, water)}, units=UNITS)
    assert np.abs(embedding.pooled - gone.pooled).max() > 1e-3


def test_the_ground_of_an_image_is_that_of_training(model, images):
    half = images['s1'][:, :60, :60]
    with pytest.raises(
        InputError, match=r'covers 600 x 600 m .* knows 1200 x 1200 m: cut windows of 120 x 120'
    ):
        model.encode({'s1': half}, units=UNITS)
    stated = [
        model.encode({'s1': half}, units=UNITS, **options).pooled
        for options in ({'resolution': 20.0}, {'resolution': {'s1': 20}}, {'accept': ('resolution',)})
    ]
    np.testing.assert_array_equal(stated[0], stated[1])
    np.testing.assert_array_equal(stated[0], stated[2])
    with pytest.raises(InputError, match='cut windows of 60 x 60'):
        model.encode({'s1': images['s1']}, units=UNITS, resolution=20.0)
    # Every native grid by itself; what is said of a modality is said of its finest grid.
    model.encode({'s2': images['native']}, units=UNITS, resolution=10.0)
    cut = images['native'] | {'s2_20m': images['native']['s2_20m'][:, :30]}
    with pytest.raises(InputError, match=r"\['s2_20m'\] covers 600 x 1200 m"):
        model.encode({'s2': cut}, units=UNITS)
    for resolution, part in ((0.0, 'metres a pixel'), ({'s3': 10.0}, "resolution['s3']")):
        with pytest.raises(InputError) as error:
            model.encode({'s1': half}, units=UNITS, resolution=resolution)
        assert part in str(error.value)


@pytest.mark.parametrize(
    ('image', 'part'),
    [
        (np.zeros((0, 120, 120, 2)), 'there is nothing in it'),
        (np.full((1, 120, 120, 2), -12 + 3j), 'not an array of numbers (its values are complex128)'),
        (np.full((1, 120, 120, 2), 'x'), 'not an array of numbers'),
        (object(), 'not an array of numbers'),
        ([np.zeros((9, 9, 2)), np.zeros((8, 9, 2))], 'different shapes'),
    ],
)
def test_what_is_no_batch_of_images_is_one_sentence(model, image, part):
    with pytest.raises(InputError) as error:
        model.encode({'s1': image}, units=UNITS)
    assert part in str(error.value)


def test_what_cannot_be_is_refused_and_what_looks_wrong_is_a_warning(model, images):
    filled = images['s1'].copy()
    filled[2, :30] = -9999
    with pytest.raises(InputError, match=r"image 2, VV: 25\.0% .* -9999; .*add 'range' to `accept`"):
        model.encode({'s1': filled}, units=UNITS)
    model.encode({'s1': filled}, units=UNITS, accept=('range',))
    offset = {'s2': images['s2'] + 1000}
    with pytest.warns(UserWarning, match='images: likely: s2: .* offset of 1000') as warned:
        model.encode(offset, units=UNITS)
    assert len(warned) == 1 and warned[0].filename == __file__
    model.encode(offset, units=UNITS, accept=('offset',))  # without a warning, which would be an error here
    with pytest.raises(InputError, match="'colour'"):
        model.encode(offset, units=UNITS, accept=('colour',))
    with pytest.raises(InputError, match='leave out B10'):
        model.encode({'s2': np.zeros((1, 120, 120, 13))}, units=UNITS)


def test_a_model_of_an_accelerator_runs_in_float32_on_a_cpu(tmp_path, monkeypatch):
    """A CPU has no fast bfloat16; the weights are float32 either way."""
    folder, meta = write_checkpoint(tmp_path), Checkpoints.meta
    assert load(folder).dtype == 'float32'
    monkeypatch.setattr(Checkpoints, 'meta', lambda self, step: meta(self, step) | {'dtype': 'bfloat16'})
    assert load(folder).dtype == 'float32'
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert load(folder).dtype == 'bfloat16'
