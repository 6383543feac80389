"""What a working directory tells: what a resume is held against, skipped updates, the model card."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from etils import epath

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import to_dict
from fusmae_jax.errors import InputError
from fusmae_jax.input import normalise
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.run import jax_flags, model_card, workdir
from fusmae_jax.sensors import Product
from fusmae_jax.train.recipes import recipe_of
from tests.support import object_store
from tests.support.dino_helpers import tiny
from tests.support.helpers import CONTRACT
from tests.support.tiny import tiny_config, tiny_model

ALIASED = dataclasses.replace(CONTRACT, split_aliases={'all': 'train+val', 'other': 'test'})


def checked(stored, contract, split='all', **meta):
    config = tiny_config(data=cfg.Data(train_split=split))
    setup = types.SimpleNamespace(config=config, contract=contract, dtype='float32')
    meta = {'config': to_dict(config), 'contract': to_dict(stored), 'dtype': 'float32'} | meta
    meta = json.loads(json.dumps(meta))
    checkpoints = types.SimpleNamespace(meta=lambda step: meta, directory=epath.Path('run'))
    return workdir.checked_meta(checkpoints, 3, setup)


def test_sensors_in_another_order_are_another_model():
    """Stacked, they are channels of one projection: parameters of the same shapes would read other bands."""
    config = tiny_config(model=tiny_model('stack'), masking=cfg.Masking('consistent'))
    stored = json.loads(json.dumps(to_dict(config)))
    workdir.check_same_run(config, stored, 'run')
    turned = dict(reversed(config.model.modalities.items()))
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=turned))
    with pytest.raises(
        InputError, match=r"the run has \['s1', 's2'\] in this order, this command \['s2', 's1'\]"
    ):
        workdir.check_same_run(other, stored, 'run')


def test_what_is_not_stored_is_named_by_its_default():
    config = tiny_config(masking=cfg.Masking(decode_ratio=0.5))
    stored = json.loads(json.dumps(to_dict(tiny_config())))
    with pytest.raises(InputError, match=r'masking\.decode_ratio: the run has 1\.0, this command 0\.5'):
        workdir.check_same_run(config, stored, 'run')


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


def card(config, contract, folder, loss=1.0, best=None):
    settled = config
    for part in contract.each.values():
        settled = normalise.resolve(settled, part)
    state = {'params': {'a': np.zeros(3)}}
    setup = types.SimpleNamespace(
        config=settled,
        recipe=recipe_of(settled),
        contract=contract,
        total_steps=9,
        dtype='float32',
        abstract_state=lambda: state,
    )
    model_card.write(epath.Path(folder), setup, 16, loss, best)
    return (folder / model_card.FILE).read_text()


def test_of_both_sensors(tmp_path):
    text = card(tiny_config(), CONTRACT, tmp_path, best=0.25)
    assert text.startswith('# Fus-MAE, ') and 'Of any of `s1`, `s2` alone, or together. Load with' in text
    assert '- `s1`: Sentinel-1, product not recorded; backscatter in dB; VV, VH, stored at 10 m\n' in text
    assert 'digital numbers (reflectance x 10,000)' in text and 'stored at 10, 20, 60 m' in text
    assert 'images of 1200 x 1200 m' in text and '| best held-out loss | 0.2500 |' in text


def test_of_one_radar_in_other_units(tmp_path):
    radar = cfg.Modality(bands=('HH',), mean=(0.1,), std=(0.1,), unit='linear')
    group = Group('radar', ('HH',), (64, 32), 'float32', 'linear', resolution=20.0)
    contract = Contract('own', '1', {'x': group}, {'radar': Product(calibration='gamma0')})
    text = card(tiny_config(model=tiny_model('none', modalities={'radar': radar})), contract, tmp_path)
    assert text.startswith('# Masked autoencoder of one sensor, ')
    assert '- `radar`: gamma0; backscatter as power; HH, stored at 20 m\n' in text and '1280 x 640 m' in text
    for false in ('Sentinel', 'dB', 'L2A', 'baseline', 'together', '10 m'):
        assert false not in text


@pytest.mark.parametrize('loss', [None, float('nan')])
def test_what_was_not_measured_has_no_number(loss, tmp_path):
    text = card(tiny_config(), CONTRACT, tmp_path, loss)
    assert f'| final training loss | {"still training" if loss is None else "not measured"} |' in text
    assert '| best held-out loss | not measured |' in text


def test_of_self_distillation_and_of_level_1(tmp_path):
    products = {'s2': Product(level='L1C')}
    text = card(tiny(), dataclasses.replace(CONTRACT, products=products), tmp_path)
    assert text.startswith('# DINO-MM, ') and 'self-distillation' in text and 'fusmae_jax.load(DIR)' in text
    assert '- `s2`: Sentinel-2, L1C; ' in text
