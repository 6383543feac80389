"""How two trees of arrays differ, in words: what a checkpoint holds against what is asked of it."""

from typing import Any

import jax

from fusmae_jax.parallel.rules import path_name


def difference(wanted: Any, stored: Any) -> list[str]:
    """What differs between two trees in names, shapes and types, one line each."""
    left, right = ({path_name(path): leaf for path, leaf in _leaves(tree)} for tree in (wanted, stored))
    lines = [f'{name}: not in the checkpoint' for name in left if name not in right]
    lines += [f'{name}: in the checkpoint only' for name in right if name not in left]
    for name in sorted(left.keys() & right.keys()):
        expected, found = _describe(left[name]), _describe(right[name])
        if expected != found:
            lines.append(f'{name}: expected {expected}, the checkpoint has {found}')
    return lines


def _leaves(tree: Any) -> Any:
    return jax.tree_util.tree_leaves_with_path(tree)


def _describe(leaf: Any) -> str:
    return f'{leaf.dtype}{list(leaf.shape)}'
