"""What a resume is held against beside the settings, and the list of skipped updates."""

import dataclasses
import json
import types

import jax
import pytest
from etils import epath

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import to_dict
from fusmae_jax.errors import InputError
from fusmae_jax.run import jax_flags, workdir
from tests.support import object_store
from tests.support.helpers import CONTRACT
from tests.support.tiny import tiny_config

ALIASED = dataclasses.replace(CONTRACT, split_aliases={'all': 'train+val', 'other': 'test'})


def checked(stored, contract, split='all', **meta):
    config = tiny_config(data=cfg.Data(train_split=split))
    setup = types.SimpleNamespace(config=config, contract=contract, dtype='float32')
    meta = {'config': to_dict(config), 'contract': to_dict(stored), 'dtype': 'float32'} | meta
    meta = json.loads(json.dumps(meta))
    checkpoints = types.SimpleNamespace(meta=lambda step: meta, directory=epath.Path('run'))
    return workdir.checked_meta(checkpoints, 3, setup)


def test_a_changed_alias_of_a_split_that_is_used_is_refused():
    changed = dataclasses.replace(ALIASED, split_aliases={'all': 'train', 'other': 'val'})
    assert changed.digest == ALIASED.digest
    checked(ALIASED, ALIASED)
    checked(ALIASED, changed, 'train')  # which is no alias
    with pytest.raises(InputError, match=r"splits \['train\+val', ''\], this one has \['train', ''\]"):
        checked(ALIASED, changed)


def test_other_flags_of_jax_are_refused_and_an_old_checkpoint_is_not():
    checked(CONTRACT, CONTRACT)
    checked(CONTRACT, CONTRACT, jax_flags=jax_flags.values())
    before = jax.config.jax_default_prng_impl
    jax.config.update('jax_default_prng_impl', 'rbg')
    try:
        other = jax_flags.values()
    finally:
        jax.config.update('jax_default_prng_impl', before)
    with pytest.raises(
        InputError, match=r"jax_default_prng_impl: the run has 'rbg', this process 'threefry2x32'"
    ):
        checked(CONTRACT, CONTRACT, jax_flags=other)


@pytest.mark.parametrize('place', ['disk', 'bucket'])
def test_a_skip_is_added_to_those_before(place, tmp_path, monkeypatch):
    if place == 'bucket':
        object_store.install(monkeypatch)
    folder = epath.Path('gs://bucket/run' if place == 'bucket' else tmp_path)
    for step in (3, 7):
        workdir.note_skip(folder, step, {'name': ['a']})
    lines = (folder / workdir.SKIPPED).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{'step': 3, 'name': ['a']}, {'step': 7, 'name': ['a']}]
