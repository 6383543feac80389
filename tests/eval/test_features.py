"""Pooled features against the model, statistics of bands, crops of a record, and what a file may answer."""

import dataclasses
import functools
import json
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config.run import Train
from fusmae_jax.encoders.load import load
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import System, fingerprint, fit, open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval import crops, features, linear_probe, task
from fusmae_jax.eval.config import POOLED, Task
from fusmae_jax.eval.features import BAND_STATISTICS, Extractor
from fusmae_jax.eval.knn import knn_scores
from fusmae_jax.eval.metrics import multi_label, values
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.prepare import fields, make_prepare
from fusmae_jax.input.source import Source, read_index
from fusmae_jax.models.fusmae import graph
from fusmae_jax.parallel.mesh import replicated
from fusmae_jax.run.labelled import LabelledEvaluation
from fusmae_jax.train.setup import make_setup
from tests.support.probe_fixtures import NO_RADAR, SIZES, archive, checkpoint, quarter

pytestmark = pytest.mark.usefixtures('one_device')
opened = functools.cache(open_system)


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data)


@pytest.fixture(scope='module')
def settings(run):
    return EncoderSettings(checkpoint=run, batch=16)


def extractor(data, settings, modalities, names=POOLED, kind=None):
    one = EncoderSettings(checkpoint=settings.checkpoint, absent=settings.absent)
    system = opened(kind or settings.checkpoint, one)
    return Extractor(system, Task(path=str(data), labels='labels'), modalities, names, settings)


@pytest.fixture(scope='module')
def both(data, settings):
    return extractor(data, settings, ('s1', 's2'))


@pytest.fixture(scope='module')
def radar(data, settings):
    return extractor(data, settings, ('s1',))


def encoded(data, run, modalities, split='val'):
    """What the model gives for a whole split at once, and its patches."""
    model, source = load(run), Source(str(data), split, ())
    config = fit(model, source.contract, modalities, EncoderSettings(), 'here').config
    source.fields = tuple(fields(config, source.contract))
    batch = {name: np.stack([source[i][name] for i in range(len(source))]) for name in source.fields}
    patches = jax.jit(make_prepare(config, source.contract, None))(batch, None)
    encode = jax.jit(lambda params: nnx.merge(graph(model.config.model), params).encode(patches))
    return encode(model.params), patches


@pytest.mark.parametrize('modalities', [('s1', 's2'), ('s1',)])
def test_pooled_features_are_the_tokens_of_the_model(data, run, both, radar, modalities):
    pooled = (both if len(modalities) > 1 else radar)('val')
    expected, patches = encoded(data, run, modalities)
    close = {'rtol': 1e-4, 'atol': 1e-5}
    keep = pooled['cls'].valid
    assert keep.sum() == SIZES['val'] - (modalities == ('s1',))
    tokens = {name: np.asarray(z) for name, z in expected.tokens.items()}
    valid = {name: np.asarray(patches[name].valid).any(axis=2)[..., None] for name in tokens}
    np.testing.assert_allclose(pooled['mean_patch'].values[keep], expected.pooled[keep], **close)
    np.testing.assert_allclose(pooled['cls'].values[keep], expected.cls[keep], **close)
    count = sum(v.sum(axis=1) for v in valid.values())
    with_cls = (np.asarray(expected.pooled) * count + np.asarray(expected.cls)) / (count + 1)
    np.testing.assert_allclose(pooled['mean_all'].values[keep], with_cls[keep], **close)
    each = [(z * valid[n]).sum(axis=1) / np.maximum(valid[n].sum(axis=1), 1) for n, z in tokens.items()]
    np.testing.assert_allclose(pooled['concat_per_sensor'].values[keep], np.hstack(each)[keep], **close)
    for name, feature in pooled.items():
        assert feature.values.dtype == np.float32
        assert (feature.values[~keep] == 0).all()
        assert feature.values.shape[1] == 32 * {'concat_per_sensor': len(modalities), 'last4_cls': 4}.get(
            name, 1
        )


def _cls(graphdef, params, patches):
    return nnx.merge(graphdef, params).encode(patches).cls


@pytest.mark.slow
def test_last_four_cls_are_those_of_shallower_models(data, run, both):
    last_four = both('val')['last4_cls'].values.reshape(-1, 4, 32)
    model, (_, patches) = load(run), encoded(data, run, ('s1', 's2'))
    blocks = model.params['encoder']['blocks']
    for depth in (3, 5):
        shallow = dataclasses.replace(model.config.model, depth=depth)
        params = {**model.params, 'encoder': dict(model.params['encoder'])}
        params['encoder']['blocks'] = jax.tree.map(operator.itemgetter(slice(depth - 1)), blocks)
        encode = jax.jit(functools.partial(_cls, graph(shallow)))
        cls = encode(params, patches)
        np.testing.assert_allclose(last_four[:, depth - 2], cls, rtol=1e-4, atol=1e-5)


def test_four_blocks_are_needed_for_that(data, tmp_path):
    shallow = checkpoint(tmp_path, data, depth=3)
    with pytest.raises(InputError, match='needs four blocks, pretrain has 3'):
        extractor(data, EncoderSettings(checkpoint=shallow), ('s1',), ('last4_cls',))


@pytest.mark.usefixtures('all_devices')
def test_neither_batch_nor_devices_change_a_feature_and_the_last_batch_may_be_partial(data, settings, both):
    other = extractor(data, dataclasses.replace(settings, batch=3), ('s2', 's1'), ('mean_patch',))
    assert both.batch == 16 and other.batch == 8  # on one device, and a multiple of eight
    for split, count in SIZES.items():
        pooled = both(split)['mean_patch'].values
        assert pooled.shape == (count, 32)
        np.testing.assert_allclose(other(split)['mean_patch'].values, pooled, rtol=1e-4, atol=1e-5)


def test_a_part_of_a_split_has_the_features_of_its_records(both):
    np.testing.assert_allclose(
        both('val[5:15]')['cls'].values, both('val')['cls'].values[5:15], rtol=1e-4, atol=1e-5
    )


def test_the_rule_for_absent_modalities_decides(data, settings, radar):
    by_self = radar('test')['mean_patch'].values
    for rule in ('bypass', 'zero_image'):
        other = extractor(data, dataclasses.replace(settings, absent=rule), ('s1',), ('mean_patch',))
        assert np.abs(other('test')['mean_patch'].values - by_self).max() > 1e-3


def test_no_two_things_are_stored_in_one_file(data, settings, tmp_path):
    def file(split='val', modalities=('s1',), kind=None, **changes):
        ready = extractor(data, dataclasses.replace(settings, **changes), modalities, ('cls',), kind)
        return str(ready._file(split, ready.names[0], tmp_path)[0])

    files = [
        *(file(), file('test'), file('val[:5]'), file(modalities=('s2',)), file(modalities=('s1', 's2'))),
        *(file(absent='bypass'), file(kind='random'), file(kind='bands'), file(stats='dataset')),
    ]
    assert len(set(files)) == len(files)
    assert file(batch=8) == files[0]
    assert file(modalities=('s2', 's1')) == file(modalities=('s1', 's2'))


def test_the_clip_and_the_normalisation_are_a_part_of_the_name(radar):
    def about(**changes):
        config = radar.fitted.config
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
        fitted = radar.fitted._replace(config=config)
        return features._about(System('x', None, 'f', None), radar._contract, ('s1',), fitted, 'resize')

    others = [about(), about(clip=3.0), about(normalisation='mean_2sigma')]
    assert all(others.count(one) == 1 for one in others)


@pytest.mark.parametrize('positives', [0, 2])
def test_one_class_a_record_is_checked_before_anything_is_learned(data, monkeypatch, positives):
    config = Task(path=str(data), labels='one', kind='single_label')
    index = read_index(data, 'val', ['name', 'one'])
    index['one'][4] = np.arange(3) < positives
    monkeypatch.setattr(Source, 'index', lambda *_: index)
    name = index['name'][4].decode()
    with pytest.raises(InputError, match=f'record {name} has {positives} classes .*needs exactly one'):
        task.read_split(config, contracts.read(data), 'val', '')


def test_a_rerun_reads_what_is_stored(data, settings, both, tmp_path):
    first = both('val', tmp_path)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == len(POOLED)
    again = extractor(data, settings, ('s1', 's2'))
    again._extract = lambda split: pytest.fail('extracted again')
    second = again('val', tmp_path)
    for name in POOLED:
        np.testing.assert_array_equal(second[name].values, first[name].values)
        np.testing.assert_array_equal(second[name].valid, first[name].valid)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    damaged = next(iter(files))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError, match='cannot be read'):
        both('val', tmp_path)


def test_a_fingerprint_is_of_architecture_and_weights(run):
    model = load(run)
    of_model = fingerprint(model)
    assert of_model == fingerprint(load(run))
    params = jax.tree.map(lambda x: x, model.params)
    params['encoder']['cls'] = params['encoder']['cls'].at[0].add(1e-7)
    assert fingerprint(Pretrained(model.config, model.contract, params, 'float32')) != of_model
    other = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, final_norm=False))
    assert fingerprint(Pretrained(other, model.contract, model.params, 'float32')) != of_model


def test_random_weights_are_others_of_the_same_architecture(run, settings):
    one = EncoderSettings(checkpoint=run)
    trained, fresh = opened(run, one), opened('random', one)
    assert fresh.model.config == trained.model.config
    assert jax.tree.map(np.shape, fresh.model.params) == jax.tree.map(np.shape, trained.model.params)
    assert fresh.fingerprint != trained.fingerprint
    # The architecture of another checkpoint, without looking at its weights.
    again = open_system('random', EncoderSettings(checkpoint='bands', like=run))
    assert fresh.fingerprint == again.fingerprint
    assert len(trained.seen.names.id) == 10 and not len(fresh.seen.names.id)


def test_band_statistics_are_those_of_numpy(data, settings):
    statistics = extractor(data, settings, ('s1', 's2'), (), 'bands')('val')[BAND_STATISTICS]
    contract = contracts.read(data)
    source = Source(str(data), 'val', tuple(contract.groups))
    assert statistics.values.shape == (SIZES['val'], 2 * 14) and statistics.valid.all()
    for i in range(len(source)):
        record = source[i]
        pixels = [record[name].astype(np.float64) for name in contract.groups]
        means, stds = (np.concatenate([f(x, axis=(0, 1)) for x in pixels]) for f in (np.mean, np.std))
        expected = np.nan_to_num(np.concatenate([means, stds]))
        np.testing.assert_allclose(statistics.values[i], expected, rtol=1e-4)
    alone = extractor(data, settings, ('s1',), (), 'bands')('val')[BAND_STATISTICS]
    assert alone.values.shape == (SIZES['val'], 4)
    names = read_index(data, 'val', ['name'])['name']
    assert names[~alone.valid].tolist() == [NO_RADAR.encode()]


def test_stored_features_do_not_outlive_a_corrected_offset(tmp_path, settings):
    """The shards stay as they are; what their numbers mean does not."""
    data = archive(tmp_path / 'data', {'train': 4, 'val': 4, 'test': 4})

    def found():
        one = extractor(data, settings, ('s2',), ('mean_patch',))
        return one('val', tmp_path / 'features')['mean_patch'].values

    before = found()
    np.testing.assert_array_equal(found(), before)
    file = data / contracts.FILE
    values = json.loads(file.read_text())
    values['groups']['s2_10m']['offset'] = -1000.0
    file.write_text(json.dumps(values))
    assert np.abs(found() - before).max() > 0.01


def test_a_split_without_a_valid_pixel_is_not_evaluated(data, settings):
    """Its one record has no radar."""
    at = read_index(data, 'val', ['name'])['name'].tolist().index(NO_RADAR.encode())
    bands = extractor(data, settings, ('s1',), kind='bands')
    with pytest.raises(InputError, match=rf'val\[{at}:{at + 1}\]: no record has a valid pixel of s1'):
        bands(f'val[{at}:{at + 1}]')
    assert sorted(bands(f'val[{max(at - 1, 0)}:{at + 2}]')[BAND_STATISTICS].valid)[:2] == [False, True]


def test_what_does_not_fit_is_refused(data, settings):
    with pytest.raises(InputError, match="'s3' is not in the model"):
        extractor(data, settings, ('s3',))
    with pytest.raises(InputError, match="'s3' is not in"):
        extractor(data, settings, ('s3',), (), 'bands')


# ------------------------------------------------------------ during pretraining


def settled_on_every_fifth(bank, queries, labels):
    """The average precision of a head that learns from the other training records."""

    def precision(scores, truth):
        return values(multi_label(scores, truth, ('dark', 'bright', 'rough'), threshold=0.0))['ap_micro']

    held = np.arange(len(bank)) % 5 == 0
    learned, settling = labels['train'][~held], labels['train'][held]
    scale = linear_probe.batch_norm(bank[~held])
    order = linear_probe.batch_order(len(learned), 128, 30.0)
    swept = linear_probe.points((1e-3, 3e-3, 1e-2, 3e-2), (0.0,), (0,))
    heads = linear_probe.train(scale(bank[~held]), learned, order, swept, linear_probe.Recipe())
    settled = linear_probe.settle(heads, swept, scale(bank[held]), lambda scores: precision(scores, settling))
    return precision(linear_probe.scores(heads, scale(queries), settled.heads[0]), labels['val'])


def test_neighbours_and_head_during_training_are_those_of_the_features(data, run, both):
    model = load(run)
    config = dataclasses.replace(model.config, train=Train(batch_size=16, steps=10))
    setup = make_setup(config, contracts.read(data), SIZES['train'])
    settings = Task(path=str(data), labels='labels')
    watch = LabelledEvaluation(setup, settings, k=5, probe_epochs=30.0)
    params = jax.device_put(model.params, replicated(setup.mesh))
    metrics = watch(params)
    labels = {split: read_index(data, split, ['labels'])['labels'] for split in ('train', 'val')}
    bank, queries = (both(split)['mean_patch'].values for split in ('train', 'val'))
    scores = knn_scores(queries, bank, labels['train'], 5)
    expected = values(multi_label(scores, labels['val'], ('dark', 'bright', 'rough'), threshold=0.5))
    plain = [name for name in expected if '/' not in name]
    assert metrics.keys() == {f'{method}/{name}' for method in ('knn', 'probe') for name in plain}
    for name in plain:
        assert metrics[f'knn/{name}'] == pytest.approx(expected[name], abs=1e-6)
    assert metrics['probe/ap_micro'] == pytest.approx(settled_on_every_fifth(bank, queries, labels), abs=1e-6)
    zeros = jax.tree.map(np.zeros_like, model.params)  # every record looks alike
    assert watch(zeros)['knn/ap_micro'] < metrics['knn/ap_micro']
    for changes, message in (
        ({'val_split': 'train[:10]'}, '10 records are in'),
        ({'labels': 'label'}, "no label field 'label'"),
        ({'train_split': 'train[:4]'}, '4 records, fewer than k=5'),
    ):
        with pytest.raises(InputError, match=message):
            LabelledEvaluation(setup, dataclasses.replace(settings, **changes), k=5)
    few = dataclasses.replace(settings, train_split='train[:1]')
    with pytest.raises(InputError, match='1 records are too few for a linear head'):
        LabelledEvaluation(setup, few, k=1, probe_epochs=1.0)


# ------------------------------------------------------------ four quarters of a record


def test_features_of_crops_are_means_over_the_quarters(data, settings):
    ready = Extractor(
        opened(settings.checkpoint, EncoderSettings(checkpoint=settings.checkpoint)),
        Task(path=str(data), labels='labels'),
        ('s1', 's2'),
        ('mean_patch',),
        dataclasses.replace(settings, batch=8, accept=('resolution',)),
        'crops',
    )
    pooled = ready('val[:8]')['mean_patch'].values
    source = Source(str(data), 'val[:8]', tuple(contracts.read(data).groups))
    batch = {name: np.stack([source[i][name] for i in range(8)]) for name in source.fields}
    prepare = make_prepare(ready.fitted.config, crops.view_contract(source.contract, 'crops'), None)
    model = load(settings.checkpoint)
    graphdef = graph(model.config.model)
    encode = jax.jit(lambda params, part: nnx.merge(graphdef, params).encode(prepare(part, None)).pooled)
    each = [encode(model.params, quarter(batch, top, left)) for top in (0, 1) for left in (0, 1)]
    np.testing.assert_allclose(pooled, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
    assert ready.row_fields()['image'] == 'crops 4 x 12, resize 32 x 32'
    assert ready.row_fields()['accepted'] == ('resolution',)


def test_crops_are_the_four_quarters():
    groups = {'s1': Group('s1', ('VV', 'VH'), (4, 6))}
    contract = Contract(dataset='test', groups=groups)
    assert crops.view_contract(contract, 'crops').groups['s1'].size == (2, 3)
    assert crops.view_contract(contract, 'resize') == contract
    batch = {'s1': np.arange(2 * 4 * 6 * 2).reshape(2, 4, 6, 2), 'label': np.array([7, 8])}
    every = crops.all_crops(batch, contract)
    quarters = [quarter({'s1': batch['s1']}, top, left)['s1'] for top in (0, 1) for left in (0, 1)]
    np.testing.assert_array_equal(every['s1'], np.concatenate(quarters))
    np.testing.assert_array_equal(every['label'], [7, 8] * 4)
    one = crops.one_crop(batch, contract, jnp.array([2, 1]))
    np.testing.assert_array_equal(one['s1'], [quarters[2][0], quarters[1][1]])
    np.testing.assert_array_equal(one['label'], [7, 8])
    drawn = np.asarray(crops.crop_index(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(np.bincount(drawn) / 4000, 0.25, atol=0.03)
    seen = jnp.array([1, 0, 1, 0, 0, 0, 1, 0], bool)  # of record 0 three crops, of record 1 none
    mean, some = crops.crop_mean(jnp.arange(8.0)[:, None], seen)
    np.testing.assert_allclose(mean[:, 0], [(0 + 2 + 6) / 3, 0])
    assert some.tolist() == [True, False]
    with pytest.raises(InputError, match='cannot be cut into four'):
        crops.view_contract(Contract(groups={'s1': Group('s1', ('VV',), (5, 4))}), 'crops')
    with pytest.raises(InputError, match="did you mean 'crops'"):
        crops.view_contract(contract, 'crop')
