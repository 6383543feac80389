"""Our model against the PyTorch reference: all stages, gradients, training steps; the command `compare`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.bench import contenders
from fusmae_jax.errors import InputError
from fusmae_jax.input.prepare import Patches, patchify
from fusmae_jax.interop import compare, sides
from fusmae_jax.interop.weights import files
from fusmae_jax.interop.weights.rules import flatten, unflatten
from fusmae_jax.models import fusmae
from tests.support.interop_models import FAMILY, random_params, small_model

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
# Tiny tensors: threads would only wait for each other, 30 times slower on busy cores.
torch.set_num_threads(1)


def failures(rows: list[compare.ParityRow]) -> list[str]:
    return [f'{r.kind} {r.name}: {r.relative:.2e} > {r.limit:.2e}' for r in rows if not r.ok]


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_forward_loss_and_gradients_agree(name, dtype):
    rows = compare.compare_exactly(FAMILY[name], dtype=dtype, steps=0)
    assert {r.kind for r in rows} == {'stage', 'loss', 'gradient'}
    assert not failures(rows)


@pytest.mark.parametrize('name', FAMILY)
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_a_hundred_steps_agree(name, dtype):
    config = FAMILY[name]
    kind = jnp.dtype(dtype)
    with jax.enable_x64(dtype == 'float64'):
        params = sides.fresh_params(config, 0, kind)
        cases = [sides.make_case(config, 2, seed) for seed in range(4)]
        ours = sides.train_jax(config, cases, params, kind, 100, 10)
        theirs = sides.train_torch(config, cases, params, dtype, 100, 10)
    assert np.mean(theirs[-10:]) < 0.98 * np.mean(theirs[:10])  # it does learn
    assert not failures(compare.step_rows(ours, theirs, compare.TOLERANCE[dtype]['steps']))


def test_a_wrong_weight_is_noticed():
    config = FAMILY['xae']
    params = sides.fresh_params(config, 0, jnp.float32)
    case = sides.make_case(config, 2, 0)
    theirs = sides.run_torch(config, case, params, 'float32')
    bias = params['decoders']['s1']['predict']['bias']
    params['decoders']['s1']['predict']['bias'] = bias + 1e-3
    ours = sides.run_jax(config, case, params, jnp.float32)
    rows = compare.stage_rows(ours, theirs, compare.TOLERANCE['float32'])
    assert [r.name for r in rows if not r.ok] == ['decoders/s1/predictions', 'loss/s1', 'loss']


def test_key_biases_have_no_gradient():
    """A key bias adds the same number to all logits of a query, which the softmax does not see."""
    config = FAMILY['xae_xad']
    params, case = sides.fresh_params(config, 0, jnp.float32), sides.make_case(config, 2, 0)
    outcomes = [
        sides.run_jax(config, case, params, jnp.float32),
        sides.run_torch(config, case, params, 'float32'),
    ]
    for outcome in outcomes:
        floor = compare.FLOOR * compare.global_norm(outcome.gradients)
        keys = {n: np.split(g, 3, -1)[1] for n, g in outcome.gradients.items() if n.endswith('qkv/bias')}
        keys |= {
            n: np.split(g, 2, -1)[0]
            for n, g in outcome.gradients.items()
            if n.endswith('kv/bias') and n not in keys
        }
        assert len(keys) == 3 + 4
        assert all(np.linalg.norm(g) < floor for g in keys.values())


@pytest.mark.parametrize('absent', ['self', 'bypass', 'zero_image'])
@pytest.mark.parametrize('given', [('s1',), ('s2', 'dem'), ('s1', 's2', 'dem')])
def test_encoding_any_subset_agrees(absent, given):
    base = FAMILY['three']
    fusion = dataclasses.replace(base.model.fusion, absent=absent)
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, fusion=fusion))
    params, case = sides.fresh_params(config, 0, jnp.float32), sides.make_case(config, 2, 0)
    reference = sides.torch_model(config, params, 'float32')
    with torch.no_grad():
        latents, cls = reference.encode({n: torch.tensor(case.images[n], dtype=torch.float32) for n in given})
    model = nnx.merge(fusmae.graph(config.model), params)
    patches = {n: patchify(jnp.asarray(case.images[n].transpose(0, 2, 3, 1), jnp.float32), 8) for n in given}
    encoded = model.encode({n: Patches(x, jnp.ones(x.shape, bool)) for n, x in patches.items()})
    assert set(encoded.tokens) == set(given)
    for name in given:
        np.testing.assert_allclose(encoded.tokens[name], latents[name].numpy(), atol=2e-5)
    np.testing.assert_allclose(encoded.cls, cls.numpy(), atol=2e-5)


@pytest.mark.parametrize('name', ['xae_xad', 'fused'])
def test_bfloat16_errs_no_more_than_pytorch(name):
    rows = compare.compare_bfloat16(FAMILY[name])
    assert {'latents/s1', 'cls', 'decoders/s2/predictions', 'loss', 'all parameters'} <= {
        r.name for r in rows
    }
    assert not failures(rows)


def test_json_and_exit_codes(tmp_path, capsys, monkeypatch):
    config = FAMILY['unimodal']
    path = tmp_path / 'a.safetensors'
    params = unflatten({name: 0.1 * x for name, x in flatten(random_params(config.model)).items()})
    files.export(path, params, config.model)
    code = compare.compare(config, weights=str(path), dtype='float64', as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert [row for row in report['rows'] if not row['ok']] == []
    assert (code, report['ok']) == (0, True)
    assert report['settings']['numerics']['norm_eps'] == 1e-6
    assert {row['kind'] for row in report['rows']} == {'stage', 'loss', 'gradient', 'steps'}

    rows = compare.compare_exactly(config, dtype='float32', steps=0)
    rows[3] = dataclasses.replace(rows[3], relative=float('nan'))
    monkeypatch.setattr(compare, 'compare_exactly', lambda *args, **kwargs: rows)
    assert compare.compare(config, weights='', dtype='float32', as_json=False) == 1
    assert f'1 of {len(rows)} past the limit, first: {rows[3].name}' in capsys.readouterr().out


def test_wrong_type_and_wrong_weights_are_input_errors(tmp_path):
    with pytest.raises(InputError, match='bfloat16'):
        compare.compare(FAMILY['xae'], weights='', dtype='half', as_json=False)
    path = tmp_path / 'a.safetensors'
    files.export(path, random_params(small_model()), small_model())
    with pytest.raises(InputError, match='not part of this model'):
        compare.compare(FAMILY['unimodal'], weights=str(path), dtype='float32', as_json=False)


@pytest.mark.parametrize('name', [contenders.EAGER, contenders.SCANNED, contenders.UNROLLED])
def test_every_contender_of_the_race_takes_steps(name):  # torch.compile needs a compiler
    side = contenders.make(name, FAMILY['xae'], 2, 'cpu')
    turn = contenders.timed(side.step)
    assert turn.seconds > 0 and turn.cpu > 0 and side.peak() > 0
