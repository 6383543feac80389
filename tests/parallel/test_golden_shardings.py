"""Where the parameters live is written down, and a mesh really divides what a device holds."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from fusmae_jax.config.build import build
from fusmae_jax.config.run import Parallel
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.parallel.rules import path_name, shardings
from fusmae_jax.shipped.configs.pretrain import get_config
from fusmae_jax.train.setup import make_setup
from tests.support.golden_shardings import FILE, found
from tests.support.helpers import CONTRACT


def test_every_sharding_is_the_one_written_down():
    expected, here = json.loads(FILE.read_text()), found()
    assert here.keys() == expected.keys()
    for name, parameters in expected.items():
        assert here[name] == parameters, f'{name}: `python -m tests.support.golden_shardings` rewrites them'


@functools.cache
def state_of_vit_b():
    """The shapes of the train state."""
    setup = make_setup(build(get_config('xae').to_dict()), CONTRACT, 10_000, jax.devices())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), setup.abstract_state())


@pytest.mark.parametrize('fsdp', [2, 4, 8])
def test_a_device_holds_its_share_of_vit_b(fsdp):
    """Parameters and moments shrink as 1 / fsdp within 2 %; what stays whole is small, and known."""
    state, mesh = state_of_vit_b(), make_mesh(Parallel(8 // fsdp, fsdp), jax.devices())
    for part in ('params', 'opt_state'):
        leaves = jax.tree_util.tree_leaves_with_path(state[part])
        where = jax.tree.leaves(shardings(state[part], mesh))
        whole = sum(leaf.size for _, leaf in leaves)
        held = sum(math.prod(place.shard_shape(leaf.shape)) for (_, leaf), place in zip(leaves, where))
        np.testing.assert_allclose(held / whole, 1 / fsdp, rtol=0.02)
        copies = {path_name(path) for (path, _), place in zip(leaves, where) if place.is_fully_replicated}
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
