"""Continued pretraining: the first loss is that of the weights given; what was not taken is listed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from data.synthetic import write
from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build, to_dict
from fusmae_jax.config.start import Init
from fusmae_jax.encoders.load import load
from fusmae_jax.errors import InputError
from fusmae_jax.run import loop
from fusmae_jax.run.initial.sources import open_source
from fusmae_jax.run.initial.transfer import Transfer
from fusmae_jax.run.loop import pretrain
from tests.support.tiny import smallest_model, tiny_config

pytestmark = pytest.mark.usefixtures('one_device')


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
    same = dataclasses.replace(config, init=init, seed=config.seed)
    return folder, config, second, same


def loss(folder):
    return json.loads((folder / 'metrics.jsonl').read_text().splitlines()[0])['loss']


def test_the_first_loss_is_that_of_the_weights(runs, monkeypatch):
    folder, _, second, _ = runs
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
        value, _ = objective.loss(states[0]['params'], states[0]['extra'], batch, jax.random.key(7))
        batches.close()
        fresh = run.setup.init_state()
        other, _ = objective.loss(fresh['params'], fresh['extra'], batch, jax.random.key(7))
        states.extend([float(value), float(other)])
        return 0

    monkeypatch.setattr(loop.Run, 'train', stop)
    pretrain(second, folder / 'third')
    params = states[0]['params']
    np.testing.assert_array_equal(params['encoder']['patch']['s1']['kernel'], kernel)
    np.testing.assert_array_equal(params['encoder']['cls'], kept['encoder']['cls'])
    assert loss(folder / 'second') == pytest.approx(states[1], rel=1e-6)
    assert abs(states[2] - states[1]) > 1e-4


def test_what_was_not_taken_is_listed_and_what_was_seen_is_kept(runs):
    folder, *_ = runs
    record = json.loads((folder / 'second' / 'init.json').read_text())
    assert 'encoder/patch/s1/kernel: bands VH' in record['not_taken']
    assert {entry['status'] for entry in record['parameters']} == {'taken'}
    checkpoints, step = open_step(folder / 'second')
    assert checkpoints.meta(step)['init']['fingerprint'] == record['fingerprint']
    checkpoints.close()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'width': 64}, 'model.width=64'), ({'depth': 2}, 'by_index'), ({'patch_size': 16}, 'patch_size')],
)
def test_what_cannot_be_taken_is_refused(runs, changes, message):
    folder, config, *_ = runs
    source = open_source(Init(from_=str(folder / 'first')))
    with pytest.raises(InputError, match=message):
        Transfer(source, dataclasses.replace(config.model, **changes), {}, by_index=False)
