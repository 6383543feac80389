"""`python main.py compare`: our model against the PyTorch reference, stage by stage and step by step.

Both frameworks get the same batch, masks and weights (`sides`). Errors are rows with limits: of every stage
of the forward pass, of the gradient of every parameter, and of the losses of a short training run.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from fusmae_jax import installed
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.interop import sides
from fusmae_jax.interop.weights.files import read_state
from fusmae_jax.interop.weights.importers import import_weights
from fusmae_jax.parallel.rules import Params

# Largest relative error of stages, losses, gradients and the losses of the steps.
TOLERANCE = {
    'float64': {'stage': 1e-9, 'loss': 1e-9, 'gradient': 1e-9, 'steps': 1e-8},
    'float32': {'stage': 2e-5, 'loss': 2e-6, 'gradient': 2e-4, 'steps': 1e-4},
}
BFLOAT16_RATIO = 1.1  # our error against float32 may be this many times PyTorch's
FLOOR = 1e-6  # of the global gradient norm: below it a gradient counts as zero
STEPS, WARMUP, CASES, BATCH = 100, 10, 4, 2


@dataclasses.dataclass(frozen=True)
class ParityRow:
    """One line of the comparison. With bfloat16, `reference` is PyTorch's own relative error."""

    kind: str  # 'stage' | 'loss' | 'gradient' | 'steps'
    name: str
    max_abs: float
    relative: float
    limit: float  # of `relative`
    reference: float | None = None

    @property
    def ok(self) -> bool:
        """Within the limit; NaN is not."""
        return self.relative <= self.limit


def compare(config: Config, *, weights: str = '', dtype: str = 'float32', as_json: bool = False) -> int:
    """Prints the comparison of a configuration; 1 when anything is past its tolerance, else 0.

    Args:
        config: the run's configuration; its model, masking strategy, loss and optimizer are used.
        weights: a file with the reference's names (what `export` writes), or '' for fresh parameters.
        dtype: 'float32', 'float64' or 'bfloat16'.
        as_json: prints one JSON object instead of a table.
    """
    if dtype not in (*TOLERANCE, 'bfloat16'):
        raise InputError(f'--dtype={dtype}: valid: {", ".join([*TOLERANCE, "bfloat16"])}')
    check_family(config)
    installed.need('parity', 'compare')
    import torch

    params = import_weights('fusmae', read_state(weights), config.model)[0] if weights else None
    if dtype == 'bfloat16':
        rows = compare_bfloat16(config, params=params)
    else:
        rows = compare_exactly(config, params=params, dtype=dtype)
    settings = {
        'dtype': dtype,
        'numerics': dataclasses.asdict(config.model.numerics),
        'optimizer': dataclasses.asdict(config.optimizer),
        'jax': f'{jax.__version__} on {jax.devices()[0].platform}',
        'torch': f'{torch.__version__} on cpu',
        'weights': weights or 'fresh, plus noise',
    }
    if as_json:
        lines = [dataclasses.asdict(row) | {'ok': row.ok} for row in rows]
        print(json.dumps({'settings': settings, 'rows': lines, 'ok': all(row.ok for row in rows)}))
    else:
        _print(settings, rows)
    return 0 if all(row.ok for row in rows) else 1


def check_family(config: Config) -> None:
    """Raises InputError for members of the family that the PyTorch reference does not have."""
    has = {
        'model.fusion.encoder': (config.model.fusion.encoder, ('xae', 'none')),
        'model.fusion.decoder': (config.model.fusion.decoder, ('xad', 'none')),
        'masking.strategy': (config.masking.strategy, ('independent', 'consistent')),
    }
    raise_all(
        'the PyTorch reference does not have this model',
        [
            f'{path}={value!r}; it has {", ".join(known)}'
            for path, (value, known) in has.items()
            if value not in known
        ],
    )


def _print(settings: dict[str, Any], rows: list[ParityRow]) -> None:
    console = rich.console.Console()
    console.width = max(console.width, 110)  # a file or a pipe has no width of its own
    for name, value in settings.items():
        text = ', '.join(f'{k}={v}' for k, v in value.items()) if isinstance(value, dict) else str(value)
        console.print(f'{name}: {text}', highlight=False)
    columns = ['kind', 'name', 'max abs error', 'relative error', 'limit']
    if any(row.reference is not None for row in rows):
        columns.append("PyTorch's own")
    table = rich.table.Table(*columns)
    first = next((row for row in rows if not row.ok), None)
    for row in rows:
        cells = [row.kind, row.name, *(f'{x:.1e}' for x in (row.max_abs, row.relative, row.limit))]
        if row.reference is not None:
            cells.append(f'{row.reference:.1e}')
        table.add_row(*cells, style='bold red' if row is first else None if row.ok else 'red')
    console.print(table)
    failed = sum(not row.ok for row in rows)
    verdict = (
        f'{failed} of {len(rows)} past the limit, first: {first.name}' if first else 'all within the limits'
    )
    console.print(verdict, highlight=False)


def compare_exactly(
    config: Config, *, params: Params | None = None, dtype: str = 'float32', seed: int = 0, steps: int = STEPS
) -> list[ParityRow]:
    """All rows of a float32 or float64 comparison; fresh noisy parameters when none are given."""
    limits, kind = TOLERANCE[dtype], jnp.dtype(dtype)
    with jax.enable_x64(dtype == 'float64'):
        params = sides.fresh_params(config, seed, kind) if params is None else _cast(params, kind)
        cases = [sides.make_case(config, BATCH, seed + i) for i in range(CASES)]
        ours = sides.run_jax(config, cases[0], params, kind)
        theirs = sides.run_torch(config, cases[0], params, dtype)
        rows = stage_rows(ours, theirs, limits) + gradient_rows(ours, theirs, limits['gradient'])
        if steps:
            warmup = min(WARMUP, steps - 1)
            curve = sides.train_jax(config, cases, params, kind, steps, warmup)
            reference = sides.train_torch(config, cases, params, dtype, steps, warmup)
            rows += step_rows(curve, reference, limits['steps'])
    return rows


def compare_bfloat16(config: Config, *, params: Params | None = None, seeds: int = 5) -> list[ParityRow]:
    """bfloat16 against the float32 reference: our error, limited to BFLOAT16_RATIO x PyTorch's own.

    Errors are norms of differences relative to the norm of the float32 result; medians over `seeds`
    batches (and fresh parameters). Gradients are taken together, which is what an update sees.
    """
    errors: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    run_ours = sides.jax_side(config, sides.make_case(config, 1, 0).visible, jnp.bfloat16)
    for seed in range(seeds):
        weights = _cast(params or sides.fresh_params(config, seed, jnp.float32), jnp.float32)
        for key, value in _bfloat16_errors(config, weights, seed, run_ours).items():
            errors.setdefault(key, []).append(value)
    # Over batches, as roundings of a single one may add up or cancel.
    medians = {key: [float(x) for x in np.median(np.asarray(v), axis=0)] for key, v in errors.items()}
    largest = max(theirs for (kind, _), (_, _, theirs) in medians.items() if kind == 'stage')
    rows = []
    for (kind, name), (worst, ours, theirs) in medians.items():
        # The error of a loss is one number that can vanish by chance: it is held to that of the stages.
        limit = BFLOAT16_RATIO * (largest if kind == 'loss' else theirs)
        rows.append(ParityRow(kind, name, worst, ours, limit, theirs))
    return rows


def stage_rows(
    ours: sides.SideOutcome, theirs: sides.SideOutcome, limits: dict[str, float]
) -> list[ParityRow]:
    """Largest difference of each stage, relative to the largest value of the reference's stage."""
    rows = []
    for name, reference in theirs.stages.items():
        worst = float(np.max(np.abs(ours.stages[name] - reference)))
        kind = 'loss' if name.startswith('loss') else 'stage'
        rows.append(ParityRow(kind, name, worst, worst / float(np.max(np.abs(reference))), limits[kind]))
    return rows


def gradient_rows(ours: sides.SideOutcome, theirs: sides.SideOutcome, limit: float) -> list[ParityRow]:
    """Norm of the difference of each gradient, relative to max(its norm, FLOOR x the global norm)."""
    rows, floor = [], FLOOR * global_norm(theirs.gradients)
    for name, reference in theirs.gradients.items():
        # By norm: a single element may be as small as the rounding error of its neighbours.
        difference = ours.gradients[name].astype(np.float64) - reference
        size = max(float(np.linalg.norm(reference)), floor)
        error = float(np.linalg.norm(difference)) / size
        rows.append(ParityRow('gradient', name, float(np.max(np.abs(difference))), error, limit))
    return rows


def global_norm(gradients: sides.Arrays) -> float:
    """Norm of all gradients together."""
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in gradients.values())))


def step_rows(ours: list[float], theirs: list[float], limit: float) -> list[ParityRow]:
    """Largest difference of the losses up to steps 1, 10, 100, ..., relative to the reference's loss."""
    a, b = np.asarray(ours), np.asarray(theirs)
    marks = [mark for mark in (1, 10, 30, 100) if mark < len(a)] + [len(a)]
    error = np.abs(a - b)
    return [
        ParityRow('steps', f'1 to {n}', float(error[:n].max()), float((error / np.abs(b))[:n].max()), limit)
        for n in marks
    ]


def _bfloat16_errors(
    config: Config, params: Params, seed: int, run_ours: Callable[[sides.Case, Params], sides.SideOutcome]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(kind, name) -> our largest absolute error, our relative error, PyTorch's relative error."""
    case = sides.make_case(config, 4 * BATCH, seed)
    exact = sides.run_torch(config, case, params, 'float32')
    theirs = sides.run_torch(config, case, params, 'bfloat16')
    ours = run_ours(case, params)
    triples = {
        ('loss' if name.startswith('loss') else 'stage', name): (ours.stages[name], theirs.stages[name], x)
        for name, x in exact.stages.items()
    }
    together = tuple(
        np.concatenate([side.gradients[name].ravel() for name in sorted(exact.gradients)])
        for side in (ours, theirs, exact)
    )
    triples['gradient', 'all parameters'] = together  # type: ignore[assignment]
    return {
        key: (float(np.max(np.abs(np.asarray(a, np.float64) - x))), _relative(a, x), _relative(b, x))
        for key, (a, b, x) in triples.items()
    }


def _cast(params: Params, dtype: Any) -> Params:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def _relative(x: np.ndarray, reference: np.ndarray) -> float:
    x = np.asarray(x, np.float64)
    return float(np.linalg.norm(np.ravel(x - reference)) / np.linalg.norm(np.ravel(reference)))
