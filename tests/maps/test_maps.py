"""`map` on stores written as `encode` writes them: three kinds of ground, known places, nodata."""

import csv
import json

import numpy as np
import pytest
import rasterio
import rasterio.warp
from PIL import Image
from rasterio.crs import CRS

import main
from fusmae_jax.embed.geotiff import GeoTiff
from fusmae_jax.embed.geozarr import GeoZarr
from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid
from fusmae_jax.maps import draw, places
from fusmae_jax.maps.run import run_map

GRID = Grid(32633, 500_000.0, 5_000_000.0, 80.0, 80.0, 70, 45, crs=CRS.from_epsg(32633))
WIDTH = 6


def ground():
    """The kind of ground of each cell: 0 in the west, 1 in the east, 2 a field in the south-west."""
    kind = np.zeros((GRID.rows, GRID.columns), int)
    kind[:, 22:] = 1
    kind[50:60, 5:15] = 2
    return kind


def vectors():
    rng = np.random.default_rng(0)
    kinds = np.array([[5, 0, 0, 1, 9, 9], [0, 4, 0, 1, 9, 9], [0, 0, 3, 1, 9, 9]], np.float32)
    values = kinds[ground()] + 0.05 * rng.standard_normal((GRID.rows, GRID.columns, WIDTH)).astype(np.float32)
    valid = np.ones(ground().shape, bool)
    valid[:6, :9] = False
    return np.where(valid[..., None], values, np.nan).astype(np.float32), valid


@pytest.fixture(scope='module', params=['tif', 'zarr', 'q.zarr'])
def embeddings(request, tmp_path_factory):
    values, valid = vectors()
    file = tmp_path_factory.mktemp('embeddings') / f'e.{request.param}'
    if request.param == 'tif':
        writer = GeoTiff(file, GRID, None, WIDTH, 'zstd', {'model': 'made up'})
    else:
        writer = GeoZarr(file, GRID, 'q' in request.param, WIDTH, 'zstd', {'model': 'made up'})
    writer.write(values, valid)
    writer.finish()
    return file


def degrees(row, column):
    x, y = GRID.left + (column + 0.5) * GRID.step_x, GRID.top - (row + 0.5) * GRID.step_y
    (longitude,), (latitude,) = rasterio.warp.transform(GRID.crs, 'EPSG:4326', [x], [y])
    return f'{longitude},{latitude}'


def test_all_three_maps_of_a_scene(tmp_path, embeddings):
    _, valid = vectors()
    kind = ground()
    words = [f'--embeddings={embeddings}', f'--out={tmp_path}/m', '--pca', '--kmeans=3', '--places=4']
    assert main.main(['main.py', 'map', *words, f'--query={degrees(55, 8)}']) == 0
    for name, count in (('pca', 3), ('query', 1), ('kmeans', 1)):
        with rasterio.open(tmp_path / f'm.{name}.tif') as dataset:
            assert (dataset.crs, dataset.transform) == (GRID.crs, GRID.transform)
            assert (dataset.count, dataset.shape) == (count, (GRID.rows, GRID.columns))
            np.testing.assert_array_equal(dataset.read_masks(1) > 0, valid)
            image = dataset.read()
            colours = dataset.colormap(1) if name == 'kmeans' else {}
        alpha = np.asarray(Image.open(tmp_path / f'm.{name}.png'))[::8, ::8, 3]
        np.testing.assert_array_equal(alpha > 0, valid)
        if name == 'query':
            # A field of its own kind: its cells are like the query, and no others are.
            assert image[0][kind == 2].min() > 0.9 and np.nanmax(image[0][kind != 2]) < 0.5
        if name == 'kmeans':
            sizes = [(valid & (kind == k)).sum() for k in range(3)]
            for number, k in enumerate(np.argsort(sizes)[::-1], 1):  # the largest group is the first
                assert (image[0][valid & (kind == k)] == number).all()
            assert len({colours[number] for number in (1, 2, 3)}) == 3
    rows = list(csv.DictReader((tmp_path / 'm.query.csv').read_text().splitlines()))
    features = json.loads((tmp_path / 'm.query.geojson').read_text())['features']
    assert len(features) == len(rows) == 4
    taken = [(55, 8)]
    for row, feature in zip(rows, features):
        longitude, latitude = float(row['longitude']), float(row['latitude'])
        assert feature['geometry']['coordinates'] == [longitude, latitude]
        at = places.cell_at(GRID, longitude, latitude)
        assert at == (int(row['row']), int(row['column'])) and kind[at] == 2
        assert all(max(abs(at[0] - r), abs(at[1] - c)) >= places.APART for r, c in taken)
        taken.append(at)


def test_the_same_command_gives_the_same_bytes_and_replaces_nothing_unasked(tmp_path, embeddings):
    def files():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    run_map(str(embeddings), f'{tmp_path}/m', True, '', 1, 3)
    first = files()
    with pytest.raises(InputError, match=r'm\.pca\.tif exists'):
        run_map(str(embeddings), f'{tmp_path}/m', True, '', 1, 0)
    run_map(str(embeddings), f'{tmp_path}/m', True, '', 1, 3, overwrite=True)
    assert files() == first


@pytest.mark.parametrize(
    ('query', 'part'),
    [
        ('52.5', 'give longitude and latitude in degrees'),
        ('13,95', 'longitude comes first'),
        ('14.0,45.0', r'lies outside of the embeddings: longitude 15\.\d+ to 15\.\d+, latitude 45\.\d+'),
        (degrees(2, 3), 'hold no data'),
    ],
)
def test_a_place_that_cannot_be_asked_for(tmp_path, embeddings, query, part):
    with pytest.raises(InputError, match=part):
        run_map(str(embeddings), f'{tmp_path}/m', True, query, 5, 0)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('ending', ['tif', 'zarr'])
def test_chips_without_a_place_have_colours_and_groups_but_no_coordinates(tmp_path, ending):
    """`encode` writes them with georeference=none."""
    values, valid = vectors()
    file = tmp_path / f'e.{ending}'
    grid = GRID._replace(epsg=None, crs=None, left=0.0, top=5600.0)
    kinds = {'tif': (GeoTiff, None), 'zarr': (GeoZarr, False)}
    writer = kinds[ending][0](file, grid, kinds[ending][1], WIDTH, 'zstd', {})
    writer.write(values, valid)
    writer.finish()
    assert run_map(str(file), f'{tmp_path}/m', True, '', 1, 3) == 0
    with rasterio.open(tmp_path / 'm.kmeans.tif') as dataset:
        assert dataset.crs is None and (dataset.read(1)[valid] > 0).all()
    with pytest.raises(
        InputError, match=r'e\..* has no place on the ground \(georeference=none\); --pca and'
    ):
        run_map(str(file), f'{tmp_path}/n', False, '13.4,52.5', 1, 0)


def test_what_is_no_embedding_is_refused(tmp_path):
    with rasterio.open(
        tmp_path / 'a.tif', 'w', driver='GTiff', width=4, height=4, count=1, dtype='uint8', crs=GRID.crs,
        transform=GRID.transform,
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((1, 4, 4), np.uint8))
    (tmp_path / 'b.zarr').mkdir()
    for name, part in (
        ('a.tif', 'is not by `encode`'),
        ('b.zarr', 'is no complete store'),
        ('c.tif', 'does not exist'),
    ):
        with pytest.raises(InputError, match=part):
            run_map(str(tmp_path / name), f'{tmp_path}/m', True, '', 5, 0)
    with pytest.raises(InputError, match='give one or more of --pca'):
        run_map(str(tmp_path / 'a.tif'), f'{tmp_path}/m', False, '', 5, 0)


def test_components_and_colours():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((5, 3)))[0]
    sample = (rng.standard_normal((4000, 3)) * [9, 3, 1]) @ axes.T + 7
    fitted = draw.components(sample.astype(np.float32))
    np.testing.assert_allclose(np.abs(np.einsum('ij,ij->j', fitted.axes, axes)), 1, atol=0.01)
    np.testing.assert_allclose(fitted.explained, np.array([81, 9, 1]) / 91, atol=0.02)
    colours = fitted.colours(sample)
    assert colours.min() == 1 and colours.max() == 255  # 0 is nodata
    # Robust: the outer 2 % at both ends share a colour.
    np.testing.assert_allclose((colours == 255).mean(axis=(0)), 0.02, atol=0.005)
    np.testing.assert_array_equal(draw.components(sample[::-1]).axes.round(6), fitted.axes.round(6))
