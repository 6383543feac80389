"""Where every parameter lives, per model and mesh; `python -m tests.support.golden_shardings` rewrites it.

A change of rules or models shows in tests/support/golden/shardings.json, and is looked at there.
"""

import json
from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from fusmae_jax.config.build import build
from fusmae_jax.models import fusmae
from fusmae_jax.parallel.mesh import AXES
from fusmae_jax.parallel.rules import path_name, spec_for
from fusmae_jax.shipped.configs.pretrain import get_config

FILE = Path(__file__).parent / 'golden' / 'shardings.json'
MODELS = ('xae', 'xaed', 'mae_s2', 'stack', 'multimae_dirichlet', 'xae,L', 'xae,H')
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8), (8, 32))


def found() -> dict[str, dict[str, dict[str, str]]]:
    """model -> parameter (with its shape) -> mesh -> the axes of the array and what splits them."""
    return {name: _of(name) for name in MODELS}


def _of(name: str) -> dict[str, dict[str, str]]:
    model = build(get_config(name).to_dict()).model
    shapes = fusmae.param_shapes(model, 'float32')
    result = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        parameter = path_name(path)
        specs = {f'{d}x{f}': spec_for(parameter, leaf.shape, AbstractMesh((d, f), AXES)) for d, f in MESHES}
        described = {
            mesh: '-' if not any(spec) else ' '.join(s or '.' for s in spec) for mesh, spec in specs.items()
        }
        result[f'{parameter} {list(leaf.shape)}'] = described
    return result


if __name__ == '__main__':
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(found(), indent=1) + '\n')
