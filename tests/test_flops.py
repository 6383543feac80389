"""The analytic count against the compiler's, on an unrolled model that is wide enough to be all matmuls."""

import dataclasses

import jax
import pytest
from flax import nnx

from fusmae_jax.config_build import resolve
from fusmae_jax.models import fusmae
from fusmae_jax.train import flops
from tests.conftest import cfg, tiny_config
from tests.helpers import random_order, random_patches


@pytest.mark.parametrize('fusion', [('xae', 'none'), ('none', 'xad')])
def test_forward_operations_match_the_compiler(fusion):
    model = resolve(
        cfg.Model(
            image_size=(64, 64),
            patch_size=8,
            width=512,
            depth=2,
            heads=8,
            fusion=cfg.Fusion(*fusion),
            decoder=cfg.Decoder(256, 2, 8),
            scan=False,
        )
    )
    graphdef, batch, visible = fusmae.graph(model), 2, 16
    shapes = jax.eval_shape(lambda key: fusmae.init_params(model, key), jax.random.key(0))

    def forward(params, patches, order):
        return nnx.merge(graphdef, params)(patches, order, visible)[0]

    patches, order = random_patches(model, batch), random_order(model, batch)
    counted = jax.jit(forward).lower(shapes, patches, order).cost_analysis()['flops'] / batch
    analytic = sum(flops.forward(model, visible).values())
    assert analytic == pytest.approx(counted, rel=0.06)  # softmax, norms and GELU are not counted
    assert analytic < counted


def test_a_training_step_costs_three_forwards_but_no_gradient_of_pixels():
    config = tiny_config()
    parts = flops.forward(config.model, 4)
    assert flops.train_flops_per_image(config) == 3 * sum(parts.values()) - parts['patch']
    deeper = dataclasses.replace(config.model, depth=5)
    assert flops.forward(deeper, 4)['blocks'] == 2 * parts['blocks']


def test_chips_by_their_jax_name():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    assert flops.peak_flops(Device('NVIDIA H200')) == 989e12
    assert flops.peak_flops(Device('TPU v5 lite')) == 197e12
    assert flops.peak_flops(Device('NVIDIA H100 80GB HBM3')) == 989e12
    assert flops.peak_flops(Device('NVIDIA L40S')) is None
    assert flops.peak_flops(Device('cpu')) is None
