"""The scale of every kind of parameter before the first step, against its formula."""

import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fusmae_jax.models import dino, fusmae, heads
from tests.conftest import cfg, tiny_config, tiny_model
from tests.dino_helpers import tiny

# Path -> how many projections lie side by side in the kernel; the first that fits counts.
PARTS = [(r'.*/qkv/kernel', 3), (r'.*/kv/kernel', 2), (r'.*kernel', 1)]
FAMILY = [('xae', 'xad'), ('none', 'multimae'), ('stack', 'none')]


def limit(path, shape):
    """sqrt(6 / (in + out)) of one projection (Glorot & Bengio 2010)."""
    parts = next(count for pattern, count in PARTS if re.fullmatch(pattern, path))
    return np.sqrt(6 / (shape[-2] + shape[-1] / parts))


def arrays(params):
    return [(path, np.asarray(leaf)) for path, leaf in flatten_dict(params, sep='/').items()]


def is_uniform(path, values, a):
    """U(-a, a) touches both ends, has the variance a^2 / 3, and no block of a stack repeats another."""
    assert values.max() <= a and values.min() >= -a, path
    if values.size >= 512:
        assert values.max() > 0.97 * a and values.min() < -0.97 * a, path
    assert values.std() == pytest.approx(a / np.sqrt(3), rel=0.05 if values.size >= 512 else 0.25), path
    assert len(np.unique(values)) > 0.99 * values.size, path


def is_normal(path, values):
    """N(0, 0.02), to four standard errors of the deviation."""
    assert values.std() == pytest.approx(0.02, rel=4 / np.sqrt(2 * values.size)), path
    assert len(np.unique(values)) > 0.99 * values.size, path


def is_fixed(path, values):
    assert (values == (1 if path.endswith('scale') else 0)).all(), path
    assert path.endswith(('scale', 'bias', 'mask_token')), path


@pytest.mark.parametrize(('encoder', 'decoder'), FAMILY)
def test_every_parameter_of_the_family_has_the_scale_of_its_kind(encoder, decoder):
    masking = cfg.Masking(strategy='consistent')
    model = tiny_config(
        model=tiny_model(encoder, decoder, positions='learned', image_size=(64, 64)), masking=masking
    ).model
    # MultiMAE's mask token starts at 0, MAE's does not.
    normal = r'.*(cls|position_table|modality/\w+/bias%s)' % ('' if decoder == 'multimae' else '|mask_token')
    seen = set()
    for path, values in arrays(fusmae.init_params(model, jax.random.key(1))):
        if path.endswith('kernel'):
            is_uniform(path, values, limit(path, values.shape))
        elif re.fullmatch(normal, path):
            is_normal(path, values)
        else:
            is_fixed(path, values)
        seen.add(path.rsplit('/', 1)[-1])
    assert seen >= {'kernel', 'bias', 'scale', 'cls', 'position_table'}


def test_dino_mm_starts_as_its_code_does():
    config = tiny()
    for path, values in arrays(dino.init_params(config.model, config.dino, jax.random.key(3))):
        if re.fullmatch(r'backbone/patch/stack/(kernel|bias)', path):
            is_uniform(path, values, 1 / np.sqrt(14 * 4 * 4))
        elif path == 'head/last/kernel':
            is_uniform(path, values, 1 / np.sqrt(256))
        elif path.endswith(('kernel', 'cls', 'position_table')):
            is_normal(path, values)
        else:
            is_fixed(path, values)


def test_a_fresh_head_is_small_and_has_no_bias():
    head = heads.init_head(jax.random.key(2), 300, 40)
    assert np.std(head['kernel']) == pytest.approx(0.01, rel=0.03)
    assert (np.asarray(head['bias']) == 0).all()
