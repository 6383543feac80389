"""The tiny settings that all tests share."""

import dataclasses

import fusmae_jax
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build, to_dict


def tiny_model(encoder='xae', decoder='none', modalities=None, **changes):
    """A model that compiles in seconds: 16 patches of 8 px, 32 wide, 3 deep."""
    modalities = modalities or fusmae_jax.Model().modalities
    values = {
        'size': 'tiny',
        'image_size': (32, 32),
        'patch_size': 8,
        'modalities': modalities,
        'fusion': cfg.Fusion(encoder, decoder),
        'decoder': cfg.Decoder(width=16, depth=2, heads=2),
        'scan': True,  # the quicker one to compile
    }
    return dataclasses.replace(cfg.Model(), **(values | changes))


def smallest_model():
    """One sensor and little depth, for runs that are about something else: most of a test is compiling."""
    return tiny_model('none', modalities={'s1': cfg.Model().modalities['s1']}, depth=1)


def tiny_config(encoder='xae', decoder='none', model=None, **changes):
    """A run with `tiny_model`: 60 steps of 8 records."""
    values = {
        'model': model or tiny_model(encoder, decoder),
        'train': cfg.Train(batch_size=8, steps=60, max_skips=3),
        'optimizer': cfg.Optimizer(learning_rate=1e-3, warmup_steps=5),
        'checkpoint': cfg.Checkpoint(every_steps=30),
        'log': cfg.Log(every_steps=1, images_every_steps=0, num_images=2, eval_every_steps=30),
    }
    return build(to_dict(dataclasses.replace(cfg.Config(), **(values | changes))))
