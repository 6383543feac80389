"""The compare command: exit codes, JSON, and what it says about files and types."""

import dataclasses
import json

import pytest

from fusmae_jax.bench import race
from fusmae_jax.errors import InputError
from fusmae_jax.interop import compare
from fusmae_jax.interop import compare as module
from fusmae_jax.interop.weights import files
from fusmae_jax.interop.weights.rules import flatten, unflatten
from tests.interop.test_interop_weights import make, random_params
from tests.interop.test_parity_family import FAMILY

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity


def test_json_and_exit_codes(tmp_path, capsys, monkeypatch):
    config = FAMILY['unimodal']
    path = tmp_path / 'a.safetensors'
    params = unflatten({name: 0.1 * x for name, x in flatten(random_params(config.model)).items()})
    files.export(path, params, config.model)
    code = module.compare(config, weights=str(path), dtype='float64', as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert [row for row in report['rows'] if not row['ok']] == []
    assert (code, report['ok']) == (0, True)
    assert report['settings']['numerics']['norm_eps'] == 1e-6
    assert {row['kind'] for row in report['rows']} == {'stage', 'loss', 'gradient', 'steps'}

    rows = compare.compare_exactly(config, dtype='float32', steps=0)
    rows[3] = dataclasses.replace(rows[3], relative=float('nan'))
    monkeypatch.setattr(module, 'run', lambda *args, **kwargs: rows)
    assert module.compare(config, weights='', dtype='float32', as_json=False) == 1
    assert f'1 of {len(rows)} past the limit, first: {rows[3].name}' in capsys.readouterr().out


def test_wrong_type_and_wrong_weights_are_input_errors(tmp_path):
    with pytest.raises(InputError, match='bfloat16'):
        module.compare(FAMILY['xae'], weights='', dtype='half', as_json=False)
    path = tmp_path / 'a.safetensors'
    files.export(path, random_params(make()), make())
    with pytest.raises(InputError, match='not part of this model'):
        module.compare(FAMILY['unimodal'], weights=str(path), dtype='float32', as_json=False)


def test_every_contender_of_the_race_takes_steps(monkeypatch):
    monkeypatch.setattr(race, 'WARMUP', 0)
    monkeypatch.setattr(race, 'REPEATS', 2)
    for name in ('torch eager', 'fusmae_jax scan', 'fusmae_jax unrolled'):  # torch.compile needs a compiler
        lap = race._run(name, FAMILY['xae'], 2)
        assert lap.seconds > 0 and lap.first > 0 and lap.peak > 0
