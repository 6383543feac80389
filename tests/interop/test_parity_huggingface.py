"""Our model against Hugging Face ViTModel and ViTMAEForPreTraining with random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fusmae_jax.config.build import resolve
from fusmae_jax.config.run import Config, Decoder, Fusion, Loss, Modality, Model
from fusmae_jax.input.prepare import Patches, patchify
from fusmae_jax.interop import sides
from fusmae_jax.interop.weights import foreign, positions
from fusmae_jax.interop.weights.importers import import_weights
from fusmae_jax.interop.weights.rules import ImportOptions, flatten, to_ours
from fusmae_jax.models import fusmae

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity
torch.set_num_threads(
    1
)  # tiny tensors: threads would only wait for each other, 30 times slower on busy cores

ENCODER = {
    'hidden_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 2,
    'intermediate_size': 128,
    'image_size': 32,
    'patch_size': 8,
    'num_channels': 3,
    'layer_norm_eps': 1e-6,
}
DECODER = {
    'decoder_hidden_size': 16,
    'decoder_num_hidden_layers': 2,
    'decoder_num_attention_heads': 2,
    'decoder_intermediate_size': 64,
}


def our_model(**changes) -> Model:
    model = Model(
        modalities={'rgb': Modality(bands=('B04', 'B03', 'B02'), sensor='s2')},
        image_size=(32, 32),
        patch_size=8,
        size='tiny',
        fusion=Fusion('none', 'none'),
        decoder=Decoder(16, 2, 2, cls=True),
        positions='learned',
    )
    return resolve(dataclasses.replace(model, **changes))


def shake(module):
    """Noise on every parameter but the fixed positions, so that no zero hides a difference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'decoder_pos_embed' not in name and (parameter.requires_grad or 'position' not in name):
                parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def vitmae(**settings):
    """A random ViTMAEForPreTraining with the fixed positions that its checkpoints have.

    transformers 5 leaves both tables of a model that is built from a config at zero.
    """
    module = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**ENCODER, **DECODER, **settings))
    module.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    module.vit.embeddings.initialize_weights()
    module.decoder.initialize_weights(16)
    return module


def state_of(module) -> dict:
    return {name: x.detach().numpy() for name, x in module.state_dict().items()}


def as_patches(images) -> Patches:
    x = patchify(jnp.asarray(images.numpy().transpose(0, 2, 3, 1)), 8)
    return Patches(x, jnp.ones(x.shape, bool))


def assert_close(ours, theirs, limit=2e-5):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert np.max(np.abs(np.asarray(ours) - theirs)) <= limit * np.max(np.abs(theirs))


@pytest.fixture(scope='module')
def vit():
    config = transformers.ViTConfig(**ENCODER)
    return shake(transformers.ViTModel(config, add_pooling_layer=False))


@pytest.mark.parametrize('size', [(32, 32), (48, 48), (32, 56)])
def test_vit_encoder_and_interpolated_grids(vit, size):
    model = our_model(image_size=size)
    base = fusmae.init_params(model, jax.random.key(0))
    params, report = import_weights('hf_vit', state_of(vit), model, base)
    assert all(path.startswith('decoders/') for path in report.kept)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    hidden = vit(images, interpolate_pos_encoding=size != (32, 32)).last_hidden_state
    module = nnx.merge(fusmae.graph(model), jax.tree.map(jnp.asarray, params))
    encoded = module.encode({'rgb': as_patches(images)})
    assert_close(encoded.tokens['rgb'], hidden[:, 1:])
    assert_close(encoded.cls, hidden[:, 0])


def test_vit_gradients(vit):
    model = our_model()
    base = fusmae.init_params(model, jax.random.key(0))
    params, _ = import_weights('hf_vit', state_of(vit), model, base)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    vit.zero_grad()
    vit(images).last_hidden_state.pow(3).mean().backward()

    def loss(params):
        encoded = nnx.merge(fusmae.graph(model), params).encode({'rgb': as_patches(images)})
        return jnp.mean(jnp.concatenate([encoded.tokens['rgb'], encoded.cls[:, None]], 1) ** 3)

    ours = flatten(jax.grad(loss)(params))
    gradients = {name: p.grad.numpy() for name, p in vit.named_parameters()}
    table = gradients.pop('embeddings.position_embeddings')
    plan = foreign.LAYOUTS['hf_vit'](gradients, model, ImportOptions())
    theirs = to_ours(plan.rules, plan.state) | {positions.TABLE: table[0, 1:]}
    compare_gradients(ours, theirs)


def compare_gradients(ours, theirs):
    floor = 1e-6 * np.sqrt(sum(np.sum(x**2) for x in theirs.values()))
    for name, reference in theirs.items():
        error = np.linalg.norm(ours[name] - reference) / max(np.linalg.norm(reference), floor)
        assert error < 2e-4, name


@pytest.mark.parametrize('norm_pix', [False, True])
@pytest.mark.parametrize('kind', ['learned', 'sincos'])
def test_vitmae_latents_predictions_loss_and_gradients(norm_pix, kind):
    hf = shake(vitmae(norm_pix_loss=norm_pix, mask_ratio=0.75))
    assert positions.recognise(hf.decoder.decoder_pos_embed[0, 1:].detach().numpy(), (4, 4)) == 'column_first'
    model = our_model(positions=kind)
    config = Config(model=model, loss=Loss(norm_pix))
    params, report = import_weights('hf_vitmae', state_of(hf), model)
    assert not report.kept
    assert not report.unused

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    order = noise.argsort(1).numpy()
    out = hf(images, noise=noise)
    latents = hf.vit(images, noise=noise).last_hidden_state.detach().numpy()
    out.loss.backward()
    case = sides.Case({'rgb': images.numpy()}, {'rgb': order}, 4)
    ours = sides.run_jax(config, case, params, jnp.float32)

    # Sine-cosine: our residual features are theirs turned by half the width.
    turned = np.roll(latents, 16, -1) if kind == 'sincos' else latents
    assert_close(ours.stages['latents/rgb'], turned[:, 1:])
    assert_close(ours.stages['cls'], turned[:, 0])
    predictions = np.take_along_axis(out.logits.detach().numpy(), order[:, 4:, None], 1)
    assert_close(ours.stages['decoders/rgb/predictions'], predictions)
    assert abs(float(ours.stages['loss']) / out.loss.item() - 1) < 2e-6

    gradients = {name: p.grad.numpy() for name, p in hf.named_parameters() if p.grad is not None}
    plan = foreign.LAYOUTS['hf_vitmae'](gradients, model, ImportOptions())
    streams = 'ed' if kind == 'sincos' else 'd'
    compare_gradients(ours.gradients, positions.turn(to_ours(plan.rules, plan.state), streams))


def test_vitmae_file_names_are_read_too(tmp_path):
    """Published files name the parts otherwise than the module in memory."""
    from fusmae_jax.interop.weights.files import read_state

    hf = vitmae()
    hf.save_pretrained(tmp_path)
    model = our_model(positions='sincos')
    from_file, _ = import_weights('hf_vitmae', read_state(tmp_path / 'model.safetensors'), model)
    from_memory, _ = import_weights('hf_vitmae', state_of(hf), model)
    jax.tree.map(np.testing.assert_array_equal, from_file, from_memory)
