import jax.numpy as jnp

from fusmae_jax.checkpoints.tree_diff import difference


def test_difference_names_types_and_extra_leaves():
    left = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
    right = {'a': jnp.zeros(2, jnp.bfloat16), 'c': jnp.zeros(1)}
    assert difference(left, left) == []
    lines = '\n'.join(difference(left, right))
    assert 'bfloat16[2]' in lines and 'c: in the checkpoint only' in lines
