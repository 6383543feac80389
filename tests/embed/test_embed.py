import itertools
import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.warp
import zarr
from rasterio.crs import CRS
from rasterio.transform import Affine

from fusmae_jax.embed import stac
from fusmae_jax.embed.run import encode
from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid
from tests.support import stac_items
from tests.support.embed_fixtures import (
    BANDS,
    CELL,
    CONFIG,
    LEFT,
    TOP,
    changed,
    embedded,
    image,
    run,
    write,
    write_pair,
)

UNITS = {'s1': 'dB', 's2': 'DN'}


def windows_of(pixels, stride):
    """All windows of 120 px of an image in memory, in rows and columns, NaN beyond its end."""
    rows, columns, bands = pixels.shape
    down, across = (1 + max(0, -(-(-(-n // CELL) * CELL - 120) // stride)) for n in (rows, columns))
    padded = np.full((down * stride + 120, across * stride + 120, bands), np.nan, np.float32)
    padded[:rows, :columns] = pixels
    cut = [
        padded[i * stride : i * stride + 120, j * stride : j * stride + 120]
        for i in range(down)
        for j in range(across)
    ]
    return np.stack(cut), (down, across)


def encoded(model, images, **options):
    """What `Pretrained.encode` gives for windows in memory, sixteen at a time.

    Always the same number of windows, or every number would be compiled anew.
    """
    parts, count = [], len(next(iter(images.values())))
    for start in range(0, count, 16):
        index = np.minimum(np.arange(start, start + 16), count - 1)
        some = {name: batch[index] for name, batch in images.items()}
        parts.append(model.encode(some, units=UNITS, **options))
    return jax.tree.map(lambda *values: np.concatenate(values)[:count], *parts)


def on_grid(tokens):
    """Tokens (b, n, width) as (b, 4, 4, width)."""
    return tokens.reshape(len(tokens), 4, 4, -1)


def in_memory(model, pixels, overlap, weights):
    """The embeddings of whole images with `Pretrained.encode`, merged with NumPy."""
    stride = (4 - overlap) * CELL
    cut = {name: windows_of(values, stride) for name, values in pixels.items()}
    down, across = next(iter(cut.values()))[1]
    images = {name: batch for name, (batch, _) in cut.items()}
    tokens = encoded(model, images).tokens
    valid = {
        name: np.isfinite(batch).reshape(-1, 4, CELL, 4, CELL, batch.shape[-1]).any(axis=(2, 4, 5))[..., None]
        for name, batch in images.items()
    }
    total = sum(np.where(valid[name], on_grid(values), 0) for name, values in tokens.items())
    count = sum(v.astype(np.float32) for v in valid.values())
    vectors = total / np.maximum(count, 1)
    step = 4 - overlap
    sums = np.zeros(((down - 1) * step + 4, (across - 1) * step + 4, 33))
    for k, (i, j) in enumerate(itertools.product(range(down), range(across))):
        weight = np.outer(weights(i, down), weights(j, across))[..., None] * (count[k] > 0)
        here = np.s_[i * step : i * step + 4, j * step : j * step + 4]
        sums[here] += np.concatenate([vectors[k] * weight, weight], axis=-1)
    rows, columns = (-(-n // CELL) for n in next(iter(pixels.values())).shape[:2])
    sums = sums[:rows, :columns]
    with np.errstate(invalid='ignore'):
        return np.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:], np.nan)


WEIGHTS = {
    ('mean', 0): lambda i, n: np.ones(4),
    ('mean', 1): lambda i, n: np.array([0.5, 1, 1, 0.5]),
    ('mean', 2): lambda i, n: np.array([0.25, 0.75, 0.75, 0.25]),
    ('centre', 2): lambda i, n: np.array([i == 0, 1, 1, i == n - 1]),
}


@pytest.mark.parametrize(('merge', 'overlap'), WEIGHTS)
def test_seams_equal_the_in_memory_path(tmp_path, model, merge, overlap):
    s1, s2, pixels = write_pair(tmp_path, 445, 371)
    # Whatever is left of a cell is wide enough for a pixel of the model grid.
    pixels['s1'][200:330, 40:110] = np.nan  # cells that only S2 saw
    pixels['s1'][380:, 250:] = np.nan
    pixels['s2'][370:, 240:] = 0  # and a corner that neither saw
    write(tmp_path / 's1.tif', pixels['s1'], BANDS['s1'])
    write(tmp_path / 's2.tif', pixels['s2'], BANDS['s2'])
    out = tmp_path / 'e.tif'
    run(model, changed(merge=merge, overlap=overlap), out, s1=s1, s2=s2)
    written = embedded(out)
    floats = {'s1': pixels['s1'], 's2': np.where(pixels['s2'] == 0, np.nan, pixels['s2'])}
    expected = in_memory(model, floats, overlap, WEIGHTS[merge, overlap])
    assert written.shape == expected.shape == (15, 13, 32)
    assert np.isnan(expected[13:, 9:]).all() and np.isfinite(expected[:12]).all()
    np.testing.assert_allclose(written, expected, rtol=1e-5, atol=2e-6)


def test_georeference_edges_and_cells(tmp_path, checkpoint):
    s1, s2, _ = write_pair(tmp_path, 250, 310)
    assert encode(CONFIG, {'s1': s1, 's2': s2}, checkpoint, str(tmp_path / 'e.tif')) == 0
    with rasterio.open(tmp_path / 'e.tif') as dataset:
        assert dataset.crs.to_epsg() == 32633
        assert dataset.transform == Affine(300, 0, LEFT, 0, -300, TOP)
        assert dataset.shape == (9, 11)
        for row, column in itertools.product(range(9), range(11)):
            x, y = dataset.xy(row, column)
            assert dataset.index(x, y) == (row, column)
            # The cell's centre lies in the pixels of the input that the cell was made from.
            with rasterio.open(s1) as source:
                r, c = source.index(x, y)
            assert row * CELL <= r < (row + 1) * CELL and column * CELL <= c < (column + 1) * CELL
    assert np.isfinite(embedded(tmp_path / 'e.tif')).all()


@pytest.mark.parametrize('merge', ['mean', 'centre'])
def test_a_place_has_one_embedding_in_every_cut_of_a_scene(tmp_path, model, merge):
    """Cut at any pixel: the cells lie on one grid, and those of whole windows are equal."""
    pixels = image('s1', 500, 520)
    kept = {}
    for name, row, column in (('whole', 0, 0), ('cut', 37, 71)):
        cut = write(
            tmp_path / f'{name}_s1.tif',
            pixels[row : row + 440, column : column + 430],
            BANDS['s1'],
            left=LEFT - 370 + 10 * column,
            top=TOP + 50 - 10 * row,
        )
        run(model, changed(merge=merge, edges='drop'), tmp_path / f'{name}.tif', s1=cut)
        with rasterio.open(tmp_path / f'{name}.tif') as dataset:
            left, top = dataset.transform.c, dataset.transform.f
            assert (left % 300, top % 300) == (0, 0)
        values = embedded(tmp_path / f'{name}.tif')
        fixed = json.loads((tmp_path / f'{name}.tif.json').read_text())['fixed_cells']
        inside = np.zeros(values.shape[:2], bool)
        inside[slice(*fixed['rows']), slice(*fixed['columns'])] = True
        np.testing.assert_array_equal(np.isfinite(values[..., 0]), inside)  # `edges` drops the others
        places = zip(*np.nonzero(inside))
        kept[name] = {(left + 300 * j, top - 300 * i): values[i, j] for i, j in places}
    shared = [*kept['whole'].keys() & kept['cut'].keys()]
    assert len(shared) > 20
    for place in shared:
        np.testing.assert_allclose(kept['whole'][place], kept['cut'][place], rtol=1e-5, atol=2e-6)


def test_an_image_without_a_whole_window_of_the_ground_is_its_own_window(tmp_path, model, capsys):
    s1 = write(tmp_path / 's1.tif', image('s1', 120, 120), BANDS['s1'], left=LEFT + 70)
    run(model, CONFIG, tmp_path / 'e.tif', s1=s1)
    assert 'too small for a whole window' in capsys.readouterr().out
    with rasterio.open(tmp_path / 'e.tif') as dataset:
        assert dataset.shape == (4, 4) and dataset.transform.c == LEFT + 70
    with pytest.raises(InputError, match="edges='drop' leaves nothing"):
        run(model, changed(edges='drop'), tmp_path / 'f.tif', s1=s1)


def test_an_embedding_follows_its_pixels(tmp_path, model):
    """A change of the ground under one cell changes that cell most, wherever it lies."""
    s1, _, pixels = write_pair(tmp_path, 360, 360)
    config = changed(overlap=0)
    run(model, config, tmp_path / 'a.tif', s1=s1)
    before = embedded(tmp_path / 'a.tif')
    for row, column in ((0, 0), (5, 7), (11, 3)):
        other = pixels['s1'].copy()
        other[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] += 9
        write(tmp_path / 'b.tif', other, BANDS['s1'])
        run(model, changed(overlap=0, overwrite=True), tmp_path / 'b2.tif', s1=tmp_path / 'b.tif')
        change = np.abs(embedded(tmp_path / 'b2.tif') - before).sum(axis=-1)
        assert np.unravel_index(change.argmax(), change.shape) == (row, column)


def test_sensors_of_different_pixel_size_and_one_alone(tmp_path, model):
    s1 = write(tmp_path / 's1.tif', image('s1', 241, 250), BANDS['s1'])
    coarse = image('s2', 121, 125)
    s2 = write(tmp_path / 's2.tif', coarse, BANDS['s2'][::-1], resolution=20.0)
    write(tmp_path / 's2.tif', coarse[..., ::-1], BANDS['s2'][::-1], resolution=20.0)
    run(model, changed(overlap=0), tmp_path / 'both.tif', s1=s1, s2=s2)
    written = embedded(tmp_path / 'both.tif')
    assert written.shape == (9, 9, 32)
    first = {'s1': image('s1', 241, 250)[None, :120, :120], 's2': coarse[None, :60, :60].astype(np.float32)}
    tokens = encoded(model, first, resolution={'s2': 20.0}).tokens
    mean = on_grid(tokens['s1'] + tokens['s2'])[0] / 2
    np.testing.assert_allclose(written[:4, :4], mean, rtol=1e-5, atol=2e-6)
    run(model, changed(overlap=0), tmp_path / 'alone.tif', s2=s2)
    lines = json.loads((tmp_path / 'both.tif.json').read_text())['differences']
    assert not any('pixels are' in line for line in lines)  # B01 and B09 are known at 60 m
    alone = encoded(model, {'s2': first['s2']}, resolution=20.0)
    tokens = on_grid(alone.tokens['s2'])[0]
    np.testing.assert_allclose(embedded(tmp_path / 'alone.tif')[:4, :4], tokens, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('output', ['pooled', 'cls'])
def test_one_vector_a_window(tmp_path, model, output):
    s1, s2, pixels = write_pair(tmp_path, 250, 130)
    run(model, changed(output=output), tmp_path / 'e.tif', s1=s1, s2=s2)
    images = {name: windows_of(values.astype(np.float32), 120) for name, values in pixels.items()}
    expected = getattr(encoded(model, {name: cut for name, (cut, _) in images.items()}), output)
    np.testing.assert_allclose(embedded(tmp_path / 'e.tif').reshape(6, 32), expected, rtol=1e-5, atol=2e-6)
    with rasterio.open(tmp_path / 'e.tif') as dataset:
        assert dataset.transform == Affine(1200, 0, LEFT, 0, -1200, TOP)


def test_int8_and_geoparquet_hold_the_same_embeddings(tmp_path, model):
    s1, _, pixels = write_pair(tmp_path, 250, 310)
    pixels['s1'][:150, 200:] = np.nan
    write(tmp_path / 's1.tif', pixels['s1'], BANDS['s1'])
    for name, options in {
        'e.tif': {},
        'q.tif': {'dtype': 'int8'},
        'some.tif': {'dtype': 'int8', 'calibration': 1},
        'e.parquet': {},
        'q.parquet': {'dtype': 'int8'},
        'e.zarr': {},
        'q.zarr': {'dtype': 'int8'},
    }.items():
        run(model, changed(**options), tmp_path / name, s1=s1)
    exact = embedded(tmp_path / 'e.tif')
    there = np.isfinite(exact[..., 0])
    assert not there[:4, 8:].any() and there.sum() > 50
    for name in ('q.tif', 'some.tif'):
        close = embedded(tmp_path / name)
        np.testing.assert_array_equal(np.isfinite(close[..., 0]), there)
        beside = json.loads((tmp_path / f'{name}.json').read_text())
        a, b = exact[there], close[there]
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(
            [beside['int8']['cosine_mean'], beside['int8']['cosine_min']],
            [cosine.mean(), cosine.min()],
            atol=1e-6,
        )
        assert beside['valid_cells'] == there.sum() and len(beside['scale']) == 32
        assert cosine.min() > 0.999 and beside['int8']['clipped_share'] < 1e-4
    _same_in_parquet(tmp_path, exact, there)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / 'e.zarr')['embedding'][:], exact)
    store = zarr.open_group(tmp_path / 'q.zarr')
    close = store['embedding'][:] * store['scale'][:][..., None]
    assert (np.linalg.norm(close - exact, axis=-1) < 0.02 * np.linalg.norm(exact, axis=-1))[there].all()
    # Once more, over the folder that is there.
    run(model, changed(overwrite=True), tmp_path / 'e.zarr', s1=s1)
    with pytest.raises(InputError, match=r'e\.zarr exists'):
        run(model, CONFIG, tmp_path / 'e.zarr', s1=s1)


def _same_in_parquet(tmp_path, exact, there):
    table = pq.read_table(tmp_path / 'e.parquet')
    rows, columns = table['row'].to_numpy(), table['column'].to_numpy()
    np.testing.assert_array_equal(np.stack([rows, columns]), np.nonzero(there))
    values = table['embedding'].combine_chunks().flatten().to_numpy().reshape(-1, 32)
    np.testing.assert_array_equal(values, exact[there])
    table = pq.read_table(tmp_path / 'q.parquet')
    scale = json.loads(table.schema.metadata[b'fusmae_jax'])['scale']
    values = table['embedding'].combine_chunks().flatten().to_numpy().reshape(-1, 32) * np.float32(scale)
    np.testing.assert_array_equal(values, embedded(tmp_path / 'q.tif')[there])


def test_the_scale_of_a_sample_has_headroom_and_gives_way_to_that_of_all(tmp_path, model):
    pixels = np.full((480, 480, 2), -15, np.float32)
    scales = {}
    for name, brightest, calibration in (('all', 0, 99), ('sample', 0, 1), ('missed', 20, 1)):
        pixels[300:, 300:] += brightest
        s1 = write(tmp_path / 's1.tif', pixels, BANDS['s1'])
        config = changed(
            dtype='int8', calibration=calibration, batch=1, overlap=0, accept=('statistics', 'range')
        )
        run(model, config, tmp_path / f'{name}.tif', s1=s1)
        beside = json.loads((tmp_path / f'{name}.tif.json').read_text())
        scales[name] = np.array(beside['scale'])
        assert beside['int8']['clipped_share'] == 0
    np.testing.assert_allclose(scales['sample'], 1.25 * scales['all'], rtol=1e-5)
    with rasterio.open(tmp_path / 'missed.tif') as dataset:
        stored = dataset.read().astype(int)
    assert np.abs(stored).max(axis=(1, 2)).min() == 127  # of every channel, so the scale is of all cells


def test_bands_that_are_absent_take_the_mean_if_that_is_said(tmp_path, model):
    pixels = image('s2', 240, 240)
    keep = [i for i, band in enumerate(BANDS['s2']) if band not in ('B01', 'B09')]
    names = [BANDS['s2'][i] for i in keep]
    s2 = write(tmp_path / 's2.tif', pixels[..., keep], names)
    with pytest.raises(InputError, match='B01, B09 of s2 are missing'):
        run(model, CONFIG, tmp_path / 'e.tif', s2=s2)
    run(model, changed(absent_bands='mean', overlap=0), tmp_path / 'e.tif', s2=s2)
    filled = pixels[:120, :120].astype(np.float32)
    filled[..., [i for i in range(12) if i not in keep]] = np.nan
    tokens = on_grid(encoded(model, {'s2': filled[None]}).tokens['s2'])[0]
    np.testing.assert_allclose(embedded(tmp_path / 'e.tif')[:4, :4], tokens, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('name', ['e.tif', 'q.tif', 'q.zarr'])
def test_a_stac_item_says_where_when_and_by_which_model(tmp_path, model, name):
    s1, _, _ = write_pair(tmp_path, 130, 250)
    dtype = 'int8' if name.startswith('q') else 'float32'
    config = changed(stac=True, dtype=dtype)
    with pytest.raises(InputError, match=r'needs the time of acquisition.*--config\.datetime='):
        run(model, config, tmp_path / name, s1=s1)
    with rasterio.open(s1, 'r+') as dataset:
        dataset.update_tags(ns='IMAGERY', ACQUISITIONDATETIME='2024-05-01T12:20:31+02:00')
    run(model, config, tmp_path / name, s1=s1)
    item = json.loads((tmp_path / f'{name}.stac.json').read_text())
    properties, asset = item['properties'], item['assets']['embeddings']
    assert properties['datetime'] == '2024-05-01T10:20:31Z'
    west, south, east, north = item['bbox']
    assert 15.0 < west < east < 15.05 and 45.1 < south < north < 45.2
    ring = np.array(item['geometry']['coordinates'][0])
    assert (ring[0] == ring[-1]).all() and len(ring) == 33
    back = np.array(rasterio.warp.transform('EPSG:4326', 'EPSG:32633', *ring.T)).T
    np.testing.assert_allclose(back.min(axis=0), properties['proj:bbox'][:2], atol=0.1)
    np.testing.assert_allclose(back.max(axis=0), properties['proj:bbox'][2:], atol=0.1)
    assert properties['proj:shape'] == [5, 9] and properties['proj:code'] == 'EPSG:32633'
    assert properties['mlm:input'][0]['bands'] == ['VV', 'VH']
    assert properties['mlm:input'][0]['input']['shape'] == [-1, 120, 120, 2]
    assert 'mlm:model' in item['assets']['model']['roles']
    assert len(asset['bands']) == 32 and asset['data_type'] == dtype
    assert (tmp_path / asset['href']).exists() and item['links'][0]['href'] == 's1.tif'
    if name == 'q.tif':
        beside = json.loads((tmp_path / f'{name}.json').read_text())
        assert properties['emb:quantization']['scale'] == beside['scale']
        assert asset['bands'][3]['raster:scale'] == beside['scale'][3]
    for time, part in (
        ('soon', "'soon' is no time"),
        ('2024-05-02/2024-05-01', 'an earlier and a later one'),
    ):
        with pytest.raises(InputError, match=part):
            run(model, changed(stac=True, overwrite=True, datetime=time), tmp_path / name, s1=s1)
    pytest.importorskip('pystac')
    assert stac_items.problems(item) == [] and stac_items.validated(item) == sorted(stac_items.FIELDS)
    # Validation that finds nothing proves something only if it can find.
    for path, value in (
        (('geometry', 'type'), 'Square'),
        (('properties', 'proj:shape'), ['5', 9]),
        (('properties', 'mlm:input', 0, 'input', 'data_type'), 'decibel'),
        (('assets', 'embeddings', 'raster:sampling'), 'corner'),
        (('properties', 'processing:software'), 'jax'),
    ):
        broken = json.loads(json.dumps(item))
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert stac_items.problems(broken), path


def test_the_interval_and_the_box_of_an_item():
    tags = {'a.tif': {'SENSING_TIME': '2024-05-03T05:00:00Z'}, 'b.tif': {'SENSING_TIME': '2024-05-01'}}
    assert stac.moments('', tags) == ('2024-05-01T00:00:00Z', '2024-05-03T05:00:00Z')
    assert stac.moments('2024-01-01/2024-02-01', {}) == ('2024-01-01T00:00:00Z', '2024-02-01T00:00:00Z')
    # Zone 1 begins at the 180th meridian: the box runs from the east of the map to its west.
    grid = Grid(32601, 160_000.0, 100_000.0, 100.0, 100.0, 90, 130, crs=CRS.from_epsg(32601))
    geometry, (west, south, east, north) = stac._footprint(grid)
    assert geometry['type'] == 'MultiPolygon'
    assert west > 179.9 and east < -179.9 and south < north
