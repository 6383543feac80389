"""Our model against the PyTorch reference: forward, loss, gradients, training steps, absent sensors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config.build import resolve
from fusmae_jax.config.run import Config, Decoder, Fusion, Loss, Masking, Modality, Model, Numerics, Optimizer
from fusmae_jax.input.prepare import Patches, patchify
from fusmae_jax.interop import compare, sides
from fusmae_jax.models import fusmae

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
torch.set_num_threads(
    1
)  # tiny tensors: threads would only wait for each other, 30 times slower on busy cores

S2 = Modality(bands=('B02', 'B03', 'B04'), sensor='s2')
S1 = Modality(bands=('VV', 'VH'), sensor='s1', loss_weight=0.5)
DEM = Modality(bands=('height',), mean=(0.0,), std=(1.0,))


def make(loss=None, masking=None, **changes) -> Config:
    model = Model(
        modalities={'s1': S1, 's2': S2},
        image_size=(32, 32),
        patch_size=8,
        size='tiny',
        decoder=Decoder(width=16, depth=2, heads=2),
    )
    model = resolve(dataclasses.replace(model, **changes))
    optimizer = Optimizer(learning_rate=1e-3)
    return Config(model=model, loss=loss or Loss(), masking=masking or Masking(), optimizer=optimizer)


FAMILY = {
    'xae': make(),
    'xad': make(fusion=Fusion('none', 'xad')),
    'xae_xad': make(fusion=Fusion('xae', 'xad'), image_size=(32, 48)),
    'none': make(fusion=Fusion('none', 'none'), masking=Masking('consistent')),
    'unimodal': make(fusion=Fusion('none', 'none'), modalities={'s2': S2}),
    'three': make(fusion=Fusion('xae', 'xad'), modalities={'s1': S1, 's2': S2, 'dem': DEM}),
    'norm_pix': make(loss=Loss(norm_pix=True)),
    'learned_shared': make(positions='learned', fusion=Fusion('xae', shared_directions=True)),
    'mae_decoder': make(decoder=Decoder(16, 1, 2, cls=True, final_norm=False), final_norm=False, depth=1),
    'numerics': make(numerics=Numerics('tanh', 1e-5, 'fast', 'highest', qkv_bias=False), scan=False),
}


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


def test_bfloat16_errs_no_more_than_pytorch():
    rows = compare.compare_bfloat16(FAMILY['xae_xad'])
    assert {'latents/s1', 'cls', 'decoders/s2/predictions', 'loss', 'all parameters'} <= {
        r.name for r in rows
    }
    assert not failures(rows)
