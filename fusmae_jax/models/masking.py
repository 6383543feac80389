"""Which patches are visible: independent and consistent masking (section 3.3 of the paper).

A mask is a permutation of the patches: the first k are visible, the rest masked. Counts are fixed, so all
shapes are static, and nothing ever has to be put back in order.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fusmae_jax.config.run import Masking


def num_visible(num_patches: int, masking: Masking) -> int:
    """Visible patches of a sensor: `int(n * (1 - ratio))`, as in MAE."""
    return int(num_patches * (1 - masking.ratio))


def sample_order(
    keys: Array, patch_valid: Mapping[str, Bool[Array, 'b n']], masking: Masking
) -> dict[str, Int[Array, 'b n']]:
    """A random order of the patches of each sensor: visible ones first.

    Args:
        keys: one random key for each sample, (b,).
        patch_valid: False for patches without a single valid pixel. They rank last, so they are visible
            only when valid ones have run out. With consistent masks a patch ranks by the number of
            sensors that lack it, so that the order stays equal across sensors.
        masking: the strategy.
    """
    consistent = masking.strategy == 'consistent'
    lacking = {name: (~valid).astype(jnp.float32) for name, valid in patch_valid.items()}
    if consistent:
        total = jnp.sum(jnp.stack(list(lacking.values())), axis=0)
        lacking = dict.fromkeys(lacking, total)
    order = {}
    for index, (name, rank) in enumerate(sorted(lacking.items())):
        sensor_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0 if consistent else index)
        noise = jax.vmap(lambda key, n=rank.shape[1]: jax.random.uniform(key, (n,)))(sensor_keys)
        order[name] = jnp.argsort(noise + rank, axis=1)
    return order
