"""Small models for comparisons with PyTorch and for weight maps, one of each member of the family."""

import dataclasses

import numpy as np

from fusmae_jax.config.build import resolve
from fusmae_jax.config.run import Config, Decoder, Fusion, Loss, Masking, Modality, Model, Numerics, Optimizer
from fusmae_jax.interop.weights.layouts import reference_rules
from fusmae_jax.interop.weights.rules import flatten, ours_shapes, unflatten

S1 = Modality(bands=('VV', 'VH'), sensor='s1')
S2 = Modality(bands=('B02', 'B03', 'B04', 'B08'), sensor='s2')
OPTICAL = Modality(bands=('B02', 'B03', 'B04'), sensor='s2')
RADAR = Modality(bands=('VV', 'VH'), sensor='s1', loss_weight=0.5)
DEM = Modality(bands=('height',), mean=(0.0,), std=(1.0,))


def small_model(**changes) -> Model:
    model = Model(
        modalities={'s1': S1, 's2': S2},
        image_size=(32, 32),
        patch_size=8,
        size='tiny',
        fusion=Fusion('xae', 'xad'),
        decoder=Decoder(16, 2, 2),
    )
    return resolve(dataclasses.replace(model, **changes))


def random_params(model: Model, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    shapes = ours_shapes(reference_rules(model))
    return unflatten({k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()})


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def family_config(loss=None, masking=None, **changes) -> Config:
    model = Model(
        modalities={'s1': RADAR, 's2': OPTICAL},
        image_size=(32, 32),
        patch_size=8,
        size='tiny',
        decoder=Decoder(width=16, depth=2, heads=2),
    )
    model = resolve(dataclasses.replace(model, **changes))
    optimizer = Optimizer(learning_rate=1e-3)
    return Config(model=model, loss=loss or Loss(), masking=masking or Masking(), optimizer=optimizer)


FAMILY = {
    'xae': family_config(),
    'xad': family_config(fusion=Fusion('none', 'xad')),
    'xae_xad': family_config(fusion=Fusion('xae', 'xad'), image_size=(32, 48)),
    'none': family_config(fusion=Fusion('none', 'none'), masking=Masking('consistent')),
    'unimodal': family_config(fusion=Fusion('none', 'none'), modalities={'s2': OPTICAL}),
    'three': family_config(fusion=Fusion('xae', 'xad'), modalities={'s1': RADAR, 's2': OPTICAL, 'dem': DEM}),
    'norm_pix': family_config(loss=Loss(norm_pix=True)),
    'learned_shared': family_config(positions='learned', fusion=Fusion('xae', shared_directions=True)),
    'mae_decoder': family_config(
        decoder=Decoder(16, 1, 2, cls=True, final_norm=False), final_norm=False, depth=1
    ),
    # The fused kernels of a GPU, interpreted
    'fused': family_config(
        fusion=Fusion('xae', 'xad'), image_size=(32, 48), attention='pallas', norm='pallas', scan=False
    ),
    'numerics': family_config(numerics=Numerics('tanh', 1e-5, 'fast', 'highest', qkv_bias=False), scan=False),
}
