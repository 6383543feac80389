"""Checksums of the parameters: whether the copies on different devices still agree, bit for bit.

Replicas are never compared in training: a device that computes wrongly, or a bit that flips in its memory,
makes them drift apart in silence. Each device hashes the shards that it holds; those that hold the same
shard of an array must come to the same number.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, UInt32

from fusmae_jax.errors import DivergedError
from fusmae_jax.parallel.processes import read
from fusmae_jax.parallel.rules import Params, path_name

MAX_LINES = 5  # of the arrays that differ


class ReplicaError(DivergedError):
    """Copies of the parameters differ between devices."""


def make_check(abstract: Params, mesh: Mesh) -> Callable[[Params, int], None]:
    """The function `check(params, step)`, which raises ReplicaError if two copies differ.

    It is compiled here. Every process calls it, and each sees the numbers of all devices, so all stop
    together. It reads the parameters once and waits for the result: milliseconds, to be spent every some
    hundred steps.

    Args:
        abstract: shapes, types and shardings of the parameters.
        mesh: the one they lie on.
    """
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    names = [path_name(path) for path, _ in leaves]
    holders = [_holders(leaf, mesh) for _, leaf in leaves]
    layout = jax.tree.map(lambda leaf: leaf.sharding.spec, abstract)

    def local(params: Params) -> UInt32[Array, 'devices leaves']:
        hashes = jnp.stack([_hash(shard) for shard in jax.tree.leaves(params)])
        return jax.lax.all_gather(hashes, mesh.axis_names)

    # The copies are what is in doubt, so the replication that shard_map would infer is not assumed.
    table = jax.shard_map(local, mesh=mesh, in_specs=(layout,), out_specs=PartitionSpec(), check_vma=False)
    compiled = jax.jit(table).lower(abstract).compile()
    devices = [str(device) for device in mesh.devices.flat]

    def check(params: Params, step: int) -> None:
        hashes = np.asarray(read('checksum', compiled(params)))
        problems = []
        for name, column, groups in zip(names, hashes.T, holders):
            for group in groups:
                if odd := _odd(column[group], group):
                    problems.append(f'{name} on {", ".join(devices[index] for index in odd)}')
        if problems:
            more = f', and {len(problems) - MAX_LINES} more' if len(problems) > MAX_LINES else ''
            raise ReplicaError(
                f'step {step}: copies of the parameters differ between devices: '
                f'{"; ".join(problems[:MAX_LINES])}{more}. A device or its memory is at fault; take it out, '
                'and give the same command again: it goes on from the newest checkpoint'
            )

    return check


def _holders(leaf: Any, mesh: Mesh) -> list[list[int]]:
    """Groups of device numbers, in the order of the mesh, that hold the same shard of an array."""
    where = leaf.sharding.devices_indices_map(leaf.shape)
    groups = defaultdict(list)
    for number, device in enumerate(mesh.devices.flat):
        groups[str(where[device])].append(number)
    return list(groups.values())


def _odd(hashes: np.ndarray, group: list[int]) -> list[int]:
    """The devices that are not with the majority; all of them, where there is none."""
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) == 1:
        return []
    if 2 * counts.max() <= len(group):
        return group
    return [number for number, value in zip(group, hashes) if value != values[counts.argmax()]]


def _hash(shard: Array) -> UInt32[Array, '']:
    """A number that the bits of an array determine: sum over its words of a mixed word, modulo 2^32.

    A sum does not depend on the order in which a device adds, and the mixing keeps changes in two words
    from cancelling, as two flipped sign bits would.
    """
    width = shard.dtype.itemsize
    if shard.dtype == jnp.bool_:
        words = shard.astype(jnp.uint32)
    else:
        words = jax.lax.bitcast_convert_type(shard, jnp.dtype(f'uint{min(8 * width, 32)}')).astype(jnp.uint32)
    words = words.reshape(math.prod(words.shape))
    words = words + jnp.arange(words.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    words = (words ^ (words >> 16)) * jnp.uint32(0x7FEB352D)
    words = (words ^ (words >> 15)) * jnp.uint32(0x846CA68B)
    return jnp.sum(words ^ (words >> 16), dtype=jnp.uint32)
