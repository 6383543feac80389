"""Files of any sensor of an encoder by its name: descending Sentinel-1, and one that nobody has heard of."""

import contextlib
import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import rasterio

from fusmae_jax.config import run as cfg
from fusmae_jax.embed.run import gdal_options
from fusmae_jax.embed.settings import SensorFile
from fusmae_jax.encoders.load import load
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense import heads
from fusmae_jax.eval.dense.heads import HeadShape
from fusmae_jax.eval.dense.stored import describe, read_head, write_head
from fusmae_jax.input.contract import Group, LabelMap
from fusmae_jax.predict import run as prediction
from fusmae_jax.sensors import Product
from main import main
from tests.support.embed_fixtures import changed, embedded, image, run, write, write_checkpoint
from tests.support.tiny import tiny_model
from tests.support.whole_map import whole

pytestmark = pytest.mark.usefixtures('one_device')
RADAR, HEAT = ('VV', 'VH'), ('LST',)
# What the records of the encoder were: 1200 m, of heat in pixels of 40 m.
GROUPS = {
    's1': Group('s1', RADAR, (120, 120), 'float32', 'dB', 10.0),
    's1_desc': Group('s1_desc', RADAR, (120, 120), 'float32', 'dB', 10.0),
    'thermal': Group('thermal', HEAT, (30, 30), 'float32', 'K', 40.0),
}
UNITS = {'s1': 'dB', 's1_desc': 'dB', 'thermal': 'K'}
SENSORS = {name: SensorFile(unit=unit) for name, unit in UNITS.items() if name != 's1'}
LABELS = LabelMap(('dry', 'wet'), (0, 1), (), (60, 60), 'uint8', 20.0)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    radar = cfg.Modality(RADAR, resample='bilinear', unit='dB', mean=(-12.0, -19.0), std=(5.0, 5.0))
    evening = dataclasses.replace(radar, mean=(-14.0, -21.0))
    heat = cfg.Modality(HEAT, resample='bilinear', unit='K', mean=(290.0,), std=(8.0,))
    modalities = {'s1': radar, 's1_desc': evening, 'thermal': heat}
    model = tiny_model('none', modalities=modalities, depth=1)
    products = {'s1': Product(orbit='asc'), 's1_desc': Product(orbit='desc'), 'thermal': Product()}
    return write_checkpoint(tmp_path_factory.mktemp('run'), model, groups=GROUPS, products=products)


def scene(folder, rows=120, columns=120):
    """A file of each sensor, and their pixels."""
    pixels = {'s1': image('s1', rows, columns), 's1_desc': image('s1', rows, columns, seed=4) - 2}
    heat = np.random.default_rng(2).normal(295, 6, (rows // 4, columns // 4, 1))
    pixels['thermal'] = heat.astype(np.float32)
    files = {name: write(folder / f'{name}.tif', pixels[name], RADAR) for name in ('s1', 's1_desc')}
    files['thermal'] = write(folder / 'thermal.tif', pixels['thermal'], ('lst',), resolution=40.0)
    return files, pixels


def refused(capsys, words):
    """What a command line says that it refuses."""
    assert main(['', *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    return line


def test_files_by_name_are_those_sensors_in_memory(checkpoint, tmp_path):
    files, pixels = scene(tmp_path)
    words = ['', 'encode', '--config=configs/encode.py:pooled', f'--checkpoint={checkpoint}']
    words += [
        f'--s1={files["s1"]}',
        f'--file.s1_desc={files["s1_desc"]}',
        f'--file.thermal={files["thermal"]}',
    ]
    out = tmp_path / 'e.tif'
    assert main([*words, '--config.sensors.thermal.unit=K', f'--out={out}']) == 0
    images = {name: values[None] for name, values in pixels.items()}
    expected = load(checkpoint).encode(images, units=UNITS).pooled
    np.testing.assert_allclose(embedded(out)[0], expected, rtol=1e-5, atol=2e-6)
    about = json.loads((tmp_path / 'e.tif.json').read_text())
    assert {*about['inputs']} == {*files} and about['settings']['sensors']['thermal']['unit'] == 'K'
    # Each pass is read with statistics of its own: exchanged it is another image.
    words[4:6] = f'--file.s1={files["s1_desc"]}', f'--file.s1_desc={files["s1"]}'
    assert main([*words, '--config.sensors.thermal.unit=K', f'--out={tmp_path / "f.tif"}']) == 0
    assert np.abs(embedded(tmp_path / 'f.tif') - embedded(out)).max() > 1e-3


def test_a_map_from_both_passes_is_that_of_its_windows_in_memory(checkpoint, tmp_path, capsys):
    file, system = tmp_path / 'head.npz', open_system(checkpoint, EncoderSettings())
    shape = HeadShape('shuffle', 64, 2, 8, 8)
    arrays = {name: np.asarray(x)[None] * 30 for name, x in heads.init(jax.random.key(0), shape).items()}
    arrays |= {'seed': np.array([0]), 'mean': np.zeros(64, np.float32), 'std': np.ones(64, np.float32)}
    sensors = 's1', 's1_desc'
    about = describe(shape, system.fingerprint, sensors, (1,), 'self', 'checkpoint', LABELS)
    write_head(prediction.Path(file), arrays, about)
    files, _ = scene(tmp_path, 160, 120)
    words = ['', 'predict', f'--checkpoint={checkpoint}', f'--head={file}', f'--s1={files["s1"]}']
    maps = [f'--out={tmp_path / "map.tif"}', f'--probabilities={tmp_path / "p.tif"}']
    assert main([*words, f'--file.s1_desc={files["s1_desc"]}', *maps]) == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options()))
        given = {name: files[name] for name in sensors}
        config = changed(sensors=SENSORS, batch=32)
        job, *_ = prediction._settle(config, given, checkpoint, str(file), read_head(file), stack)
        expected, valid = whole(job)
    with rasterio.open(tmp_path / 'p.tif') as shares:
        np.testing.assert_array_equal(np.moveaxis(shares.read(), 0, -1), expected)
    assert valid.all() and np.ptp(expected[..., 0]) > 0.1
    legend = json.loads((tmp_path / 'map.tif.json').read_text())
    assert {*legend['inputs']} == {*sensors}
    again = [*words[1:], f'--out={tmp_path / "again.tif"}']
    for name, message in (
        ('file.s1_dsc', 'was trained on s1 and s1_desc, given: s1 and s1_dsc'),
        ('before.s1_desc', 'given: s1; give these files'),
    ):
        assert message in refused(capsys, [*again, f'--{name}={files["s1_desc"]}'])
    both = [f'--{option}.s1_desc={files["s1_desc"]}' for option in ('file', 'before')]
    assert 'leave --before.s1_desc out' in refused(capsys, [*again, *both])


def test_what_cannot_be_is_one_line(checkpoint, tmp_path, capsys):
    files, _ = scene(tmp_path)
    radar, desc, heat = files['s1'], files['s1_desc'], f'--file.thermal={files["thermal"]}'
    words = ['encode', f'--checkpoint={checkpoint}', f'--out={tmp_path / "e.tif"}']
    for given, message in (
        ([f'--file.s1_dsc={desc}'], "--file.s1_dsc: .* has no modality 's1_dsc'; did you mean 's1_desc'"),
        ([f'--s2={radar}'], "--s2: .* has no modality 's2'"),
        (
            [f'--s1={radar}', f'--file.s1_desc={radar}'],
            r'--s1 and --file.s1_desc are the same file, .*s1\.tif, and both sensors would read its channels '
            '1, 2; give each sensor its own',
        ),
        ([f'--s1={radar}', f'--file.s1={desc}'], '--file.s1 and --s1 are the same sensor'),
        ([f'--file.s1_desc={desc}', f'--file.s1_desc={desc}'], '--file.s1_desc is given twice'),
        (['--file.s1_desc='], '--file.s1_desc=: write --file.NAME=FILE'),
        ([f'--before.s1_desc={desc}'], '--before.s1_desc means nothing here'),
        ([heat], r'thermal\.tif: in which unit are its values\? --config.sensors.thermal.unit='),
        ([heat, '--config.sensors.thermal.unt=K'], "has no setting 'unt'; did you mean 'unit'"),
        ([heat, '--config.sensors.s1_desc.unit=dB'], "has no setting 's1_desc'"),
        ([], 'give --s1=FILE, --s2=FILE, --dem=FILE, --file.NAME=FILE or several of them'),
    ):
        assert re.search(message, refused(capsys, [*words, *given])), message
    assert not (tmp_path / 'e.tif').exists()
    with pytest.raises(InputError, match=r'sensors\.s1: what is known of s1 belongs into config.s1'):
        run(None, changed(sensors={'s1': SensorFile()}), tmp_path / 'e.tif', s1=radar)
    with pytest.raises(InputError, match=r'sensors\.thermal\.scale=inf must be'):
        run(None, changed(sensors={'thermal': SensorFile(scale=np.inf)}), tmp_path / 'e.tif', s1=radar)


def test_a_stack_of_both_passes_is_told_apart_by_its_channels(checkpoint, tmp_path):
    """One file for two sensors: which channels are whose is said, or stands in their names."""
    files, pixels = scene(tmp_path)
    model = load(checkpoint)
    config = changed(output='pooled', sensors=SENSORS)
    run(model, config, tmp_path / 'a.tif', s1=files['s1'], s1_desc=files['s1_desc'])
    stack = write(tmp_path / 'stack.tif', np.concatenate([pixels['s1'], pixels['s1_desc']], axis=-1))
    first, last = (*RADAR, '-', '-'), ('-', '-', *RADAR)
    named = dataclasses.replace(
        config,
        s1=SensorFile(unit='dB', bands=first),
        sensors={'s1_desc': SensorFile(unit='dB', bands=last)},
    )
    run(model, named, tmp_path / 'b.tif', s1=stack, s1_desc=stack)
    np.testing.assert_allclose(embedded(tmp_path / 'b.tif'), embedded(tmp_path / 'a.tif'), rtol=1e-5)
    wrong = dataclasses.replace(named, sensors={'s1_desc': SensorFile(unit='dB', bands=first)})
    with pytest.raises(
        InputError, match=r'channels 1, 2; .* config.s1.bands and config.sensors.s1_desc.bands'
    ):
        run(model, wrong, tmp_path / 'c.tif', s1=stack, s1_desc=stack)


def test_a_descending_pass_is_an_item_too(checkpoint, tmp_path):
    files, _ = scene(tmp_path)
    model = load(checkpoint)
    config = changed(output='pooled', sensors=SENSORS)
    run(model, config, tmp_path / 'a.tif', s1_desc=files['s1_desc'])
    asset = {'href': './s1_desc.tif', 'type': 'image/tiff', 'bands': [{'name': 'VV'}, {'name': 'VH'}]}
    item = {'type': 'Feature', 'stac_version': '1.1.0', 'properties': {}, 'assets': {'both': asset}}
    (tmp_path / 'item.json').write_text(json.dumps(item))
    run(model, config, tmp_path / 'b.tif', s1_desc=tmp_path / 'item.json')
    np.testing.assert_array_equal(embedded(tmp_path / 'b.tif'), embedded(tmp_path / 'a.tif'))
    with pytest.raises(InputError, match=r'the same file, .*item\.json, and both .* its bands VH, VV'):
        run(model, config, tmp_path / 'c.tif', s1=tmp_path / 'item.json', s1_desc=tmp_path / 'item.json')
    with pytest.raises(InputError, match='no asset is a band of thermal as a GeoTIFF'):
        run(model, config, tmp_path / 'c.tif', thermal=tmp_path / 'item.json')
