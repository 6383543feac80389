"""`predict` with a head of two dates: the map of changes, from a probe to a file."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio

from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.dense import features
from fusmae_jax.eval.dense.config import DenseProbe
from fusmae_jax.eval.dense.probe import run_dense_probe
from fusmae_jax.eval.dense.score import scores
from fusmae_jax.eval.dense.stored import read_head
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import LabelMap
from fusmae_jax.input.source import Source
from fusmae_jax.predict import run as command
from fusmae_jax.predict.output import class_numbers
from fusmae_jax.predict.predictor import BEFORE
from fusmae_jax.predict.run import predict
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.records import Field, Item, RecordSource
from tests.support.embed_fixtures import LEFT, TOP, changed, write
from tests.support.probe_fixtures import ACCEPT, GROUPS, checkpoint
from tests.support.result_rows import rows_of
from tests.support.whole_map import whole

pytestmark = pytest.mark.usefixtures('one_device')
SIDE, RESOLUTION = 24, 50.0  # of a record: 1200 m
CHANGED = LabelMap(('other', 'brighter'), (0, 1), (), (SIDE, SIDE), 'uint8', RESOLUTION)
EARLIER = 'earlier_'


def read(item):
    """Radar that is brighter than before in some squares of 6 pixels, as a token covers; darker in others."""
    rng = np.random.default_rng([11, *item.values])
    level = rng.integers(0, 2, (2, 4, 4)).repeat(6, axis=1).repeat(6, axis=2)
    record = {'name': item.key, 'scene': f'scene_{item.values[1] % 4}'}
    record['map'] = (level[1] > level[0]).astype(np.uint8)
    for name, bright in zip((EARLIER, ''), level):
        image = -18 + 8 * bright[..., None] + rng.normal(0, 1, (SIDE, SIDE, 2))
        record[f'{name}s1'] = image.astype(np.float32)
    return record


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A small converted archive with Sentinel-1 of two dates and maps of what changed."""
    s1 = dataclasses.replace(GROUPS['s1'], size=(SIDE, SIDE))
    fields = {'name': Field('text', 'name'), 'scene': Field('text', 'scene')}
    fields['map'] = Field('uint8', 'what changed', (SIDE, SIDE), indexed=False)
    schema = dataclasses.replace(
        SCHEMA,
        name='dates',
        groups={'s1': s1, f'{EARLIER}s1': dataclasses.replace(s1, modality=f'{EARLIER}s1')},
        fields=fields,
        key='name',
        products=dict.fromkeys(('s1', f'{EARLIER}s1'), SCHEMA.products['s1']),
        classes={},
        maps={'map': CHANGED},
        split_aliases={},
    )
    items = {
        split: [Item(f'{split}_{i:04d}', (k, i)) for i in range(count)]
        for k, (split, count) in enumerate({'train': 24, 'val': 8, 'test': 8}.items())
    }
    source = RecordSource(schema, items, read, {'records': 'two dates'})
    return Path(sharded.convert(source, tmp_path_factory.mktemp('dates'))[0])


@pytest.fixture(scope='module')
def probed(data, tmp_path_factory):
    """The working directory of an encoder, and the file of a head that was probed on it."""
    folder = tmp_path_factory.mktemp('probed')
    run = checkpoint(folder / 'run', data, depth=2, modalities=('s1',), trained_on='')
    config = DenseProbe(
        data=Task(str(data), labels='map', kind='segmentation', threads=1),
        encoder=EncoderSettings(run, baselines=(), modalities=(('s1',),), batch=8),
        intervals=Intervals('scene', 20),
        learning_rates=(3e-2,),
        head_seeds=(0,),
        batch_size=8,
        epochs=8.0,
        layers=(1, 2),
        earlier=EARLIER,
    )
    assert run_dense_probe(config, folder / 'work') == 0
    (row,) = [
        r for r in rows_of(folder / 'work', 'dense_probe') if (r.metric, r.averaging) == ('iou', 'macro')
    ]
    (head,) = (folder / 'work' / 'heads').iterdir()
    return run, str(head), row


def files_of(folder, images):
    """A GeoTIFF for each image (rows, columns, 2)."""
    made = {}
    for name, image in images.items():
        made[name] = write(folder / f'{name}.tif', image, ('VV', 'VH'), RESOLUTION, LEFT, TOP)
    return {'s1': made['s1']}, {'s1': made[f'{EARLIER}s1']}


SETTINGS = changed(anchor='image', overlap=0, accept=ACCEPT)


def test_the_map_of_a_record_is_what_the_probe_says_of_it(data, probed, tmp_path):
    """By the reader of the probe itself, on a record of the test split as two files of one window."""
    run, file, row = probed
    source = Source(str(data), 'test', ('s1', f'{EARLIER}s1'))
    record = {name: source[3][name] for name in source.fields}
    late, early = files_of(tmp_path, record)
    out, p = str(tmp_path / 'map.tif'), str(tmp_path / 'p.tif')
    assert predict(SETTINGS, late, run, file, out, p, early) == 0
    with rasterio.open(out) as dataset, rasterio.open(p) as shares:
        classes, probabilities = dataset.read(1), np.moveaxis(shares.read(), 0, -1)
    contract, head = contracts.read(data), read_head(file)
    settings = EncoderSettings(run, modalities=(('s1',),))
    system = open_system(run, settings)
    reader = features.make_reader(system, contract, ('s1',), settings, (1, 2), None, 'here', (SIDE, SIDE))
    reader = features.with_earlier(reader, contract, EARLIER)

    @jax.jit
    def in_memory(params, learned, batch):
        tokens = features.scaled(reader.run(params, batch, None), head.scale)
        return jax.nn.softmax(scores(learned, tokens, head.shape, head.labels.size))

    batch = {name: image[None] for name, image in record.items()}
    (expected,) = in_memory(reader.params, head.params, batch)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(classes, np.asarray(expected).argmax(axis=-1))
    assert head.dates == 2 and row.estimate > 0.6
    truth = next(read(Item('', (2, i)))['map'] for i in range(8) if source_is(record, i))
    # In the middle of the squares: scores are interpolated between them.
    assert (classes == truth)[2::6, 2::6].mean() > 0.8
    # The dates are told apart: exchanged, the change has another sign.
    exchanged = {'s1': batch[f'{EARLIER}s1'], f'{EARLIER}s1': batch['s1']}
    assert np.abs(in_memory(reader.params, head.params, exchanged)[0] - probabilities).max() > 0.05
    about = json.loads((tmp_path / 'map.tif.json').read_text())
    assert set(about['inputs']) == {'s1', f'{BEFORE}s1'}


def source_is(record, index):
    return np.array_equal(read(Item('', (2, index)))['s1'], record['s1'])


def test_a_scene_of_many_windows_is_that_of_its_windows_in_memory_bit_for_bit(probed, tmp_path, monkeypatch):
    run, file, _ = probed
    in_memory, write_map = [], command._write

    def both(job, *rest):
        """While the files are open, and with what is compiled already."""
        assert len(job.layout.bands) > 1 and job.layout.columns.windows > 1
        in_memory.append(whole(job))
        return write_map(job, *rest)

    monkeypatch.setattr(command, '_write', both)
    rng = np.random.default_rng(5)
    images = {name: rng.normal(-14, 3, (90, 70, 2)).astype(np.float32) for name in ('s1', f'{EARLIER}s1')}
    images['s1'][:20, :30] = np.nan
    images[f'{EARLIER}s1'][60:, 50:] = np.nan
    late, early = files_of(tmp_path, images)
    config, out, p = changed(accept=ACCEPT), str(tmp_path / 'map.tif'), str(tmp_path / 'p.tif')
    assert predict(config, late, run, file, out, p, early) == 0
    ((probabilities, valid),) = in_memory
    with rasterio.open(out) as dataset, rasterio.open(p) as shares:
        np.testing.assert_array_equal(np.moveaxis(shares.read(), 0, -1), probabilities)
        np.testing.assert_array_equal(dataset.read(1), class_numbers(probabilities, valid))
    # Nothing is said where one of the two dates was not measured.
    assert not valid[:18, :28].any() and not valid[62:, 52:].any() and valid[25:55, 5:45].all()


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'before': {}}, r'change between two dates: give --before-s1, the same ground before'),
        ({'config': changed(stats='dataset')}, r'statistics of their own would hide what changed'),
        ({'dates': 1}, r'images of one date; leave --before-s1 out'),
        ({'shift': 10_000.0}, r'far\.tif'),
        ({'tags': True}, r'--before-s1=.* is of 2024-06-01 05:10, and --s1=.* of 2024-05-20 .*: exchange'),
        ({'names': True}, r'--before-s1=.* is of 2024-06-01 05:10, and --s1=.* of 2024-05-20 .*: exchange'),
        ({'same': True}, r'--before-s1=.* is the file of --s1: nothing would have changed'),
    ],
)
def test_dates_that_do_not_fit_are_one_error(probed, tmp_path, given, message):
    run, file, _ = probed
    images = {name: np.full((24, 24, 2), -12, np.float32) for name in ('s1', f'{EARLIER}s1')}
    late, early = files_of(tmp_path, images)
    if shift := given.get('shift'):
        early = {'s1': write(tmp_path / 'far.tif', images['s1'], ('VV', 'VH'), RESOLUTION, LEFT + shift, TOP)}
    early = late if 'same' in given else early
    if 'tags' in given:
        for (file_of_date,), time in zip(
            (late.values(), early.values()), ('05-20T05:10', '06-01T07:10+02:00')
        ):
            with rasterio.open(file_of_date, 'r+') as dataset:
                dataset.update_tags(ACQUISITIONDATETIME=f'2024-{time}')
    if 'names' in given:
        late, early = (
            {'s1': str(Path(of['s1']).rename(tmp_path / f'S1A_IW_GRDH_2024{day}T051003_20240701T000000.tif'))}
            for of, day in ((late, '0520'), (early, '0601'))
        )
    if 'dates' in given:
        with np.load(file) as archive:
            arrays = dict(archive)
        about = json.loads(str(arrays.pop('about')))
        file = str(tmp_path / 'one.npz')
        np.savez(file, **arrays, about=np.array(json.dumps({**about, 'dates': given['dates']})))
    with pytest.raises(InputError, match=message):
        predict(
            given.get('config', SETTINGS),
            late,
            run,
            file,
            str(tmp_path / 'map.tif'),
            '',
            given.get('before', early),
        )
    assert not (tmp_path / 'map.tif').exists()
