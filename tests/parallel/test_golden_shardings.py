"""Where the parameters live is written down, and a mesh really divides what a device holds."""

import json
import math

import jax
import numpy as np
import pytest

from configs.pretrain import get_config
from fusmae_jax.config.build import build
from fusmae_jax.parallel.rules import path_name
from fusmae_jax.train.setup import make_setup
from tests.support.golden_shardings import FILE, found
from tests.support.helpers import CONTRACT


def test_every_sharding_is_the_one_written_down():
    expected, here = json.loads(FILE.read_text()), found()
    assert here.keys() == expected.keys()
    for name, parameters in expected.items():
        assert here[name] == parameters, f'{name}: `python -m tests.support.golden_shardings` rewrites them'


@pytest.mark.parametrize('fsdp', [2, 4, 8])
def test_a_device_holds_its_share_of_vit_b(fsdp):
    """Parameters and moments shrink as 1 / fsdp within 2 %; what stays whole is small, and known."""
    values = get_config('xae').to_dict()
    values['parallel'] |= {'data': 8 // fsdp, 'fsdp': fsdp}
    setup = make_setup(build(values), CONTRACT, 10_000, jax.devices())
    state = setup.abstract_state()
    for part in ('params', 'opt_state'):
        leaves = jax.tree_util.tree_leaves_with_path(state[part])
        whole = sum(leaf.size for _, leaf in leaves)
        held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for _, leaf in leaves)
        np.testing.assert_allclose(held / whole, 1 / fsdp, rtol=0.02)
        copies = {path_name(path) for path, leaf in leaves if leaf.sharding.is_fully_replicated}
        small = (
            'scale',
            'bias',
            'cls',
            'mask_token',
            'count',
            'joined/inner_state/mu',
            'joined/inner_state/nu',
        )
        large = [name for name in copies if not name.endswith(small)]
        assert not large
