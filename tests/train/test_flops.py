"""The analytic count against the compiler's, on an unrolled model that is wide enough to be all matmuls."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fusmae_jax.config import dino as dc
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import resolve
from fusmae_jax.models import fusmae
from fusmae_jax.models.masking import sample_slots
from fusmae_jax.train import dino_flops, flops
from fusmae_jax.train.setup import make_setup
from tests.support import dino_helpers
from tests.support.helpers import CONTRACT, random_order, random_patches
from tests.support.tiny import tiny_config


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
    shapes = fusmae.param_shapes(model)

    def forward(params, patches, order):
        return nnx.merge(graphdef, params)(patches, order, visible)[0]

    patches, order = random_patches(model, batch), random_order(model, batch)
    counted = jax.jit(forward).lower(shapes, patches, order).cost_analysis()['flops'] / batch
    analytic = sum(flops.forward(model, visible).values())
    assert analytic == pytest.approx(counted, rel=0.06)  # softmax, norms and GELU are not counted
    assert analytic < counted


@pytest.mark.parametrize(
    ('fusion', 'joint'),
    [
        (('stack', 'none'), False),
        pytest.param(('none', 'multimae'), False, marks=pytest.mark.slow),
        pytest.param(('xae', 'multimae'), True, marks=pytest.mark.slow),
        (('none', 'xad'), True),
    ],
)
def test_the_baselines_match_the_compiler(fusion, joint):
    model = cfg.Model(width=512, depth=2, heads=8, image_size=(64, 64), patch_size=8, scan=False)
    decoder = cfg.Decoder(256, 2, 8, cls=joint)
    model = resolve(dataclasses.replace(model, fusion=cfg.Fusion(*fusion), decoder=decoder))
    graphdef, visible = fusmae.graph(model), 32 if joint else 16
    shapes = fusmae.param_shapes(model)
    patches, order = random_patches(model, 2), random_order(model, 2)
    slots = sample_slots(
        jax.random.split(jax.random.key(0), 2),
        {name: jnp.any(p.valid, axis=2) for name, p in patches.items()},
        cfg.Masking('dirichlet'),
        visible,
    )

    def forward(params, patches, order, slots):
        module = nnx.merge(graphdef, params)
        return module.joint(patches, slots)[0] if joint else module(patches, order, visible)[0]

    counted = jax.jit(forward).lower(shapes, patches, order, slots).cost_analysis()['flops'] / 2
    analytic = sum(flops.forward(model, visible, joint=joint).values())
    assert analytic == pytest.approx(counted, rel=0.06)
    assert analytic < counted


@pytest.mark.parametrize(
    'fusion',
    [
        ('xae', 'multimae'),
        *(pytest.param(f, marks=pytest.mark.slow) for f in (('xae', 'none'), ('none', 'xad'))),
    ],
)
def test_the_whole_training_step_matches_the_compiler(fusion):
    """Within 2 %: so wide, all but matrix products (softmax, norms, AdamW, preparation) is little."""
    width, batch = 2048, 64
    model = cfg.Model(
        image_size=(64, 64),
        patch_size=8,
        width=width,
        depth=2,
        heads=16,
        fusion=cfg.Fusion(*fusion),
        decoder=cfg.Decoder(width, 1, 16),
        scan=False,
    )
    config = tiny_config(model=model, train=cfg.Train(batch_size=batch, steps=10))
    setup = make_setup(config, CONTRACT, 100, jax.devices()[:1])
    counted = setup.lower().cost_analysis()['flops'] / batch  # no loop in it, so the count is complete
    assert flops.train_flops_per_image(config) == pytest.approx(counted, rel=0.02)


def test_a_step_of_dino_mm_matches_the_compiler():
    """Within 2 % as above; crops are cut by products of matrices, which are not counted."""
    settings = dino_helpers.DEFAULT
    model = dataclasses.replace(
        settings.model,
        size='custom',
        width=1024,
        depth=3,
        heads=16,
        image_size=(64, 64),
        patch_size=8,
        scan=False,
    )
    crops = {
        'global_crops': dc.Crops(2, 64, (0.4, 1.0), (1.0, 0.1), (0.0, 0.2)),
        'local_crops': dc.Crops(2, 32, (0.05, 0.4), (0.5,)),
        'head': dc.DinoHead(out_dim=2048, hidden=1024, bottleneck=256),
    }
    config = dino_helpers.tiny(crops, model=model)
    setup = make_setup(config, dino_helpers.CONTRACT, 100, jax.devices()[:1])
    counted = setup.lower().cost_analysis()['flops'] / config.train.batch_size
    assert dino_flops.train_flops_per_image(config) == pytest.approx(counted, rel=0.02)


def test_recomputation_runs_the_stacked_blocks_once_more():
    config = tiny_config()
    parts = flops.forward(config.model, 4)
    again = parts['blocks'] + parts['decoders']
    assert flops.full_remat_share(config) == again / flops.train_flops_per_image(config)
    assert 0 < flops.full_remat_share(config) < 1 / 3


def test_joint_masks_show_as_many_patches():
    """The encoder's blocks cost the same; projections and decoders, which see slots of all sensors, more."""
    fixed, joint, urn = (
        tiny_config(masking=cfg.Masking(s)) for s in ('independent', 'dirichlet', 'joint_uniform')
    )
    assert flops.train_flops_per_image(urn) == flops.train_flops_per_image(joint)
    assert flops.forward(joint.model, 8, joint=True)['blocks'] == flops.forward(fixed.model, 4)['blocks']
    assert 1 < flops.train_flops_per_image(joint) / flops.train_flops_per_image(fixed) < 2


def test_a_training_step_costs_three_forwards_but_no_gradient_of_pixels():
    config = tiny_config()
    parts = flops.forward(config.model, 4)
    assert flops.train_flops_per_image(config) == 3 * sum(parts.values()) - parts['patch']
    deeper = dataclasses.replace(config.model, depth=5)
    assert flops.forward(deeper, 4)['blocks'] == 2 * parts['blocks']


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [
        ('TPU v4', 275e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5', 459e12),
        ('TPU v5p', 459e12),
        ('TPU v6 lite', 918e12),
        ('NVIDIA A100-SXM4-40GB', 312e12),
        ('NVIDIA A100-SXM4-80GB', 312e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H200', 989e12),
        ('NVIDIA L4', 121e12),
        # Slower cards of the same chip, parts of one, other chips, and one that has no bfloat16.
        ('NVIDIA A100 80GB PCIe', None),
        ('NVIDIA A100-PCIE-40GB', None),
        ('NVIDIA H100 PCIe', None),
        ('NVIDIA H100 NVL', None),
        ('NVIDIA H200 NVL', None),
        ('NVIDIA A100-SXM4-40GB MIG 3g.20gb', None),
        ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', None),
        ('NVIDIA L40S', None),
        ('Tesla V100-SXM2-16GB', None),
        ('cpu', None),
    ],
)
def test_chips_by_their_jax_name(kind, peak):
    assert flops.peak_flops(kind) == peak
