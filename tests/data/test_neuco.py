"""Embeddings for NeuCo-Bench: windows, seasons, the offset of Sentinel-2, the CSV, files that do not fit."""

import dataclasses
import json

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data.neuco import cubes, run
from fusmae_jax.shipped.data.neuco.settings import NeucoConfig
from fusmae_jax.shipped.data.records import RecordError
from fusmae_jax.shipped.data.ssl4eo_s12.schema import S2_BANDS
from tests.support import neuco_files
from tests.support.embed_fixtures import write_checkpoint

NAMES = ('a', 'b', 'c')
# Made-up spectra have no water and no forest.
CONFIG = NeucoConfig(batch=72, accept=('order', 'offset', 'level', 'statistics'))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def locations():
    """Three locations: of the second one season is empty, and another in Sentinel-2; of the third all are."""
    values = {name: neuco_files.images(number) for number, name in enumerate(NAMES)}
    values['b']['s1'][1], values['b']['s2'][1:3] = np.nan, 0
    values['c']['s1'][:], values['c']['s2'][:] = np.nan, 0
    return values


@pytest.fixture(scope='module')
def data(locations, tmp_path_factory):
    return neuco_files.write_archive(tmp_path_factory.mktemp('downstream'), locations)


def table(file):
    """Names, and the embeddings (locations, width) of a CSV."""
    head, *lines = file.read_text().splitlines()
    rows = [line.split(',') for line in lines]
    assert head.split(',') == ['id', *map(str, range(len(rows[0]) - 1))]
    return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)


def embed(data, checkpoint, out, **changes):
    assert run.neuco(dataclasses.replace(CONFIG, **changes), str(data), checkpoint, str(out)) == 0
    return table(out)


def test_a_table_has_a_row_for_each_location(data, checkpoint, tmp_path, capsys):
    names, values = embed(data, checkpoint, tmp_path / 'both.csv')
    assert names == list(NAMES) and values.shape == (3, 32)
    out = capsys.readouterr().out
    assert '9 windows of 120 x 120 pixels' in out
    assert '1 locations have no valid pixel and zeros, such as c' in out and not values[2].any()
    about = json.loads((tmp_path / 'both.csv.json').read_text())
    assert about['locations'] == 3 and about['inputs']['s2']['offset'] == 0 and about['empty'] == ['c']
    assert np.isfinite(values).all() and (values[0] != values[1]).all()


def test_rows_are_means_over_windows_and_the_seasons_with_a_pixel(
    data, checkpoint, locations, tmp_path, monkeypatch
):
    """With the mean of VV and of B02 in place of an encoder."""

    def means(windows):
        seen = np.isfinite(windows['s1']).any((1, 2, 3)) | (windows['s2'] != 0).any((1, 2, 3))
        return np.stack([windows['s1'][..., 0].mean((1, 2)), windows['s2'][..., 1].mean((1, 2))], 1), seen

    monkeypatch.setattr(run, 'make_encoder', lambda *_: run.Encoder(means, 2, []))
    _, values = embed(data, checkpoint, tmp_path / 'means.csv')
    stored = locations['b']['s1'][:, 0].astype(np.float32), locations['b']['s2'][:, 1].astype(np.float32)
    for index, image in enumerate(stored):
        at = [(top, left) for top in (0, 72, 144) for left in (0, 72, 144)]
        windows = [[image[season, t : t + 120, k : k + 120].mean() for t, k in at] for season in (0, 2, 3)]
        np.testing.assert_allclose(values[1, index], np.mean(windows), rtol=1e-5)


def test_the_offset_is_that_of_the_files():
    for stated in (0.0, -1000.0):
        groups = cubes.layout(('s1', 's2'), 'l1c', stated, 120).groups
        assert (groups['s2'].offset, groups['s1'].offset) == (stated, 0)
        assert groups['s2'].bands == S2_BANDS['S2L1C'] and groups['s2'].nodata == (0,)
    assert NeucoConfig().s2_offset == 0


def test_windows_cover_an_image_and_a_single_one_may_leave_out_a_rim():
    assert run.window_starts(120) == [0, 72, 144]
    assert run.window_starts(132) == [0, 132]
    assert run.window_starts(264) == [0] and run.window_starts(256) == [4]
    for side in range(16, 250, 7):
        starts = run.window_starts(side)
        assert starts[0] == 0 and starts[-1] == 264 - side and max(np.diff(starts)) <= side * 1.1
    image = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1)
    cut = run.windows_of(image, 2, [0, 2])
    assert cut.shape == (8, 2, 2, 1)
    np.testing.assert_array_equal(cut[1, ..., 0], [[2, 3], [6, 7]])
    np.testing.assert_array_equal(cut[4], image[1, :2, :2])


def test_names_that_are_numbers_keep_the_suffix_of_their_file():
    for name, written in (('0012', '0012.zarr.zip'), ('12e4', '12e4.zarr.zip'), ('a12', 'a12')):
        assert run.id_of(name) == written


def test_the_mean_is_over_what_was_seen():
    features = np.arange(12.0).reshape(1, 3, 2, 2)
    seen = np.array([[[True, True], [True, False], [False, False]]])
    mean, some = run.season_mean(features, seen)
    np.testing.assert_allclose(mean, [[(1 + 4) / 2, (2 + 5) / 2]])
    assert some.tolist() == [True] and mean.dtype == np.float32
    mean, some = run.season_mean(features, np.zeros_like(seen))
    assert not mean.any() and some.tolist() == [False]


def test_bands_are_taken_by_name_where_the_store_has_names(tmp_path, locations):
    group = cubes.layout(('s1',), 'l2a', 0.0, 264).groups['s1']
    stored = locations['a']['s1']
    neuco_files.write(tmp_path / 'a.zarr.zip', stored[:, ::-1], bands=['vh', 'vv'])
    np.testing.assert_array_equal(cubes.read(tmp_path / 'a.zarr.zip', 's1', group)[..., 0], stored[:, 0])
    neuco_files.write(tmp_path / 'b.zarr.zip', stored, bands=['hh', 'hv'])
    with pytest.raises(RecordError, match=r"band: \['hh', 'hv'\], expected \['VV', 'VH'\]"):
        cubes.read(tmp_path / 'b.zarr.zip', 's1', group)


def test_files_of_another_layout(tmp_path, locations):
    group = cubes.layout(('s1',), 'l2a', 0.0, 264).groups['s1']
    file = tmp_path / 'a.zarr.zip'
    for values, message in (
        (locations['a']['s2'], 'bands shape: int16'),
        (locations['a']['s1'].astype(str), 'bands dtype: .*, expected numbers'),
    ):
        neuco_files.write(file, values)
        with pytest.raises(RecordError, match=message):
            cubes.read(file, 's1', group)
        file.unlink()
    file.write_bytes(b'PK and nothing else')
    with pytest.raises(RecordError, match='download it again'):
        cubes.read(file, 's1', group)


def test_locations_need_a_file_of_each_sensor(tmp_path, locations):
    with pytest.raises(InputError, match='there is no such folder'):
        cubes.locations(tmp_path, ('s1',), 'l2a')
    folder = neuco_files.write_archive(tmp_path, {'a': locations['a'], 'b': {'s1': locations['b']['s1']}})
    with pytest.raises(InputError, match=r'1 of 2 locations have no file here, such as b\.zarr\.zip'):
        cubes.locations(folder, ('s1', 's2'), 'l2a')
    assert [x.name for x in cubes.locations(folder / 'data', ('s1',), 'l2a')] == ['a', 'b']
    neuco_files.write(folder / 'data/s1/a.zarr.zip', locations['a']['s1'])
    with pytest.raises(InputError, match='the same location as'):
        cubes.locations(folder, ('s1',), 'l2a')


def test_what_is_refused_before_anything_is_written(data, checkpoint, tmp_path):
    (tmp_path / 'there.csv').touch()
    for changes, out, message in (
        (
            {'most_dims': 31},
            'x.csv',
            "'mean_patch' has 32 numbers, and NeuCo-Bench takes 31: take a",
        ),
        ({'sensors': ('s3',)}, 'x.csv', 'sensors='),
        ({'feature': 'last4_cls'}, 'x.csv', 'last4_cls'),
        ({}, 'x.parquet', 'expected .csv'),
        ({}, 'there.csv', 'exists; name another file'),
        ({}, 'no/x.csv', 'does not exist'),
    ):
        with pytest.raises(InputError, match=message):
            embed(data, checkpoint, tmp_path / out, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ['there.csv']
