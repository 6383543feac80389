"""A run with the fused kernels, interpreted: no scatter, traced once, and resumed bit for bit.

The other tests of steps and runs have the plain operations, which is what `auto` is on a CPU.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.encoders.load import load
from fusmae_jax.models.fusmae import FusMAE
from fusmae_jax.run.loop import pretrain
from fusmae_jax.shipped.data.synthetic import write
from fusmae_jax.train.setup import make_setup
from tests.support.helpers import CONTRACT
from tests.support.programs import scatters
from tests.support.tiny import smallest_model, tiny_config, tiny_model

# Interpreted kernels take a minute to compile on a busy machine.
pytestmark = [pytest.mark.usefixtures('one_device'), pytest.mark.slow]
SAVED = 2


def fused(model, **changes):
    return tiny_config(model=dataclasses.replace(model, attention='pallas', norm='pallas'), **changes)


def lines(workdir):
    names = ('step', 'loss', 'grad_norm')
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [[row[name] for name in names] for row in rows]


def test_a_run_is_traced_once_and_goes_on_bit_for_bit(tmp_path, monkeypatch):
    config = fused(
        smallest_model(),
        data=cfg.Data(path=str(write(tmp_path / 'data', records=16)), threads=1),
        train=cfg.Train(batch_size=8, steps=2 * SAVED),
        optimizer=cfg.Optimizer(learning_rate=1e-3, warmup_steps=1),
        checkpoint=cfg.Checkpoint(every_steps=SAVED),
    )
    traces, call = [], FusMAE.__call__
    monkeypatch.setattr(FusMAE, '__call__', lambda *a, **k: (traces.append(1), call(*a, **k))[1])
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert pretrain(config, whole) == 0
    assert len(traces) == 1
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / 'checkpoints' / str(2 * SAVED))
    (parts / 'COMPLETE').unlink()
    assert pretrain(config, parts) == 0
    assert len(traces) == 2  # a second start
    assert lines(parts) == lines(whole)
    for a, b in zip(*(jax.tree.leaves(load(folder).params) for folder in (whole, parts))):
        np.testing.assert_array_equal(a, b)


# The model with every kind of attention, and of norm.
def test_no_scatter_in_the_step():
    setup = make_setup(fused(tiny_model('xae', 'xad')), CONTRACT, 100, jax.devices()[:1])
    lowered = setup.lower()
    assert scatters(lowered, lowered.compile()) == []
