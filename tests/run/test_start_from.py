"""Continued pretraining: the first loss is that of the weights given; what was not taken is listed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build, to_dict
from fusmae_jax.config.start import Init
from fusmae_jax.encoders import single_file
from fusmae_jax.encoders.load import load
from fusmae_jax.errors import InputError
from fusmae_jax.interop.weights.published import run_import
from fusmae_jax.interop.weights.published_kinds import WeightFile
from fusmae_jax.interop.weights.rules import flatten
from fusmae_jax.models.fusmae import param_shapes
from fusmae_jax.parallel.rules import path_name
from fusmae_jax.run import loop
from fusmae_jax.run.initial import begin
from fusmae_jax.run.initial.sources import open_source
from fusmae_jax.run.initial.transfer import Transfer
from fusmae_jax.run.loop import pretrain
from fusmae_jax.shipped.data.synthetic import write
from fusmae_jax.train.setup import make_setup
from tests.support import published_states as theirs
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.published_states import DEPTH, HEADS, SIZES, WIDTH
from tests.support.tiny import smallest_model, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures('one_device')
COLOURS = ('B04', 'B03', 'B02')


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """Weights in the layout of ImageNet MAE, imported for the bands of both sensors; its input as ours."""
    folder = tmp_path_factory.mktemp('imagenet')
    state = theirs.timm(3, 8, 4, sincos=True)
    safetensors.numpy.save_file(state, folder / 'mae.safetensors')
    file = str(folder / 'mae.safetensors')
    run_import(WeightFile('imagenet_mae', file, **SIZES, patch_size=8, image_size=32), folder)
    return str(folder / 'common'), state


def fitting(encoder='none', decoder='none', bands=COLOURS, **changes):
    """A model of the width of those weights, in which Sentinel-2 has three of its bands."""
    sensors = cfg.Model().modalities
    modalities = {'s2': dataclasses.replace(sensors['s2'], bands=bands)}
    modalities |= {'s1': sensors['s1']} if encoder == 'xae' else {}
    return tiny_model(
        encoder,
        decoder,
        modalities,
        **{'size': 'custom', 'width': WIDTH, 'depth': DEPTH, 'heads': HEADS} | changes,
    )


def transfer(init, model, by_index=False):
    shapes = param_shapes(model)
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    return Transfer(open_source(init), model, shapes, by_index), shapes


def test_every_sensor_gets_its_share_of_an_inflated_projection(imagenet):
    folder, state = imagenet
    done, shapes = transfer(Init(from_=folder), fitting('xae', 'xad'))
    # Every band has the mean over the colours, so that a sensor adds up to what three of them did.
    # MAE's positions have columns first: the import turns the features by half the width.
    colour = np.moveaxis(state['patch_embed.proj.weight'].mean(axis=1), 0, -1)
    colour = np.roll(colour, WIDTH // 2, axis=-1)
    for name, bands in (('s2', 3), ('s1', 2)):
        kernel = done.values[f'encoder/patch/{name}/kernel'].reshape(8, 8, bands, WIDTH)
        for band in range(bands):
            np.testing.assert_allclose(kernel[..., band, :], colour * 3 / bands, rtol=1e-5, atol=1e-6)
    fresh = {entry.name for entry in done.entries if entry.status == 'fresh'}
    assert {entry.name for entry in done.entries} == shapes.keys()
    # What fuses and what decodes; a Vision Transformer has nothing for it.
    assert not [n for n in fresh if n.startswith('encoder/') and not n.startswith('encoder/block1/')]
    assert {name for name in done.left if name.startswith('encoder/block1/')}
    assert any('bands' in name and 'B01' in name for name in done.left)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'width': 64}, 'model.width=64'), ({'depth': 2}, 'by_index'), ({'patch_size': 16}, 'patch_size')],
)
def test_what_cannot_be_taken_is_refused(imagenet, changes, message):
    with pytest.raises(InputError, match=message):
        transfer(Init(from_=imagenet[0]), fitting(**changes))


def test_blocks_of_another_depth_are_taken_by_number(imagenet):
    done, shapes = transfer(Init(from_=imagenet[0]), fitting(depth=DEPTH + 2), by_index=True)
    name = 'encoder/blocks/mlp/up/kernel'
    whole, mask = done.values[name], done.masks[name]
    assert whole.shape == shapes[name] and mask[: DEPTH - 1].all() and not mask[DEPTH - 1 :].any()
    shallow, _ = transfer(Init(from_=imagenet[0]), fitting(depth=2), by_index=True)
    np.testing.assert_array_equal(shallow.values[name], whole[:1])
    assert f'{name}: layers 1 to {DEPTH - 2}' in shallow.left


def test_an_exported_file_gives_what_it_was_made_from(imagenet, tmp_path):
    model = load(imagenet[0])
    file = tmp_path / 'mae.safetensors'
    single_file.write(file, model, dtype='float32', inputs={}, card={}, seen=None)
    there, exported = (open_source(Init(from_=str(path))) for path in (imagenet[0], file))
    assert exported.seen is None and exported.config.model == there.config.model
    for name, x in there.params.items():
        np.testing.assert_array_equal(exported.params[name], x, err_msg=name)
    with pytest.raises(InputError, match='an exported file, which has no average'):
        open_source(Init(from_=str(file), average=True))


def test_the_first_loss_is_that_of_imported_weights(imagenet, tmp_path):
    folder, _ = imagenet
    config = tiny_config(model=fitting(), init=Init(from_=folder))
    setup = make_setup(config, CONTRACT, 100, jax.devices()[:1])
    given, record = begin.begin(setup, begin.open_initial(setup), tmp_path)
    state = setup.init_state(given)
    fresh = jax.device_get(setup.init_state()['params'])
    stacked = flatten(load(folder).params)
    expected = dict(flatten(fresh)) | {
        n: x for n, x in stacked.items() if not n.startswith(('decoders', 'encoder/patch'))
    }
    # Twelve bands and two shared what three have to themselves.
    order = [load(folder).config.model.modalities['s2'].bands.index(band) for band in COLOURS]
    kernel = np.asarray(stacked['encoder/patch/stack/kernel'])[: 64 * 12].reshape(64, 12, WIDTH)
    expected['encoder/patch/s2/kernel'] = kernel[:, order].reshape(64 * 3, WIDTH) * np.float32(14 / 3)
    expected['encoder/patch/s2/bias'] = stacked['encoder/patch/stack/bias']
    for path, leaf in jax.tree_util.tree_leaves_with_path(state['params']):
        np.testing.assert_array_equal(leaf, expected[path_name(path)], err_msg=path_name(path))

    batch = jax.device_put(raw_batch(8))
    loss = jax.jit(lambda params: setup.objective.loss(params, {}, batch, jax.random.key(0))[0])
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(fresh)]
    by_hand = jax.tree.unflatten(jax.tree.structure(fresh), [np.asarray(expected[name]) for name in names])
    assert float(loss(state['params'])) == float(loss(by_hand))
    assert abs(float(loss(fresh)) - float(loss(by_hand))) > 1e-4
    assert json.loads((tmp_path / begin.FILE).read_text())['summary'] == record['summary']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """One step with both bands of S1, and one from its weights with another band set."""
    folder = tmp_path_factory.mktemp('runs')
    data = cfg.Data(path=str(write(folder / 'data', records=8)), threads=1)
    train = cfg.Train(batch_size=8, steps=1, compilation_cache=False)
    config = tiny_config(model=smallest_model(), data=data, train=train)
    pretrain(config, folder / 'first')
    vv = dataclasses.replace(config.model.modalities['s1'], bands=('VV',))
    model = dataclasses.replace(config.model, modalities={'s1': vv})
    init = Init(from_=str(folder / 'first'))
    second = build(to_dict(dataclasses.replace(config, model=model, init=init, seed=7)))
    pretrain(second, folder / 'second')
    return folder, second


def loss(folder):
    return json.loads((folder / 'metrics.jsonl').read_text().splitlines()[0])['loss']


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_weights(runs, monkeypatch):
    folder, second = runs
    kept = load(folder / 'first').params
    kernel = np.asarray(kept['encoder']['patch']['s1']['kernel'])[0::2]
    states = []

    def stop(run):
        states.append(run._state())
        batches = loop.pipeline.iterate(
            run.source.batches(run.config.seed, run.sharding), 0, 1, threads=1, prefetch=1
        )
        batch, _ = next(run._on_device(batches))
        objective = run.setup.objective
        batches.close()
        for start in (states[0], run.setup.init_state()):
            value, _ = objective.loss(start['params'], start['extra'], batch, jax.random.key(7))
            states.append(float(value))
        return 0

    monkeypatch.setattr(loop.Run, 'train', stop)
    pretrain(second, folder / 'third')
    params = states[0]['params']
    np.testing.assert_array_equal(params['encoder']['patch']['s1']['kernel'], kernel)
    np.testing.assert_array_equal(params['encoder']['cls'], kept['encoder']['cls'])
    assert loss(folder / 'second') == pytest.approx(states[1], rel=1e-6)
    assert abs(states[2] - states[1]) > 1e-4


@pytest.mark.slow
def test_what_was_not_taken_is_listed_and_what_was_seen_is_kept(runs):
    folder, _ = runs
    record = json.loads((folder / 'second' / 'init.json').read_text())
    assert 'encoder/patch/s1/kernel: bands VH' in record['not_taken']
    assert {entry['status'] for entry in record['parameters']} == {'taken'}
    checkpoints, step = open_step(folder / 'second')
    assert checkpoints.meta(step)['init']['fingerprint'] == record['fingerprint']
    checkpoints.close()
