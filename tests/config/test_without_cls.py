"""Models without a CLS token: only where nothing reads one."""

import dataclasses

import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build, to_dict
from fusmae_jax.errors import InputError
from tests.support.tiny import tiny_model


def run_of(decoder_cls, cls):
    decoder = cfg.Decoder(width=16, depth=1, heads=2, cls=decoder_cls)
    model = dataclasses.replace(tiny_model('stack', cls=cls), decoder=decoder)
    return build(to_dict(cfg.Config(model=model, masking=cfg.Masking('consistent'))))


def test_a_decoder_needs_the_token_that_it_passes_on():
    for decoder_cls, cls in ((False, False), (False, True), (True, True)):
        assert run_of(decoder_cls, cls).model.cls == cls
    with pytest.raises(InputError, match=r'model\.cls=False leaves none'):
        run_of(True, False)


def test_a_teacher_without_it_would_have_no_feature():
    default = cfg.dino_mm()
    config = dataclasses.replace(default, model=dataclasses.replace(default.model, cls=False))
    with pytest.raises(InputError, match=r'model\.cls=False: DINO-MM needs True'):
        build(to_dict(config))
