"""Where each parameter lives: sharding rules as data, with a fallback.

A rule is (regex on the path, spec). What no rule matches is sharded over `fsdp` along its largest
dimension that divides; the leading axis of stacked blocks is left whole, since a scan slices it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Params = Mapping[str, Any]  # the parameters of a model: nested dicts of arrays
Rules = Sequence[tuple[str, PartitionSpec]]

# Small, and every device needs them whole; `joined` is the vector of their moments.
RULES: Rules = (
    (r'(^|/)bias$', PartitionSpec()),
    (r'(^|/)joined/inner_state/(mu|nu)$', PartitionSpec()),
    (r'(^|/)(cls|mask_token)$', PartitionSpec()),
    (r'(^|/)(norm\d?|query_norm|context_norm)/scale$', PartitionSpec()),
)
MIN_SIZE = 2**12  # smaller arrays are replicated: splitting them costs more than it saves
STACKED = re.compile(r'(^|/)blocks/')


def path_name(path: Any) -> str:
    """`encoder/blocks/mlp/up/kernel`, from a key path of jax.tree_util."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def spec_for(
    name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules = RULES
) -> PartitionSpec:
    """The layout of one array by its path and shape."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            return spec
    fsdp = mesh.shape['fsdp']
    if fsdp == 1 or math.prod(shape) < MIN_SIZE:
        return PartitionSpec()
    first = 1 if STACKED.search(name) else 0
    for axis in sorted(range(first, len(shape)), key=lambda axis: -shape[axis]):
        if shape[axis] % fsdp == 0:
            return PartitionSpec(*(None,) * axis, 'fsdp')
    return PartitionSpec()


def constrain_like_parameters(tree: Any, rules: Rules = RULES) -> Any:
    """Inside jit: lays a tree of the parameters' names and shapes out as the parameters are."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, spec_for(path_name(path), leaf.shape, mesh, rules)
        ),
        tree,
    )


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A NamedSharding for each leaf; an optimizer moment's path ends with that of its parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh, rules)), tree
    )
