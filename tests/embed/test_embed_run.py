import contextlib
import dataclasses
import json
import os
import resource
import tracemalloc

import jax
import numpy as np
import pytest
import rasterio
import safetensors.numpy

from fusmae_jax.config.build import from_dict
from fusmae_jax.embed import run as embed_run
from fusmae_jax.embed.run import encode
from fusmae_jax.embed.settings import EncodeConfig, SensorFile
from fusmae_jax.encoders.load import load
from fusmae_jax.errors import InputError
from fusmae_jax.interop.weights.published import run_import
from fusmae_jax.sensors import Product
from fusmae_jax.shipped.configs.encode import get_config
from tests.support import published_states
from tests.support.embed_fixtures import (
    BANDS,
    CONFIG,
    changed,
    embedded,
    image,
    run,
    write,
    write_pair,
)


def test_the_size_of_a_batch_changes_nothing_and_nothing_is_compiled_twice(tmp_path, model):
    s1, _, _ = write_pair(tmp_path, 700, 290)
    compiled = []

    def listen(event, duration, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(duration)

    results, counts = [], []
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for batch in (1, 5, 64):
            compiled.clear()
            run(model, changed(batch=batch, overwrite=True), tmp_path / 'e.tif', s1=s1)
            results.append(embedded(tmp_path / 'e.tif'))
            counts.append(len(compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=2e-6)
    # 24 batches compile as often as one batch of all windows does.
    assert counts[0] == counts[-1] > 0


def test_memory_does_not_grow_with_the_raster(tmp_path, model):
    peaks = []
    for rows in (1200, 6000):
        pixels = np.broadcast_to(image('s1', 1, 240), (rows, 240, 2))
        s1 = write(tmp_path / f'{rows}.tif', pixels, BANDS['s1'], compress='deflate')
        tracemalloc.start()
        run(model, changed(batch=2, output='tokens'), tmp_path / f'{rows}.parquet', s1=s1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 4,800 rows more are 9.2 MB more of pixels.
    assert abs(peaks[1] - peaks[0]) < 2e6


@pytest.mark.parametrize(
    ('changes', 'part'),
    [
        ({'s1': SensorFile()}, 'in which unit'),
        ({'s1': SensorFile(unit='furlong')}, "'furlong'"),
        ({'s1': SensorFile(unit='linear')}, 'cannot be negative'),
        ({'s1': SensorFile(unit='dB', scale=100.0)}, 'dB x 100'),
        ({'s1': SensorFile(unit='dB', product=Product(calibration='gamma0'))}, "'calibration'"),
        ({'s1': SensorFile(unit='dB', offset=-20.0)}, 'not distributed'),
        ({'s1': SensorFile(unit='dB', bands=('VH', 'VV'))}, 'described as VV, but config.s1.bands says VH'),
        ({'stats': 'dataset'}, "'statistics'"),
        ({'overlap': 4}, 'possible: 0, 1, 2, 3'),
        ({'overlap': 1, 'output': 'cls'}, 'leave overlap at -1'),
        ({'batch': 0, 'calibration': 0}, 'calibration=0'),
        ({'accept': ('colour',)}, "'colour'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, model, changes, part):
    s1, _, _ = write_pair(tmp_path, 250, 310)
    with pytest.raises(InputError) as error:
        run(model, changed(**changes), tmp_path / 'e.tif', s1=s1)
    assert part in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['s1.tif', 's2.tif']


def test_swapped_polarisations_without_descriptions_are_refused(tmp_path, model):
    s1 = write(tmp_path / 's1.tif', image('s1', 250, 310))
    with pytest.raises(InputError, match="'order'"):
        run(model, changed(s1=SensorFile(unit='dB', bands=('VH', 'VV'))), tmp_path / 'e.tif', s1=s1)
    assert [path.name for path in tmp_path.iterdir()] == ['s1.tif']


def test_what_is_declared_or_accepted_is_converted_and_written_down(tmp_path, model):
    s1, _, pixels = write_pair(tmp_path, 250, 250)
    run(model, CONFIG, tmp_path / 'a.tif', s1=s1)
    linear = 10 ** (pixels['s1'].astype(np.float64) / 10)
    stored = write(tmp_path / 'linear.tif', (linear * 2).astype(np.float32), BANDS['s1'])
    product = Product(calibration='gamma0')
    config = changed(s1=SensorFile(unit='linear', scale=0.5, product=product), accept=('calibration',))
    run(model, config, tmp_path / 'b.tif', s1=stored)
    np.testing.assert_allclose(embedded(tmp_path / 'b.tif'), embedded(tmp_path / 'a.tif'), atol=1e-4)
    lines = json.loads((tmp_path / 'b.tif.json').read_text())['differences']
    assert any('linear to dB' in line for line in lines)
    assert any(line.startswith('accepted: s1: calibration is gamma0') for line in lines)
    config = changed(stats='dataset', accept=('statistics',))
    run(model, config, tmp_path / 'c.tif', s1=s1)
    shifted = write(tmp_path / 'shifted.tif', pixels['s1'] * 1.5 - 3, BANDS['s1'])
    run(model, config, tmp_path / 'd.tif', s1=shifted)
    np.testing.assert_allclose(embedded(tmp_path / 'd.tif'), embedded(tmp_path / 'c.tif'), atol=1e-3)
    assert np.abs(embedded(tmp_path / 'c.tif') - embedded(tmp_path / 'a.tif')).max() > 1e-2


def test_a_share_of_fill_is_refused_and_what_looks_wrong_is_written_down(tmp_path, model):
    pixels = image('s1', 250, 250)
    pixels[130:, 130:] = -9999
    s1 = write(tmp_path / 's1.tif', pixels, BANDS['s1'])
    with pytest.raises(InputError, match=r"s1\.tif: block \d+, VV: .*-9999.*fill value.*'range'"):
        run(model, CONFIG, tmp_path / 'e.tif', s1=s1)
    declared = changed(s1=SensorFile(unit='dB', nodata=(-9999.0,)))
    run(model, declared, tmp_path / 'e.tif', s1=s1)
    assert np.isfinite(embedded(tmp_path / 'e.tif')[..., 0]).mean() < 0.9
    s2 = write(tmp_path / 's2.tif', image('s2', 250, 250) + np.uint16(1000), BANDS['s2'])
    lines = []
    for name, accept in (('a', ()), ('b', ('offset',))):
        run(model, changed(accept=accept), tmp_path / f'{name}.tif', s2=s2)
        beside = json.loads((tmp_path / f'{name}.tif.json').read_text())['differences']
        lines.append(next(line for line in beside if 'offset of 1000' in line))
    assert lines[0].startswith('likely: s2: ') and lines[1].startswith('accepted: s2: ')


def test_the_output_is_named_well_and_nothing_is_overwritten_unasked(tmp_path, model):
    s1, _, _ = write_pair(tmp_path, 130, 130)
    for out, part in (
        ('e.png', "'.png'"),
        ('none/e.tif', 'does not exist'),
        ('s1.tif', 'is one of the inputs'),
        ('s2.tif', 'exists'),
    ):
        with pytest.raises(InputError, match=part):
            run(model, CONFIG, tmp_path / out, s1=s1)
    with pytest.raises(InputError, match='give --s1=FILE'):
        encode(CONFIG, {}, 'none', str(tmp_path / 'e.tif'))


@pytest.mark.parametrize('name', ['e.tif', 'e.parquet', 'e.zarr'])
def test_a_run_that_fails_leaves_nothing(tmp_path, model, name):
    file = tmp_path / 's1.tif'
    s1 = write(file, image('s1', 1200, 240), BANDS['s1'], compress='deflate')
    before = sorted(path.name for path in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match='is the disk full'):
            run(model, changed(compress='none'), tmp_path / name, s1=s1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    write(file, np.full((240, 240, 2), np.nan, np.float32), BANDS['s1'])
    with pytest.raises(InputError, match='not one valid pixel'):
        run(model, CONFIG, tmp_path / name, s1=s1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_defaults_of_the_configuration_file():
    config = from_dict(EncodeConfig, get_config('int8,pooled').to_dict())
    assert (config.dtype, config.output, config.s1.unit, config.s2.unit) == ('int8', 'pooled', 'dB', 'DN')
    stated = {'s2': SensorFile(unit='DN', offset=0.0)}
    plain = from_dict(EncodeConfig, get_config().to_dict())
    assert plain.s2.offset is None
    assert dataclasses.replace(plain, **stated) == dataclasses.replace(CONFIG, batch=32)
    with pytest.raises(InputError, match="'int8'"):
        get_config('int4')


def test_neither_output_nor_a_file_beside_it_is_replaced_unasked(tmp_path, model):
    s1, _, _ = write_pair(tmp_path, 130, 130)
    out, beside = tmp_path / 'e.tif', tmp_path / 'e.tif.json'
    beside.write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r'e\.tif\.json exists, where the description'):
        run(model, CONFIG, out, s1=s1)
    with pytest.raises(InputError, match=r'e\.tif\.json exists and is not by `encode`'):
        run(model, changed(overwrite=True), out, s1=s1)
    assert beside.read_text() == '{"mine": 1}' and not out.exists()
    beside.unlink()
    run(model, CONFIG, out, s1=s1)
    before = out.read_bytes()
    with pytest.raises(InputError, match=r'e\.tif exists; name another file'):
        run(model, CONFIG, out, s1=s1)
    run(model, changed(overwrite=True, output='cls'), out, s1=s1)
    assert out.read_bytes() != before
    assert json.loads(beside.read_text())['settings']['output'] == 'cls'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['e.tif', 'e.tif.json', 's1.tif', 's2.tif']


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_stop_between_the_two_files_leaves_no_description_of_another(tmp_path, monkeypatch, overwrite):
    """Whatever call is the last that is made: a description stands beside its own raster or not at all."""
    names = ('unlink', 'replace', 'link')
    for last in range(6):
        folder = tmp_path / str(last)
        folder.mkdir()
        target, part = folder / 'e.tif', folder / '.e.tif.1.part'
        files = {part: 'new', embed_run._beside(part): 'about new'}
        files |= {target: 'old', embed_run._beside(target): 'about old'} if overwrite else {}
        for file, text in files.items():
            file.write_text(text)
        calls = []

        def counted(real, last=last, calls=calls):
            def call(*arguments, **options):
                if len(calls) == last:
                    raise KeyboardInterrupt  # what is left of a process that was killed here
                calls.append(real)
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, counted(getattr(os, name)))
            with contextlib.suppress(KeyboardInterrupt):
                embed_run._publish(part, embed_run._beside(part), target, overwrite)
        raster = target.read_text() if target.exists() else ''
        beside = embed_run._beside(target)
        assert not beside.exists() or beside.read_text() == f'about {raster}'
        assert raster in (('old', 'new') if overwrite else ('', 'new'))


def test_a_name_that_was_taken_meanwhile_is_left_alone(tmp_path):
    part, target = tmp_path / '.e.tif.1.part', tmp_path / 'e.tif'
    for file in (part, embed_run._beside(part), embed_run._beside(target)):
        file.write_text(file.name)
    with pytest.raises(InputError, match=r'e\.tif\.json was written by something else meanwhile'):
        embed_run._publish(part, embed_run._beside(part), target, False)
    assert not target.exists() and embed_run._beside(target).read_text() == 'e.tif.json'


@pytest.mark.parametrize('value', ['5%', '512MB', ''])
def test_the_cache_of_gdal_is_left_to_its_variable(monkeypatch, value):
    monkeypatch.setenv('GDAL_CACHEMAX', value)
    assert 'GDAL_CACHEMAX' not in embed_run.gdal_options()
    monkeypatch.delenv('GDAL_CACHEMAX')
    assert embed_run.gdal_options()['GDAL_CACHEMAX'] == 256


def test_offsets_of_tags_are_applied_and_written_down(tmp_path, model):
    pixels = image('s2', 130, 130)
    plain = write(tmp_path / 'plain.tif', pixels, BANDS['s2'])
    shifted = write(tmp_path / 'shifted.tif', pixels + np.uint16(1000), BANDS['s2'])
    with rasterio.open(shifted, 'r+') as dataset:
        dataset.update_tags(BOA_ADD_OFFSET='-1000', BOA_QUANTIFICATION_VALUE='10000')
    run(model, CONFIG, tmp_path / 'a.tif', s2=plain)
    believing = changed(s2=SensorFile(unit='DN'))
    run(model, believing, tmp_path / 'b.tif', s2=shifted)
    np.testing.assert_allclose(embedded(tmp_path / 'b.tif'), embedded(tmp_path / 'a.tif'), atol=1e-4)
    assert json.loads((tmp_path / 'b.tif.json').read_text())['inputs']['s2']['offset'] == -1000
    with pytest.raises(InputError, match=r'config\.s2\.offset=-1000 if they are'):
        run(model, believing, tmp_path / 'c.tif', s2=plain)


def test_imported_weights_are_given_the_inputs_of_their_preset(tmp_path):
    """One window is what `load` makes of the same pixels; how large it is on the ground has to be said."""
    weights = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(published_states.timm(14, 3, 14), weights)
    run_import(dataclasses.replace(published_states.DINO, file=str(weights)), tmp_path / 'dino')
    imported = load(tmp_path / 'dino' / 'own')
    s1, s2, pixels = write_pair(tmp_path, 120, 120)
    config = changed(output='cls', window=1200.0, overlap=-1)
    run(imported, config, tmp_path / 'e.tif', s1=s1, s2=s2)
    features = imported.encode(pixels, units={'s1': 'dB', 's2': 'DN'}).cls
    np.testing.assert_allclose(embedded(tmp_path / 'e.tif')[0], features, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r'--config\.window=1200'):
        run(imported, changed(overwrite=True), tmp_path / 'e.tif', s1=s1, s2=s2)
