"""A user's own GeoTIFFs: every value, tile, place, label and split, and the lines of the README."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tensorflow_datasets as tfds

import main
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.shipped.configs.convert_paired_folder import get_config
from fusmae_jax.shipped.data import convert, sharded
from fusmae_jax.shipped.data.generate.paired_folder import write
from fusmae_jax.shipped.data.generate.scene import SceneConfig
from fusmae_jax.shipped.data.paired_folder import pairs
from fusmae_jax.shipped.data.paired_folder.paired_folder_dataset_builder import Builder
from fusmae_jax.shipped.data.paired_folder.pairs import Archive
from fusmae_jax.shipped.data.records import validity
from fusmae_jax.shipped.data.tfds_builder import ArchiveConfig
from tests.support.data_fixtures import read
from tests.support.paired_folder_files import S2, archive, optical, pair, put, radar

RAW = {}


def raw(file: Path):
    """All pixels of a file, band by band, read in full; a file is read once."""
    if file not in RAW:
        with rasterio.open(file) as dataset:
            RAW[file] = dict(zip(dataset.descriptions, dataset.read())), dataset.transform, dataset.nodata
    return RAW[file]


def assert_exact(folder, settings, records, groups):
    """Every value of every band is that of the file; what no file fills is nodata."""
    for record in records:
        image = record['scene'].decode()
        for field, group in groups.items():
            end = f'_{group.resolution:g}m' if settings.get('s2_parts') and group.modality == 's2' else ''
            bands, transform, nodata = raw(folder / group.modality / f'{image}{end}.tif')
            ratio = group.resolution / 10
            row, column = (int(x / ratio) for x in record['window'])
            rows, columns = group.size
            stored = record[field]
            assert stored.dtype == group.dtype and stored.shape == (rows, columns, len(group.bands))
            for index, band in enumerate(group.bands):
                expected = bands[band][row : row + rows, column : column + columns]
                assert expected.dtype == stored.dtype
                inner = stored[: expected.shape[0], : expected.shape[1], index]
                assert inner.tobytes() == expected.tobytes()
                outer = stored[..., index].astype(float)
                outer[: expected.shape[0], : expected.shape[1]] = np.nan if nodata is None else nodata
                assert (np.isnan(outer) if nodata is None else outer == nodata).all()
            corner = transform.c + column * group.resolution, transform.f - row * group.resolution
            np.testing.assert_array_equal(record['upper_left'], corner)
        assert record['epsg'] == 32632


def starts(settings, length):
    """Where tiles begin: each whole one; with padding until one reaches the end."""
    tile, stride, result = settings['tile'], settings.get('stride') or settings['tile'], []
    for start in range(0, length, stride):
        if start + tile <= length or (
            settings.get('edge') == 'pad' and (not result or result[-1] + tile < length)
        ):
            result.append(start)
    return result


@pytest.mark.parametrize(
    ('kind', 'settings'),
    [
        ('folders', {}),
        ('folders', {'tile': 36, 'stride': 12, 'edge': 'pad'}),
        ('table', {'tile': 50, 'stride': 30}),
        ('parts', {'tile': 30, 'stride': 24, 'edge': 'pad'}),
    ],
)
def test_records_keep_every_value_of_the_files(kind, settings, tmp_path):
    made = write(tmp_path, 3, SceneConfig(size=60, seed=3), kind) | settings
    source = pairs.source(Archive(**made))
    folder, report = sharded.convert(source, tmp_path / 'out')
    every = [record for split in report['splits'] for record in read(folder, split)]
    groups = source.schema.groups
    assert groups['s1'].bands == ('VV', 'VH')
    if kind == 'parts':
        assert [g.resolution for g in groups.values()] == [10, 10, 20, 60]
        assert groups['s2_20m'].bands == ('B05', 'B06', 'B07', 'B8A', 'B11', 'B12')
        assert groups['s2_60m'].size == (5, 5)
    else:
        assert len(groups['s2'].bands) == 12
    assert_exact(tmp_path, made, every, groups)
    corners = {
        (image, row, column)
        for image in ('area_0000', 'area_0001', 'area_0002')
        for row in starts(made, len(raw(tmp_path / 's1' / f'{image}.tif')[0]['VV']))
        for column in starts(made, len(raw(tmp_path / 's1' / f'{image}.tif')[0]['VV'][0]))
    }
    assert {(r['scene'].decode(), *r['window'].tolist()) for r in every} == corners
    assert {r['name'].decode() for r in every} == {f'{i}_{r}_{c}' for i, r, c in corners}
    for record in every:
        valid = [validity(record[f], g) for f, g in groups.items() if g.modality == 's2']
        share = sum(v.sum() for v in valid) / sum(v.size for v in valid)
        assert record['s2_valid'] == np.float32(share)


def test_sensors_with_different_pixels(tmp_path):
    pair(tmp_path, s1={'array': radar(96), 'step': 5.0}, s2={'array': optical(24), 'step': 20.0})
    source = pairs.source(archive(tmp_path, tile=32, stride=16))
    groups = source.schema.groups
    assert (groups['s1'].size, groups['s1'].resolution) == ((32, 32), 5)
    assert (groups['s2'].size, groups['s2'].resolution) == ((8, 8), 20)
    (item,) = [item for item in source.splits['train'] if item.key == 'a_16_48']
    record = source.read(item)
    np.testing.assert_array_equal(record['s1'], radar(96)[:, 16:48, 48:80].transpose(1, 2, 0))
    np.testing.assert_array_equal(record['s2'], optical(24)[:, 4:12, 12:20].transpose(1, 2, 0))
    np.testing.assert_array_equal(record['upper_left'], [500_240, 4_999_960])
    with pytest.raises(InputError, match=r'tile=30 pixels of 5 m are 7.5 pixels of 20 m .* such as 32'):
        pairs.source(archive(tmp_path, tile=30))


@pytest.mark.parametrize('modality', ['s1', 's2'])
def test_one_sensor_alone(modality, tmp_path):
    pair(tmp_path)
    other = 's1' if modality == 's2' else 's2'
    folder, report = sharded.convert(
        pairs.source(archive(tmp_path, **{f'{other}_root': '', f'{other}_unit': ''})), tmp_path / 'out'
    )
    records = read(folder)
    assert report['records'] == len(records) == 4
    assert {*contract.read(folder).groups} == {modality}
    assert not any(key.startswith(other) for key in records[0])


def test_pairs_of_one_folder_by_suffix_and_parts_with_a_band_each(tmp_path):
    for name in ('x', 'deep/y'):
        put(tmp_path / f'{name}_S1.tif', radar(), ('VV', 'VH'))
        for band in ('B04', 'B02'):
            put(tmp_path / f'{name}_S2_{band}.TIF', optical(bands=1, seed=int(band[1:])), (band,))
    settings = archive(
        tmp_path,
        s1_root=str(tmp_path),
        s2_root=str(tmp_path),
        s1_suffix='_S1',
        s2_suffix='_S2',
        s2_parts=('_B04', '_B02'),
    )
    source = pairs.source(settings)
    items = {item.key: item for item in source.splits['train']}
    assert len(items) == 8 and 'deep/y_24_24' in items
    assert source.schema.groups['s2'].bands == ('B02', 'B04')
    record = source.read(items['deep/y_24_24'])
    assert record['s1_name'] == 'deep/y_S1_24_24'
    for index, seed in enumerate((2, 4)):
        np.testing.assert_array_equal(record['s2'][..., index], optical(bands=1, seed=seed)[0, 24:, 24:])


def test_bands_go_by_name_not_by_position(tmp_path):
    pair(tmp_path, 'a')
    pair(
        tmp_path,
        'b',
        s1={'array': radar()[::-1].copy(), 'bands': ('vh', 'Sigma0_VV_db')},
        s2={'array': optical()[[3, 0, 2, 1]], 'bands': ('b8', 'B2', 'B04, central wavelength 665 nm', 'B3')},
    )
    source = pairs.source(archive(tmp_path))
    assert source.schema.groups['s2'].bands == S2
    items = {item.key: item for item in source.splits['train']}
    a, b = source.read(items['a_0_0']), source.read(items['b_0_0'])
    for field in ('s1', 's2'):
        np.testing.assert_array_equal(a[field], b[field])


def test_named_channels_and_left_out_ones(tmp_path):
    image = np.concatenate([optical(), np.full((1, 48, 48), 4, np.uint16)])
    pair(tmp_path, s1={'bands': (None, None)}, s2={'array': image, 'bands': ('b', 'g', 'r', 'nir', 'SCL')})
    settings = {'s1_bands': ('vh', 'vv'), 's2_bands': ('B2', 'B3', 'B4', 'B8', '-')}
    source = pairs.source(archive(tmp_path, **settings))
    record = source.read(source.splits['train'][0])
    np.testing.assert_array_equal(record['s1'], radar()[::-1, :24, :24].transpose(1, 2, 0))
    np.testing.assert_array_equal(record['s2'], optical()[:, :24, :24].transpose(1, 2, 0))


def test_val_share_keeps_every_image_together(tmp_path):
    names = [f'p{i:02d}' for i in range(30)]
    for name in names:
        put(tmp_path / 's1' / f'{name}.tif', radar((4, 8)), ('VV', 'VH'))
    alone = {'s2_root': '', 's2_unit': '', 'tile': 4, 'val_share': 0.3}
    splits = pairs.source(archive(tmp_path, **alone)).splits
    images = {split: {item.key.split('_')[0] for item in items} for split, items in splits.items()}
    assert not images['train'] & images['val'] and images['train'] | images['val'] == {*names}
    assert 3 <= len(images['val']) <= 15
    assert all(len(splits[s]) == 2 * len(images[s]) for s in splits)
    # More files move none of the others.
    put(tmp_path / 's1' / 'q.tif', radar((4, 8)), ('VV', 'VH'))
    again = pairs.source(archive(tmp_path, **alone)).splits
    assert images['val'] <= {item.key.split('_')[0] for item in again['val']} <= images['val'] | {'q'}


def test_empty_tiles_can_be_left_out(tmp_path):
    values = radar()
    values[:, :30, :30] = np.nan
    pair(tmp_path, s1={'array': values})
    keys = {
        least: {item.key for item in pairs.source(archive(tmp_path, min_valid=least)).splits['train']}
        for least in (0.0, 0.1, 0.8)
    }
    assert len(keys[0.0]) == 4
    assert keys[0.1] == keys[0.0] - {'a_0_0'}
    assert keys[0.8] == {'a_24_24'}


def test_files_larger_than_memory(tmp_path):
    """Two bands of 40,000 x 40,000 float32 (12.8 GB, nearly all of it a hole) in windows."""
    file, tile = tmp_path / 's1' / 'big.tif', radar(64)
    file.parent.mkdir()
    profile = {'tiled': True, 'blockxsize': 512, 'blockysize': 512, 'sparse_ok': True, 'bigtiff': 'yes'}
    put_empty(file, 40_000, profile)
    with rasterio.open(file, 'r+') as dataset:
        dataset.write(tile, window=rasterio.windows.Window(30_000, 15_000, 64, 64))
    alone = {'s2_root': '', 's2_unit': '', 'tile': 64, 'stride': 15_000, 's1_nodata': (0.0,)}
    source = pairs.source(archive(tmp_path, **alone))
    records = {item.key: source.read(item) for item in source.splits['train']}
    assert len(records) == 9
    np.testing.assert_array_equal(records['big_15000_30000']['s1'], tile.transpose(1, 2, 0))
    assert {key for key, r in records.items() if r['s1_valid'] > 0} == {'big_15000_30000'}


def put_empty(file, size, profile):
    from rasterio.transform import Affine

    place = Affine(10, 0, 300_000, 0, -10, 5_900_040)
    values = {'count': 2, 'height': size, 'width': size, 'dtype': 'float32', 'crs': 'EPSG:32632'}
    with rasterio.open(file, 'w', driver='GTiff', transform=place, **values, **profile) as dataset:
        dataset.descriptions = ('VV', 'VH')


def test_contract_says_what_was_declared(tmp_path):
    pair(tmp_path, s2={'tags': {'PROCESSING_BASELINE': '05.11'}})
    settings = archive(
        tmp_path, s1_calibration='gamma0', s1_orbit='asc', s2_level='L2A', s2_offset='auto', name='alps'
    )
    values = optical() + np.uint16(1000)
    put(tmp_path / 's2' / 'a.tif', values, S2, tags={'PROCESSING_BASELINE': '05.11'})
    folder, report = sharded.convert(pairs.source(settings), tmp_path / 'out')
    assert folder == tmp_path / 'out' / 'alps' / '1.0.0'
    made = contract.read(folder)
    assert (made.products['s1'].calibration, made.products['s1'].orbit) == ('gamma0', 'asc')
    assert (made.products['s2'].level, made.products['s2'].baseline) == ('L2A', '05.11')
    assert (made.groups['s2'].offset, made.groups['s2'].nodata) == (-1000.0, (0.0,))
    assert (made.groups['s1'].unit, made.groups['s1'].nodata) == ('dB', ())
    assert report['settings']['s1_calibration'] == 'gamma0'
    # The same call again leaves the data set as it is; another declaration is another data set.
    assert sharded.convert(pairs.source(settings), tmp_path / 'out')[1]['fingerprint'] == made.fingerprint
    changed = pairs.source(archive(tmp_path, name='alps', s2_offset='auto', s1_calibration='sigma0'))
    with pytest.raises(InputError, match='other inputs or settings'):
        sharded.convert(changed, tmp_path / 'out')


def test_the_tfds_builder_gives_the_same_records(tmp_path):
    made = write(tmp_path, 3, SceneConfig(size=36), 'table')
    folder, report = sharded.convert(pairs.source(Archive(**made)), tmp_path / 'out')
    config = ArchiveConfig(name='mine', description='Files of mine.', settings=made)
    builder = Builder(config=config, data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
    for split in report['splits']:
        left, right = (
            {r['name']: r for r in records}
            for records in (read(folder, split), builder.as_data_source(split=split))
        )
        assert left.keys() == right.keys()
        for name, record in left.items():
            for field, value in record.items():
                np.testing.assert_array_equal(value, right[name][field])


def test_the_example_configuration(tmp_path):
    config = get_config('example')
    config.output = str(tmp_path)
    assert convert.run(config) == 0
    report = json.loads((tmp_path / 'paired_folder' / '1.0.0' / 'conversion_report.json').read_text())
    assert {name: split['records'] for name, split in report['splits'].items()} == {'train': 3, 'val': 1}
    with pytest.raises(InputError, match="did you mean 'example'"):
        get_config('exmple')


def test_the_generated_offset_stands_in_the_metadata(tmp_path):
    for offset, expected in ((0, 0), (1000, -1000)):
        made = write(tmp_path / str(offset), 1, SceneConfig(size=24, level='L1C', offset=offset))
        group = pairs.source(Archive(**made)).schema.groups['s2']
        assert (group.offset, len(group.bands)) == (expected, 13)


@pytest.mark.slow
def test_two_thousand_pairs(tmp_path):
    made = write(tmp_path, 2000, SceneConfig(seed=1), 'table', workers=2)
    source = pairs.source(Archive(**made))
    folder, report = sharded.convert(source, tmp_path / 'out', beam=sharded.Beam(direct_num_workers=2))
    # Of three files, the first holds one tile, the second two, the third one and a rest.
    assert report['records'] == 667 + 2 * 667 + 666
    assert report['splits']['val']['records'] == sum((1, 2, 1)[i % 3] for i in range(2, 2000, 4))
    records = read(folder, 'train')
    chosen = np.random.default_rng(0).choice(len(records), 60, replace=False)
    assert_exact(tmp_path, made, [records[int(i)] for i in chosen], source.schema.groups)


ROOT = Path(__file__).parents[2]
README = ROOT / 'data' / 'paired_folder' / 'README.md'


def lines() -> list[str]:
    """The indented block under the heading."""
    section = README.read_text().split('## From two GeoTIFFs to a first step')[1].split('\n## ')[0]
    return [line for line in section.splitlines() if line.startswith('    ')]


def commands() -> list[list[str]]:
    """Its commands, as a shell would take them."""
    text = '\n'.join(line.strip() for line in lines()).replace('\\\n', ' ')
    return [shlex.split(line, comments=True) for line in text.splitlines()]


def test_it_is_ten_lines():
    assert len(lines()) == 10
    quoted = [line in (ROOT / 'docs' / 'data.md').read_text() for line in lines()]
    assert all(quoted) or not any(quoted), 'docs/data.md quotes other lines'


# What else makes the model compile in seconds.
SMALLER = [
    '--config.model.image_size=(32, 32)',
    '--config.model.decoder.width=16',
    '--config.model.decoder.heads=2',
    '--config.log.images_every_steps=0',
    '--config.model.depth=1',
    '--config.model.decoder.depth=1',
]


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize(
    'more', [SMALLER, pytest.param([], marks=pytest.mark.slow)], ids=['quick', 'as it is']
)
def test_from_two_geotiffs_to_a_first_pretraining_step(more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The second file of the layout: 120 x 240 pixels.
    write(tmp_path / 'raw', 2, SceneConfig(size=120, seed=5))
    shutil.copy('raw/s1/area_0001.tif', 'radar.tif')
    shutil.copy('raw/s2/area_0001.tif', 'optical.tif')
    for command in commands():
        if command[0] == 'mkdir':
            for folder in command[2:]:
                Path(folder).mkdir(parents=True)
        elif command[0] == 'cp':
            shutil.copy(*command[1:])
        else:
            assert command[:2] == ['python', 'main.py']
            arguments = [
                word.replace('--config=configs/', f'--config={ROOT}/configs/') for word in command[2:]
            ]
            arguments += more if arguments[0] == 'pretrain' else []
            assert main.main(['main.py', *arguments]) == 0
    assert len(tfds.builder_from_directory('mine/data/paired_folder/1.0.0').as_data_source('train')) == 2
    steps = [json.loads(line) for line in Path('mine/run/metrics.jsonl').read_text().splitlines()]
    assert steps[-1]['step'] == 2
    assert 0 < steps[-1]['loss'] < 10
    assert steps[-1]['loss'] == pytest.approx(steps[-1]['loss/s1'] + steps[-1]['loss/s2'], rel=1e-3)
    assert Path('mine/run/COMPLETE').exists()
