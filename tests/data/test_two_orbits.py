"""Ascending and descending Sentinel-1 as two sensors: generated, converted, in a table of seven."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fusmae_jax.config.build import build
from fusmae_jax.config.files import load_config
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.source import Source
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.generate import two_orbits
from fusmae_jax.shipped.data.generate.command import LAYOUTS
from fusmae_jax.shipped.data.generate.converted import make
from fusmae_jax.shipped.data.generate.scene import SceneConfig, scene
from fusmae_jax.shipped.data.paired_folder import pairs
from fusmae_jax.shipped.data.paired_folder.pairs import Archive
from tests.support.data_fixtures import read
from tests.support.result_rows import rows_of

SENSORS = ('s1', 's1_desc', 's2')
SUBSETS = [chosen for n in (1, 2, 3) for chosen in itertools.combinations(SENSORS, n)]
CONFIG = SceneConfig(seed=3, size=24)
pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    return two_orbits.write(tmp_path_factory.mktemp('raw'), 8, CONFIG)


def test_each_pass_is_a_sensor_with_its_own_values_product_and_statistics(raw, tmp_path):
    folder = Path(sharded.convert(pairs.source(Archive(**raw)), tmp_path)[0])
    made = contracts.read(folder)
    for name in ('s1', 's1_desc'):
        group = made.groups[name]
        assert (group.modality, group.bands, group.unit) == (name, ('VV', 'VH'), 'dB')
    assert [made.products[name].orbit for name in ('s1', 's1_desc')] == ['asc', 'desc']
    assert made.products['s1_desc'].calibration == 'sigma0'
    (record,) = [r for r in read(folder, 'test') if r['name'] == b'area_00003_0_0']
    generated = scene(CONFIG, 3)
    np.testing.assert_array_equal(record['s1'][..., 0], generated.s1['VV'])
    np.testing.assert_array_equal(record['s1_desc'][..., 1], two_orbits.descending(CONFIG, generated)['VH'])
    means = {name: np.array(made.statistics[name].mean) for name in ('s1', 's1_desc')}
    assert (np.abs(means['s1'] - means['s1_desc']) > 0.05).all()
    mean = np.mean([r['s1_desc'].mean((0, 1)) for r in read(folder, 'train')], axis=0)
    np.testing.assert_allclose(means['s1_desc'], mean, rtol=1e-4)


def test_passes_pair_by_their_names_too(raw):
    settings = {key: value for key, value in raw.items() if key not in ('table', 'classes')}
    source = pairs.source(Archive(**settings))
    record = source.read(source.splits['train'][0])
    assert record['s1_desc_name'] == record['s1_name'] == 'area_00000_0_0' and record['s1_desc_valid'] == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'s1_root': ''}, r"s1_root='', .* must hold the ascending ones"),
        ({'s1_orbit': 'desc'}, r"s1_orbit='desc': with the descending passes apart"),
        ({'s1_unit': 'linear'}, r"dB\? set s1_unit='dB'"),
        ({'s1_unit': ''}, r"s1_unit='': say what the Sentinel-1 files hold"),
        ({'s1_bands': ('VV', 'VH', '-')}, r'2 channels in all, but s1_bands names 3'),
    ],
)
def test_settings_that_cannot_be_are_refused(raw, changes, message):
    def read_one():
        source = pairs.source(Archive(**raw | changes))
        source.read(source.splits['train'][0])

    with pytest.raises(InputError, match=message) as error:
        read_one()
    # What is said of Sentinel-1 has one setting, whichever pass it is about.
    assert not re.search(r's1_desc_(unit|bands|nodata|scale)', str(error.value))


def test_a_fill_value_of_one_pass_names_the_setting_of_both(tmp_path):
    raw = two_orbits.write(tmp_path, 1, CONFIG)
    with rasterio.open(next((tmp_path / 's1_desc').iterdir()), 'r+') as file:
        pixels = file.read()
        pixels[:, :2] = -999
        file.write(pixels)
    source = pairs.source(Archive(**raw))
    with pytest.raises(InputError, match=r's1_desc .*Set s1_nodata, or the tag'):
        source.read(source.splits['train'][0])


def test_the_configuration_has_three_sensors_and_seven_choices():
    model = build(load_config('configs/two_orbits.py')).model
    assert {name: m.bands for name, m in model.modalities.items() if name != 's2'} == {
        's1': ('VV', 'VH'),
        's1_desc': ('VV', 'VH'),
    }
    probe = load_config('configs/two_orbits.py:probe')
    assert [tuple(given) for given in probe['encoder']['modalities']] == SUBSETS
    with pytest.raises(InputError, match="did you mean 'probe'"):
        load_config('configs/two_orbits.py:orbit')


def test_one_image_is_not_taken_for_both_passes(raw, tmp_path):
    same = {'s1_desc_root': raw['s1_root']}
    with pytest.raises(InputError, match='the same file is given for both passes'):
        pairs.source(Archive(**raw | same))
    by_name = {key: value for key, value in raw.items() if key not in ('table', 'classes')}
    with pytest.raises(InputError, match='s1_root and s1_desc_root are the same folder: tell'):
        pairs.source(Archive(**by_name | same))


@pytest.mark.slow
def test_from_generated_files_to_a_table_of_seven(tmp_path, monkeypatch):
    from fusmae_jax.encoders.load import load
    from main import main

    data = make('two_orbits', 80, 1, tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    here = [f'--config.data.path={data}']
    assert main(['', 'pretrain', '--config=configs/two_orbits.py', '--workdir=xae', *here,
                 '--config.train.steps=4', '--config.optimizer.warmup_steps=1']) == 0  # fmt: skip
    assert main(['', 'linear_probe', '--config=configs/two_orbits.py:probe', '--workdir=probe', *here,
                 '--config.encoder.checkpoint=xae', '--config.epochs=2.0']) == 0  # fmt: skip
    rows = [row for row in rows_of(tmp_path / 'probe', 'linear') if row.system == 'two_orbits']
    assert {frozenset(row.modalities) for row in rows} == {frozenset(given) for given in SUBSETS}
    encoder = load('xae')
    source = Source(data, 'test', ('s1', 's1_desc'))
    images = {name: source[0][name] for name in source.fields}
    about = {'units': dict.fromkeys(images, 'dB'), 'resolution': dict.fromkeys(images, 10.0)}
    both, one = (encoder.encode(x, **about) for x in (images, {'s1_desc': images['s1_desc']}))
    assert {*both.tokens} == {'s1', 's1_desc'} and {*one.tokens} == {'s1_desc'}
    assert np.abs(both.pooled - one.pooled).max() > 1e-4
    read_by = encoder.config.model.modalities
    measured = contracts.read(data).statistics
    for name in ('s1', 's1_desc'):  # each normalised with its own numbers
        np.testing.assert_allclose(read_by[name].mean, measured[name].mean, rtol=1e-5)
    assert read_by['s1'].mean != read_by['s1_desc'].mean
    raw = two_orbits.write(tmp_path / 'raw', 1, SceneConfig(**LAYOUTS['two_orbits'], seed=1))
    (name,) = (file.name for file in Path(raw['s1_root']).glob('*.tif'))
    files = [f'--s1={raw["s1_root"]}/{name}', f'--file.s1_desc={raw["s1_desc_root"]}/{name}']
    words = ['--config=configs/encode.py:pooled', '--checkpoint=xae', '--out=e.tif']
    assert main(['', 'encode', *words, *files]) == 0
    with rasterio.open('e.tif') as embedded, rasterio.open(f'{raw["s1_root"]}/{name}') as evening:
        with rasterio.open(f'{raw["s1_desc_root"]}/{name}') as morning:
            scene_of = {'s1': evening.read(), 's1_desc': morning.read()}
        both = encoder.encode({k: np.moveaxis(x, 0, -1)[None] for k, x in scene_of.items()}, **about)
        np.testing.assert_allclose(embedded.read().ravel(), both.pooled[0], rtol=1e-4, atol=1e-5)
