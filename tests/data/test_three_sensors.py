"""A third sensor, elevation: generated, converted, refused where it cannot be, encoded in any company."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config.build import build, resolve
from fusmae_jax.config.files import load_config
from fusmae_jax.errors import InputError
from fusmae_jax.input.prepare import Patches
from fusmae_jax.input.source import Source
from fusmae_jax.models.fusmae import FusMAE
from fusmae_jax.shipped.data.generate import command, three_sensors
from fusmae_jax.shipped.data.generate.classes import CLASSES
from fusmae_jax.shipped.data.generate.converted import make
from fusmae_jax.shipped.data.generate.elevation import elevation
from fusmae_jax.shipped.data.generate.scene import SceneConfig, labels, resampled, scene
from fusmae_jax.shipped.data.paired_folder import pairs
from fusmae_jax.shipped.data.paired_folder.pairs import Archive
from fusmae_jax.shipped.data.records import RecordError
from tests.support.helpers import module_of, random_patches
from tests.support.paired_folder_files import archive, pair, put

SENSORS = ('s1', 's2', 'dem')
SUBSETS = [chosen for n in (1, 2, 3) for chosen in itertools.combinations(SENSORS, n)]
pytestmark = pytest.mark.usefixtures('one_device')


# Generated


def test_height_says_something_of_the_cover_and_changes_no_image():
    config = SceneConfig(seed=4, size=60)
    scenes = [scene(config, index) for index in range(120)]
    heights = [elevation(config, generated) for generated in scenes]
    np.testing.assert_array_equal(elevation(config, scenes[7]), heights[7])
    np.testing.assert_array_equal(scene(config, 7).s1['VV'], scenes[7].s1['VV'])
    assert heights[0].shape == (20, 20) and heights[0].dtype == np.float32

    def mean(*names):
        wanted = {i for i, cover in enumerate(CLASSES) if cover.name in names}
        return np.mean([h.mean() for g, h in zip(scenes, heights) if wanted & {*labels(g)}])

    assert mean('sea', 'beach', 'salt_marsh') < 0.8 * mean('conifer', 'heath')
    # Crowns stand out from the pasture beside them.
    difference = []
    for generated, height in zip(scenes, heights):
        cover = generated.cover[1::3, 1::3]
        wood, pasture = (cover == [c.name for c in CLASSES].index(name) for name in ('conifer', 'pasture'))
        if wood.any() and pasture.any():
            difference.append(height[wood].mean() - height[pasture].mean())
    assert len(difference) > 10 and np.mean(difference) > 8


def test_the_layout_is_read_by_paired_folder(tmp_path, capsys):
    config = SceneConfig(seed=3, size=24)
    assert command.run('three_sensors', tmp_path / 'raw', 4, 3, size=24) == 0
    assert '--config=configs/convert_paired_folder.py' in capsys.readouterr().out
    source = pairs.source(Archive(**three_sensors.write(tmp_path / 'again', 4, config)))
    assert {split: len(items) for split, items in source.splits.items()} == {'train': 2, 'val': 1, 'test': 1}
    record = source.read(source.splits['test'][0])
    expected = scene(config, 3)
    np.testing.assert_array_equal(record['dem'][..., 0], elevation(config, expected))
    np.testing.assert_array_equal(record['s1'][..., 0], expected.s1['VV'])
    np.testing.assert_array_equal(record['s2'][..., 1], resampled(expected)['B02'])
    assert np.flatnonzero(record['labels']).tolist() == list(labels(expected))
    group = source.schema.groups['dem']
    assert (group.bands, group.unit, group.resolution, group.size) == (('ELEVATION',), 'm', 30.0, (8, 8))
    with pytest.raises(InputError, match='multiple of 3'):
        three_sensors.write(tmp_path / 'odd', 1, SceneConfig(size=20))


# Converted


def heights(size=16, low=300.0):
    return (low + np.random.default_rng(0).normal(0, 20, (1, size, size))).astype(np.float32)


def with_dem(folder, array, **changes):
    """The settings of one pair of 48 pixels with an elevation model of 30 m."""
    pair(folder)
    put(folder / 'dem' / 'a.tif', array, step=30.0, **{'bands': ('elevation',), **changes})
    return archive(folder, dem_root=str(folder / 'dem'))


@pytest.mark.parametrize(
    ('array', 'changes', 'message'),
    [
        (heights(low=12_000.0), {}, 'feet or centimetres? set dem_scale'),
        (heights(), {'bands': ('band 1',)}, "dem_bands=('ELEVATION', ...)"),
        (np.where(heights() > 310, np.float32(-9999), heights()), {}, 'Set dem_nodata'),
        (heights(), {'left': 500_030.0}, 'dem position'),
    ],
)
def test_elevation_that_cannot_be_is_refused(tmp_path, array, changes, message):
    settings = with_dem(tmp_path, array, **changes)

    def read():
        source = pairs.source(settings)
        source.read(source.splits['train'][0])

    with pytest.raises(RecordError) as error:
        read()
    assert message in str(error.value) and 'dem' in str(error.value)


def test_a_scene_without_elevation_is_kept_as_nodata(tmp_path):
    settings = with_dem(tmp_path, np.where(heights() > 310, np.float32(-9999), heights()), nodata=-9999)
    pair(tmp_path, 'b')
    with pytest.raises(RecordError, match='dem partner'):
        pairs.source(settings)
    source = pairs.source(dataclasses.replace(settings, missing='keep'))
    read = {item.key: source.read(item) for item in source.splits['train']}
    assert read['b_0_0']['dem_valid'] == 0 and read['b_0_0']['dem_name'] == ''
    assert 0 < read['a_0_0']['dem_valid'] < 1 and read['a_0_0']['dem'].shape == (8, 8, 1)


# Encoded


@pytest.mark.usefixtures('strict')
def test_every_choice_of_sensors_encodes():
    """Each of the seven alone is the same as all three with the others declared absent, and no two agree."""
    values = load_config('configs/three_sensors.py')
    model = dataclasses.replace(build(values).model, width=32, depth=2, heads=2, scan=True)
    model = resolve(dataclasses.replace(model, image_size=(24, 24)))
    module = module_of(lambda: FusMAE(model, rngs=nnx.Rngs(0)))
    patches = random_patches(model, 2)
    encode = jax.jit(lambda module, patches: module.encode(patches))
    pooled = {}
    for given in SUBSETS:
        there = {
            name: Patches(p.values, p.valid if name in given else jnp.zeros_like(p.valid))
            for name, p in patches.items()
        }
        pooled[given] = np.asarray(encode(module, there).pooled)
    alone = encode(module, {name: patches[name] for name in ('s1', 'dem')})
    np.testing.assert_allclose(alone.pooled, pooled['s1', 'dem'], rtol=1e-5, atol=1e-6)
    for one, two in itertools.combinations(SUBSETS, 2):
        assert np.abs(pooled[one] - pooled[two]).max() > 1e-3


def test_the_configurations_of_three_sensors():
    probe = load_config('configs/three_sensors.py:probe')
    assert [tuple(given) for given in probe['encoder']['modalities']] == SUBSETS
    assert load_config('configs/three_sensors.py:reliance')['data']['labels'] == 'labels'
    with pytest.raises(InputError, match="did you mean 'probe'"):
        load_config('configs/three_sensors.py:probes')


@pytest.mark.slow
def test_from_generated_files_to_a_table_of_seven(tmp_path, monkeypatch):
    """Pretraining, one subset as embeddings, and a row with an interval for each choice of sensors."""
    from fusmae_jax.encoders.load import load
    from main import main
    from tests.support.result_rows import rows_of

    data = make('three_sensors', 80, 1, tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    here = [f'--config.data.path={data}']
    assert main(['', 'pretrain', '--config=configs/three_sensors.py', '--workdir=xae', *here,
                 '--config.train.steps=4', '--config.optimizer.warmup_steps=1']) == 0  # fmt: skip
    assert main(['', 'linear_probe', '--config=configs/three_sensors.py:probe', '--workdir=probe', *here,
                 '--config.encoder.checkpoint=xae', '--config.epochs=2.0']) == 0  # fmt: skip
    rows = [row for row in rows_of(tmp_path / 'probe', 'linear') if row.system == 'three_sensors']
    assert {frozenset(row.modalities) for row in rows} == {frozenset(given) for given in SUBSETS}
    source, encoder = Source(data, 'test', ('s2', 'dem')), load('xae')
    images = {name: source[0][name].astype(np.float32) for name in ('s2', 'dem')}
    order = encoder.contract.groups['s2'].bands
    images['s2'] = images['s2'][..., [order.index(b) for b in encoder.config.model.modalities['s2'].bands]]
    embedding = encoder.encode(images, units={'s2': 'DN', 'dem': 'm'}, resolution={'s2': 10.0, 'dem': 30.0})
    assert np.isfinite(embedding.pooled).all() and {*embedding.tokens} == {'s2', 'dem'}
