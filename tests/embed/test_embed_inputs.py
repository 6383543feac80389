"""Inputs that are no plain GeoTIFF in UTM: the same embeddings as of the numbers that they hold."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import zarr
from rasterio.transform import Affine

from fusmae_jax.embed.check import restrict
from fusmae_jax.embed.settings import SensorFile
from fusmae_jax.embed.stream import make_encoder
from fusmae_jax.errors import InputError
from fusmae_jax.geo.stack import has_jp2
from fusmae_jax.input.contract import Contract
from fusmae_jax.sensors import Product
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS
from tests.support.embed_fixtures import BANDS, LEFT, TOP, changed, embedded, run, write, write_pair
from tests.support.products import item_s2, safe_s2

jp2 = pytest.mark.skipif(not has_jp2(), reason='this GDAL cannot write JPEG 2000')
OPTICAL = SensorFile(unit='DN')


@jp2
def test_a_product_is_encoded_on_its_native_grids(tmp_path, model):
    folder, bands = safe_s2(tmp_path, 120)
    run(model, changed(s2=OPTICAL, stac=True), tmp_path / 'e.tif', s2=folder)
    groups = {name: group for name, group in GROUPS.items() if group.modality == 's2'}
    fields = {
        name: np.stack([bands[band] - 1000 for band in group.bands], axis=-1).astype(np.float32)[None]
        for name, group in groups.items()
    }
    # As a record of a converted set holds them.
    contract, config = Contract(groups=groups), restrict(model.config, {'s2': ''}, '')
    vectors, _ = make_encoder(model, config, contract, 1, 'tokens')(fields)
    np.testing.assert_allclose(embedded(tmp_path / 'e.tif'), vectors[0], atol=2e-5)
    about = json.loads((tmp_path / 'e.tif.json').read_text())
    assert set(about['inputs']) == {'s2_10m', 's2_20m', 's2_60m'}
    item = json.loads((tmp_path / 'e.tif.stac.json').read_text())
    assert item['properties']['datetime'].startswith('2022-08-01T10:06:11')
    assert [entry['name'] for entry in item['properties']['mlm:input']] == ['s2']


@jp2
def test_the_level_of_a_product_is_held_against_the_model(tmp_path, model):
    folder, _ = safe_s2(tmp_path, 120, level='1C')
    with pytest.raises(InputError, match='level is L1C in the data, the model knows L2A'):
        run(model, changed(s2=OPTICAL), tmp_path / 'e.tif', s2=folder)
    declared = SensorFile(unit='DN', product=Product(level='L2A'))
    with pytest.raises(InputError, match=r"PRODUCT_TYPE says L1C, but config.s2.product.level='L2A'"):
        run(model, changed(s2=declared), tmp_path / 'e.tif', s2=folder)
    run(model, changed(s2=OPTICAL, accept=('level',)), tmp_path / 'e.tif', s2=folder)


def test_an_item_with_some_of_the_bands(tmp_path, model):
    file, bands = item_s2(tmp_path)
    with pytest.raises(InputError, match=r'bands B01, B02, B03, .* of s2 are missing'):
        run(model, changed(s2=OPTICAL), tmp_path / 'e.tif', s2=file)
    run(model, changed(s2=OPTICAL, absent_bands='mean'), tmp_path / 'e.tif', s2=file)
    # The coarse bands laid out on the fine pixels are near, and not the same.
    stack = [np.kron(b, np.ones((240 // len(b),) * 2)).astype(np.uint16) for b in bands.values()]
    flat = write(tmp_path / 'flat.tif', np.stack(stack, axis=-1), list(bands))
    config = changed(s2=SensorFile(unit='DN', offset=0.0), absent_bands='mean')
    run(model, config, tmp_path / 'f.tif', s2=flat)
    ours, theirs = embedded(tmp_path / 'e.tif'), embedded(tmp_path / 'f.tif')
    assert 0 < np.abs(ours - theirs).mean() < 0.3 * ours.std()


def test_degrees_are_encoded_where_they_lie(tmp_path, model):
    """The same smooth field, in UTM and in degrees."""
    rng = np.random.default_rng(0)
    waves = rng.uniform(400, 4000, (6, 2)), rng.uniform(0, 6, 6)

    def field(x, y):
        parts = [np.sin(x / a + y / b + c) for (a, b), c in zip(*waves)]
        return np.stack([-12 + 2 * sum(parts), -19 + 2 * sum(parts[:3])], axis=-1).astype(np.float32)

    x, y = np.meshgrid(LEFT + 5 + 10 * np.arange(480), TOP - 5 - 10 * np.arange(480))
    utm = write(tmp_path / 'utm.tif', field(x, y), BANDS['s1'])
    step = (1.3e-4, 9e-5)  # about 10 m each at 45 degrees
    west, south, east, north = rasterio.warp.transform_bounds(
        'EPSG:32633', 'EPSG:4326', LEFT, TOP - 4800, LEFT + 4800, TOP
    )
    lon, lat = np.meshgrid(
        west + (0.5 + np.arange(int((east - west) / step[0]))) * step[0],
        north - (0.5 + np.arange(int((north - south) / step[1]))) * step[1],
    )
    xs, ys = rasterio.warp.transform('EPSG:4326', 'EPSG:32633', lon.ravel(), lat.ravel())
    pixels = field(np.reshape(xs, lon.shape), np.reshape(ys, lon.shape))
    transform = Affine(step[0], 0, west, 0, -step[1], north)
    file = write(tmp_path / 'wgs.tif', pixels, BANDS['s1'], crs='EPSG:4326', transform=transform)
    with pytest.raises(InputError, match=r'--config.reproject=10 interpolates on the fly; or once: rio warp'):
        run(model, changed(), tmp_path / 'e.tif', s1=file)
    run(model, changed(reproject=10.0), tmp_path / 'e.tif', s1=file)
    notes = json.loads((tmp_path / 'e.tif.json').read_text())['differences']
    assert any('interpolated from EPSG:4326 onto pixels of 10 m in EPSG:32633' in note for note in notes)
    run(model, changed(), tmp_path / 'f.tif', s1=utm)
    with rasterio.open(tmp_path / 'e.tif') as a, rasterio.open(tmp_path / 'f.tif') as b:
        assert a.crs == b.crs and a.crs.to_epsg() == 32633
        row, column = b.index(*a.xy(0, 0))
        assert a.xy(0, 0) == pytest.approx(b.xy(row, column), abs=1e-6)
    ours, theirs = embedded(tmp_path / 'e.tif'), embedded(tmp_path / 'f.tif')
    # Fixed cells of both, far from the borders, which differ.
    ours = ours[-row + 4 : -row + 10, -column + 4 : -column + 10]
    theirs = theirs[4:10, 4:10]
    error = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert np.median(error) < 0.01


def test_chips_without_a_place(tmp_path, model):
    s1, _, pixels = write_pair(tmp_path, 120, 120)
    run(model, changed(), tmp_path / 'placed.tif', s1=s1)
    chip = write(tmp_path / 'chip.tif', pixels['s1'], BANDS['s1'], crs=None)
    with pytest.raises(InputError, match=r'for chips .*: --config.georeference=none'):
        run(model, changed(), tmp_path / 'e.tif', s1=chip)
    with pytest.raises(InputError, match=r'say how large a pixel is, in metres: --config.s1.pixel=10'):
        run(model, changed(georeference='none'), tmp_path / 'e.tif', s1=chip)
    config = changed(georeference='none', s1=SensorFile(unit='dB', pixel=10.0))
    for ending in ('tif', 'parquet', 'zarr'):
        run(model, config, tmp_path / f'e.{ending}', s1=chip)
    np.testing.assert_array_equal(embedded(tmp_path / 'e.tif'), embedded(tmp_path / 'placed.tif'))
    with rasterio.open(tmp_path / 'e.tif') as dataset:
        assert dataset.crs is None and dataset.shape == (4, 4)
    geo = json.loads(pq.read_schema(tmp_path / 'e.parquet').metadata[b'geo'])
    assert geo['columns']['geometry']['crs'] is None
    root = zarr.open_group(tmp_path / 'e.zarr')
    assert 'proj:code' not in root.attrs and root['embedding'].shape == (4, 4, 32)
    with pytest.raises(InputError, match='stac: needs a place on the ground'):
        run(model, changed(georeference='none', stac=True), tmp_path / 'g.tif', s1=chip)
