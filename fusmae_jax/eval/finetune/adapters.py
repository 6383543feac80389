"""Low-rank adapters (LoRA, Hu et al. 2021): an encoder that is fine-tuned by a few numbers beside its own.

Every kernel W (d, e) of the blocks gets A (d, r) and B (r, e), and the encoder computes with W + A B. A
begins as N(0, 1 / d) and B at 0, where the encoder is what it was; W, and all that is no kernel of a block,
stay. There is no factor before A B: what it would do the learning rate does, which is swept. The sum is
formed once a step, before the encoder is run, so that the encoder itself knows nothing of it.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from fusmae_jax.parallel.rules import Params

LORA = 'lora'  # among the parameters, beside `encoder` and `head`
TARGETS = re.compile(r'^(block1|blocks)/.*kernel$')


def fresh(key: Array, encoder: Params, rank: int) -> dict[str, Any]:
    """`{'lora': ...}` for an encoder (arrays or shapes), or nothing for a rank of 0; traceable."""
    if not rank:
        return {}
    adapters = {}
    flat = traverse_util.flatten_dict(encoder, sep='/')
    for number, name in enumerate(sorted(name for name in flat if TARGETS.search(name))):
        *stack, rows, columns = flat[name].shape
        a = jax.random.normal(jax.random.fold_in(key, number), (*stack, rows, rank), jnp.float32)
        adapters[f'{name}/lora_a'] = a * jnp.float32(rows**-0.5)
        adapters[f'{name}/lora_b'] = jnp.zeros((*stack, rank, columns), jnp.float32)
    return {LORA: traverse_util.unflatten_dict(adapters, sep='/')}


def tuned(params: Params) -> Any:
    """The parameters of the encoder with what the adapters add; those beneath have no gradient. Traceable."""
    if LORA not in params:
        return params['encoder']
    flat = traverse_util.flatten_dict(jax.lax.stop_gradient(params['encoder']), sep='/')
    added = traverse_util.flatten_dict(params[LORA], sep='/')
    for name in (name for name in flat if TARGETS.search(name)):
        product = jnp.matmul(added[f'{name}/lora_a'], added[f'{name}/lora_b'], precision='highest')
        flat[name] = flat[name] + product.astype(flat[name].dtype)
    return traverse_util.unflatten_dict(flat, sep='/')
