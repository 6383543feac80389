"""`predict`: the map of a scene is that of its windows in memory, bit for bit; what does not fit is said."""

import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio

from fusmae_jax.embed.run import gdal_options
from fusmae_jax.embed.stream import _read as command_read
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fingerprint, fit, open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense import heads
from fusmae_jax.eval.dense.config import DenseFinetune
from fusmae_jax.eval.dense.finetune import keeper
from fusmae_jax.eval.dense.heads import HeadShape
from fusmae_jax.eval.dense.stored import describe, read_head, store_temperature, write_head
from fusmae_jax.eval.finetune.stored import ENCODER, HEAD
from fusmae_jax.eval.finetune.train import Point
from fusmae_jax.input.contract import LabelMap, NumberMap
from fusmae_jax.predict import run as command
from fusmae_jax.predict.map_file import NOTHING, colours
from fusmae_jax.predict.output import class_numbers
from fusmae_jax.predict.run import predict
from tests.support.embed_fixtures import BANDS, CONFIG, LEFT, TOP, changed, image, write, write_checkpoint
from tests.support.whole_map import whole

pytestmark = pytest.mark.usefixtures('one_device')
LABELS = LabelMap(('dry', 'wet', 'ice'), (4, 1, 9), (), (60, 60), 'uint8', 20.0)  # of a record of 1200 m
SIZE = 300, 270  # pixels of the scene
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def head(checkpoint, tmp_path_factory):
    """An untrained head on the tokens of Sentinel-1."""
    file, system = tmp_path_factory.mktemp('head') / 'head.npz', open_system(checkpoint, EncoderSettings())
    shape = HeadShape('shuffle', 2 * 32, 3, 8, 8)
    params = heads.init(jax.random.key(0), shape)
    arrays = {name: np.asarray(x)[None] * 30 for name, x in params.items()}
    arrays |= {'seed': np.array([0]), 'mean': np.zeros(64, np.float32), 'std': np.ones(64, np.float32)}
    about = describe(shape, system.fingerprint, ('s1', 's2'), (2,), 'self', 'checkpoint', LABELS)
    write_head(command.Path(file), arrays, about)
    return str(file)


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """Two files of one place; a corner of both holds nothing."""
    folder, files = tmp_path_factory.mktemp('scene'), {}
    for name in ('s1', 's2'):
        pixels = image(name, *SIZE)
        pixels[:90, :100] = np.nan if name == 's1' else 0
        profile = {} if name == 's1' else {'nodata': 0}
        files[name] = write(folder / f'{name}.tif', pixels, BANDS[name], left=LEFT, top=TOP, **profile)
    return files


def read(file):
    with rasterio.open(file) as dataset:
        return np.moveaxis(dataset.read(), 0, -1), dataset.profile, dataset.transform


@pytest.fixture(scope='module')
def written(scene, checkpoint, head, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    given = (scene, checkpoint, head, str(out / 'map.tif'), str(out / 'p.tif'))
    assert predict(changed(merge='mean'), *given) == 0
    return out


def test_a_map_is_that_of_its_windows_in_memory_bit_for_bit(written, scene, checkpoint, head):
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options()))
        job, grid, _ = command._settle(changed(merge='mean'), scene, checkpoint, head, read_head(head), stack)
        assert len(job.layout.bands) > 1 and job.layout.columns.windows > 1
        probabilities, valid = whole(job)
    shares, profile, transform = read(written / 'p.tif')
    np.testing.assert_array_equal(shares, probabilities)
    classes, profile, transform = read(written / 'map.tif')
    np.testing.assert_array_equal(classes[..., 0], class_numbers(probabilities, valid))
    assert (transform.a, transform.c, transform.f) == (20.0, LEFT, TOP) and profile['nodata'] == NOTHING
    assert classes.shape[:2] == (grid.rows, grid.columns) == (150, 135)
    nothing = np.zeros(classes.shape[:2], bool)
    nothing[:45, :50] = True
    np.testing.assert_array_equal(classes[..., 0] == NOTHING, nothing)
    np.testing.assert_allclose(np.nansum(shares, axis=-1)[60:, 60:], 1, atol=1e-5)
    assert len(np.unique(classes)) > 2


def test_a_map_of_numbers_is_that_of_its_windows_in_memory_bit_for_bit(
    scene, checkpoint, head, tmp_path, capsys
):
    learned = read_head(head)
    arrays = {name: np.asarray(x)[None] for name, x in learned.params.items()}
    # As many numbers as the head of three classes, of which the first ones are kept.
    arrays = {name: x[..., : x.shape[-1] // 3] for name, x in arrays.items()}
    arrays |= {'seed': np.array([0]), **learned.scale._asdict()}
    numbers = NumberMap('biomass', 't/ha', nodata=(-9999.0,), size=(60, 60), resolution=20.0)
    shape = learned.shape._replace(classes=1)
    about = describe(shape, learned.weights, ('s1', 's2'), (2,), 'self', 'checkpoint', numbers)
    write_head(command.Path(tmp_path / 'head.npz'), arrays, about)
    given = scene, checkpoint, str(tmp_path / 'head.npz')
    out = tmp_path / 'map.tif'
    assert predict(changed(merge='mean'), *given, str(out), '') == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options()))
        job, *_ = command._settle(changed(merge='mean'), *given, read_head(given[2]), stack)
        wanted, _ = whole(job)
    pixels, profile, transform = read(out)
    np.testing.assert_array_equal(pixels, wanted)
    assert profile['dtype'] == 'float32' and np.isnan(profile['nodata'])
    nothing = np.zeros(pixels.shape[:2], bool)
    nothing[:45, :50] = True
    np.testing.assert_array_equal(np.isnan(pixels[..., 0]), nothing)
    assert (transform.a, transform.c, transform.f) == (20.0, LEFT, TOP) and np.nanstd(pixels) > 0.1
    with rasterio.open(out) as dataset:
        assert dataset.units == ('t/ha',) and dataset.descriptions == ('biomass',)
        assert dataset.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
    legend = json.loads((tmp_path / 'map.tif.json').read_text())
    assert (legend['quantity'], legend['unit']) == ('biomass', 't/ha') and 'legend' not in legend
    assert f'biomass: mean {np.nanmean(pixels, dtype=np.float64):.4g} t/ha, from' in capsys.readouterr().out
    with pytest.raises(InputError, match='predicts biomass, and numbers have no probabilities'):
        predict(CONFIG, *given, str(tmp_path / 'other.tif'), str(tmp_path / 'p.tif'))


@pytest.mark.slow
def test_the_memory_for_a_scene_does_not_grow_with_it(checkpoint, head, tmp_path):
    """By the command, 2,000 x 2,000 pixels of both sensors: 214 MiB of them in float32."""
    peaks = {}
    for size in (400, 2000):
        folder = tmp_path / str(size)
        folder.mkdir()
        pixels = {name: image(name, size, size) for name in BANDS}
        files = {
            name: write(folder / f'{name}.tif', x, BANDS[name], left=LEFT, top=TOP)
            for name, x in pixels.items()
        }
        arguments = [f'--{name}={file}' for name, file in files.items()]
        arguments += [f'--checkpoint={checkpoint}', f'--head={head}', f'--out={folder}/map.tif']
        arguments += [
            '--config=configs/encode.py',
            '--config.s2.offset=0.0',
            '--config.merge=mean',
            '--config.batch=16',
        ]
        watched = (
            'import resource, subprocess, sys;'
            'subprocess.run([sys.executable, "main.py", "predict", *sys.argv[1:]], check=True, stdout=2);'
            'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
        )
        run = [sys.executable, '-c', watched, *arguments, f'--probabilities={folder}/p.tif']
        begin = time.perf_counter()
        done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        peaks[size] = int(done.stdout) / 1024
        print(f'{size} px: {time.perf_counter() - begin:.0f} s, at most {peaks[size]:,.0f} MiB')
    assert peaks[2000] - peaks[400] < 150
    # The flags of the tests make other last digits, so that equality is looked at here.
    config, here = changed(merge='mean', batch=16), [str(tmp_path / name) for name in ('m.tif', 'p.tif')]
    assert predict(config, files, checkpoint, head, *here) == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options()))
        job, *_ = command._settle(config, files, checkpoint, head, read_head(head), stack)
        probabilities, valid = whole(job)
    np.testing.assert_array_equal(read(here[1])[0], probabilities)
    np.testing.assert_array_equal(read(here[0])[0][..., 0], class_numbers(probabilities, valid))
    np.testing.assert_allclose(read(tmp_path / '2000/p.tif')[0], probabilities, atol=1e-5)


def test_a_fine_tuned_model_is_used_as_a_probed_one_is(scene, checkpoint, tmp_path, capsys):
    """Its map is that of its windows in memory; a sensor that is missing is refused."""
    settings = EncoderSettings(checkpoint=checkpoint, modalities=(('s1', 's2'),))
    system = open_system(checkpoint, settings)
    contract = dataclasses.replace(system.model.contract, maps={'map': LABELS})
    fitted = fit(system.model, contract, ('s1', 's2'), settings, 'here')
    config = DenseFinetune(head='upernet', encoder=settings)
    shape = HeadShape('upernet', 64, 3, 8, 8)
    tuned = jax.tree.map(lambda x: x * 1.1, system.model.params['encoder'])
    head = jax.jit(lambda key: heads.init(key, shape))(jax.random.key(0))
    params = {'encoder': tuned, 'head': {**head, 'out': jax.tree.map(lambda x: 9 * x, head['out'])}}
    keep = keeper(config, system._replace(seen=None), fitted, contract, shape, (2,))
    keep(params, Point(1e-3, 0, np.arange(2), np.zeros((2, 3)), {}), Path(tmp_path))
    store_temperature(Path(tmp_path / HEAD), 2.5)
    given = str(tmp_path / ENCODER), str(tmp_path / HEAD)
    assert (
        predict(changed(merge='mean'), scene, *given, str(tmp_path / 'm.tif'), str(tmp_path / 'p.tif')) == 0
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options()))
        job, *_ = command._settle(changed(merge='mean'), scene, *given, read_head(given[1]), stack)
        probabilities, _ = whole(job)
        plain, *_ = command._settle(
            changed(merge='mean'), scene, *given, read_head(given[1])._replace(temperature=1.0), stack
        )
        windows = command_read(job, 1, 1)
        (soft, valid), (sharp, _) = (jax.device_get(each.encoder(windows)) for each in (job, plain))
    np.testing.assert_array_equal(read(tmp_path / 'p.tif')[0], probabilities)
    assert 'at the temperature 2.500' in capsys.readouterr().out
    assert json.loads((tmp_path / 'm.tif.json').read_text())['temperature'] == 2.5
    # Log-odds are divided by the temperature.
    odds = [np.log(x[..., 1:] / x[..., :1])[valid] for x in (soft, sharp)]
    np.testing.assert_allclose(2.5 * odds[0], odds[1], rtol=1e-3, atol=1e-4)
    assert np.abs(odds[1]).max() > 0.3
    with pytest.raises(InputError, match='was trained on s1 and s2, given: s2'):
        predict(CONFIG, {'s2': scene['s2']}, *given, str(tmp_path / 'other.tif'), '')
    with pytest.raises(InputError, match='give the checkpoint that the probe was run on'):
        predict(CONFIG, scene, checkpoint, given[1], str(tmp_path / 'other.tif'), '')


def test_the_output_of_encode_changes_no_map(written, scene, checkpoint, head, tmp_path):
    out = tmp_path / 'map.tif'
    assert predict(changed(merge='mean', output='pooled'), scene, checkpoint, head, str(out), '') == 0
    np.testing.assert_array_equal(read(out)[0], read(written / 'map.tif')[0])


def test_the_legend_says_what_the_numbers_mean(written):
    about = json.loads((written / 'map.tif.json').read_text())
    assert [(x['number'], x['class'], x['value']) for x in about['legend']] == [
        (0, 'dry', 4),
        (1, 'wet', 1),
        (2, 'ice', 9),
    ]
    with rasterio.open(written / 'map.tif') as dataset:
        table = dataset.colormap(1)
        assert [table[i][:3] for i in range(3)] == colours(3) and table[NOTHING][3] == 0
        assert dataset.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
    assert len(set(colours(44))) == 44
    assert sorted(x.name for x in written.iterdir()) == ['map.tif', 'map.tif.json', 'p.tif']


def other_head(head, folder, **changes):
    """The same head with another description."""
    with np.load(head) as archive:
        arrays = {name: archive[name] for name in archive.files if name != 'about'}
        about = json.loads(str(archive['about']))
    write_head(command.Path(folder / 'other.npz'), arrays, about | changes)
    return str(folder / 'other.npz')


def test_a_window_is_as_large_as_the_records_of_the_head(checkpoint, head, scene, tmp_path, capsys):
    """Those of the encoder had 1200 m; a head that was probed on 2400 m has pixels of 40 m there."""
    labels = json.loads(str(np.load(head)['about']))['labels'] | {'resolution': 40.0}
    changes = {'labels': labels, 'accepted': ['resolution'], 'bands': {'s1': ['VV', 'HH'], 's2': BANDS['s2']}}
    file, out = other_head(head, tmp_path, **changes), tmp_path / 'map.tif'
    with pytest.raises(InputError, match=r'an image covers \[\(2400.0, 2400.0\)\] m, the model knows'):
        predict(CONFIG, scene, checkpoint, file, str(out), '')
    assert predict(changed(accept=('resolution',)), scene, checkpoint, file, str(out), '') == 0
    printed = capsys.readouterr().out
    assert 'differ from those of the encoder in resolution' in printed
    assert 's1: the head learned without VH, for which the mean stood; the files have them' in printed
    assert 's1: the head learned with HH, which the files lack' in printed and 'note: s2: the' not in printed
    classes, _, transform = read(out)
    assert transform.a == 40.0 and classes.shape[:2] == (75, 68)
    with pytest.raises(InputError, match='trained on images of 2400 x 2400 m, and windows are as large'):
        predict(changed(window=1200.0), scene, checkpoint, file, str(tmp_path / 'b.tif'), '')


def test_a_head_that_learned_on_an_accelerator_is_used_on_a_processor(checkpoint, head, tmp_path, capsys):
    """There the encoder computes in bfloat16; here it is opened in float32, with other fingerprints."""
    model = open_system(checkpoint, EncoderSettings()).model
    there = fingerprint(Pretrained(model.config, model.contract, model.params, 'bfloat16'))
    assert there != fingerprint(model)
    pixels = {name: image(name, 60, 50) for name in ('s1', 's2')}
    files = {name: write(tmp_path / f'{name}.tif', x, BANDS[name]) for name, x in pixels.items()}
    file = other_head(head, tmp_path, weights=there)
    assert predict(CONFIG, files, checkpoint, file, str(tmp_path / 'map.tif'), '') == 0
    assert 'tokens in another number format than float32' in capsys.readouterr().out


def test_files_in_degrees_and_chips_without_a_place_are_taken_as_encode_takes_them(
    checkpoint, head, tmp_path
):
    degrees, chips = {}, {}
    for name in ('s1', 's2'):
        pixels = image(name, 140, 140)
        place = {'resolution': 0.0001, 'left': 15.0, 'top': 45.0, 'crs': 'EPSG:4326'}
        degrees[name] = write(tmp_path / f'd{name}.tif', pixels, BANDS[name], **place)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
            nowhere = {'crs': None, 'transform': rasterio.Affine.identity()}
            chips[name] = write(tmp_path / f'c{name}.tif', pixels, BANDS[name], **nowhere)
    out = tmp_path / 'map.tif'
    with pytest.raises(InputError, match='reproject=10 interpolates on the fly'):
        predict(CONFIG, degrees, checkpoint, head, str(out), '')
    assert predict(changed(reproject=10.0), degrees, checkpoint, head, str(out), '') == 0
    with rasterio.open(out) as dataset:
        assert dataset.crs.to_epsg() == 32633 and dataset.res == (20.0, 20.0)
    ten = {name: dataclasses.replace(getattr(CONFIG, name), pixel=10.0) for name in chips}
    config = changed(georeference='none', overwrite=True, **ten)
    assert predict(config, chips, checkpoint, head, str(out), '') == 0
    with rasterio.open(out) as dataset:
        assert dataset.crs is None and dataset.shape == (70, 70)


def test_a_scene_that_is_too_small_for_a_whole_window_is_said_or_refused(checkpoint, head, tmp_path, capsys):
    pixels = {name: image(name, 60, 50) for name in ('s1', 's2')}
    files = {name: write(tmp_path / f'{name}.tif', x, BANDS[name]) for name, x in pixels.items()}
    given = (files, checkpoint, head, str(tmp_path / 'map.tif'), '')
    with pytest.raises(InputError, match="edges='drop' leaves nothing"):
        predict(changed(edges='drop'), *given)
    assert predict(CONFIG, *given) == 0
    assert 'too small for a whole window' in capsys.readouterr().out
    assert read(tmp_path / 'map.tif')[0].shape == (30, 25, 1)


def test_a_scene_without_a_pixel_is_no_map(checkpoint, head, tmp_path):
    files = {'s1': np.full((60, 60, 2), np.nan, np.float32), 's2': np.zeros((60, 60, 12), np.uint16)}
    files = {name: write(tmp_path / f'{name}.tif', x, BANDS[name], nodata=0) for name, x in files.items()}
    with pytest.raises(InputError, match=r's1\.tif, .*s2\.tif: not one pixel that all dates measured'):
        predict(CONFIG, files, checkpoint, head, str(tmp_path / 'map.tif'), '')
    assert not (tmp_path / 'map.tif').exists()


def test_a_full_disk_leaves_the_map_that_was_there(scene, checkpoint, head, tmp_path):
    """Also one that is full with the last bytes only, which are written while the file is closed."""
    out, p = tmp_path / 'map.tif', tmp_path / 'p.tif'
    config = changed(overwrite=True)
    predict(config, scene, checkpoint, head, str(out), str(p))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    largest = max(map(len, before.values()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (2000, largest - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(InputError, match='is the disk full'):
                predict(config, scene, checkpoint, head, str(out), str(p))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'files': ('s1',)}, 'was trained on s1 and s2, given: s1'),
        (
            {'modalities': ['s1', 's1_desc']},
            'trained on s1 and s1_desc, given: s1 and s2; give these files',
        ),
        ({'out': 'map.png'}, 'let its name end in .tif'),
        ({'head': 'nothing.npz'}, 'there is no such file'),
        ({'weights': 'other'}, 'fingerprint other, .* give the checkpoint that the probe was run on'),
        ({'stats': 'dataset'}, "encoder.stats='dataset'"),
        ({'both': 'map.tif'}, r'--out and --probabilities are both .*map\.tif'),
        ({'format': 0}, 'no head that can be used on other images'),
    ],
)
def test_what_does_not_fit_is_one_error(changes, message, scene, checkpoint, head, tmp_path):
    files = {name: scene[name] for name in changes.pop('files', scene)}
    out, file = str(tmp_path / changes.pop('out', 'map.tif')), changes.pop('head', None)
    both = str(tmp_path / changes.pop('both')) if 'both' in changes else ''
    if changes:
        file = other_head(head, tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        predict(CONFIG, files, checkpoint, file or head, out, both)
