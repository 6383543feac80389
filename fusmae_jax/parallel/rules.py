"""Rules over parameters by their names; where each parameter lives.

A rule is (regex on the path, value), and the first that matches decides. Sharding has a fallback: what no
rule matches is sharded over `fsdp` along its largest dimension that divides; the leading axis of stacked
blocks is left whole, since a scan slices it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from fusmae_jax.errors import raise_all

T = TypeVar('T')
# Nested dicts of arrays by name, or of whatever stands for an array: a shape, a sharding, a mask.
Params = Mapping[str, Any]
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


def matching(name: str, rules: Iterable[tuple[str, T]]) -> T | None:
    """The value of the first rule that matches; None if none does."""
    return next((value for pattern, value in rules if re.search(pattern, name)), None)


def by_name(params: Params, rules: Sequence[tuple[str, T]], title: str, advice: str) -> Any:
    """A tree with the value of each parameter's rule.

    Raises:
        InputError: `title`, with every name that no rule covers, and `advice` for each.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    raise_all(title, [f'{name}: {advice}' for name in names if matching(name, rules) is None])
    return jax.tree_util.tree_map_with_path(lambda path, _: matching(path_name(path), rules), params)


def spec_for(
    name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules = RULES
) -> PartitionSpec:
    """The layout of one array by its path and shape."""
    if (spec := matching(name, rules)) is not None:
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
