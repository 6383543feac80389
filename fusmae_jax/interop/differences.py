"""Errors between the two frameworks as rows with limits: stages, gradients, training steps, bfloat16."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusmae_jax.config.run import Config
from fusmae_jax.interop import sides

# Largest relative error of stages, losses, gradients and the losses of the steps.
TOLERANCE = {
    'float64': {'stage': 1e-9, 'loss': 1e-9, 'gradient': 1e-9, 'steps': 1e-8},
    'float32': {'stage': 2e-5, 'loss': 2e-6, 'gradient': 2e-4, 'steps': 1e-4},
}
BFLOAT16_RATIO = 1.2  # our error against float32 may be this many times PyTorch's
FLOOR = 1e-6  # of the global gradient norm: below it a gradient counts as zero
STEPS, WARMUP, CASES, BATCH = 100, 10, 4, 2


@dataclasses.dataclass(frozen=True)
class Row:
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


def stage_rows(ours: sides.Outcome, theirs: sides.Outcome, limits: dict[str, float]) -> list[Row]:
    """Largest difference of each stage, relative to the largest value of the reference's stage."""
    rows = []
    for name, reference in theirs.stages.items():
        worst = float(np.max(np.abs(ours.stages[name] - reference)))
        kind = 'loss' if name.startswith('loss') else 'stage'
        rows.append(Row(kind, name, worst, worst / float(np.max(np.abs(reference))), limits[kind]))
    return rows


def gradient_rows(ours: sides.Outcome, theirs: sides.Outcome, limit: float) -> list[Row]:
    """Norm of the difference of each gradient, relative to max(its norm, FLOOR x the global norm)."""
    rows, floor = [], FLOOR * global_norm(theirs.gradients)
    for name, reference in theirs.gradients.items():
        difference = ours.gradients[name].astype(np.float64) - reference
        size = max(float(np.linalg.norm(reference)), floor)
        error = float(np.linalg.norm(difference)) / size
        rows.append(Row('gradient', name, float(np.max(np.abs(difference))), error, limit))
    return rows


def global_norm(gradients: sides.Arrays) -> float:
    """Norm of all gradients together."""
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in gradients.values())))


def step_rows(ours: list[float], theirs: list[float], limit: float) -> list[Row]:
    """Largest difference of the losses up to steps 1, 10, 100, ..., relative to the reference's loss."""
    a, b = np.asarray(ours), np.asarray(theirs)
    marks = [mark for mark in (1, 10, 30, 100) if mark < len(a)] + [len(a)]
    error = np.abs(a - b)
    return [
        Row('steps', f'1 to {n}', float(error[:n].max()), float((error / np.abs(b))[:n].max()), limit)
        for n in marks
    ]


def run(
    config: Config, *, params: Any = None, dtype: str = 'float32', seed: int = 0, steps: int = STEPS
) -> list[Row]:
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


def run_bfloat16(config: Config, *, params: Any = None, seeds: int = 5) -> list[Row]:
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
    medians = {key: [float(x) for x in np.median(np.asarray(v), axis=0)] for key, v in errors.items()}
    largest = max(theirs for (kind, _), (_, _, theirs) in medians.items() if kind == 'stage')
    rows = []
    for (kind, name), (worst, ours, theirs) in medians.items():
        # The error of a loss is one number that can vanish by chance: it is held to that of the stages.
        limit = BFLOAT16_RATIO * (largest if kind == 'loss' else theirs)
        rows.append(Row(kind, name, worst, ours, limit, theirs))
    return rows


def _bfloat16_errors(
    config: Config, params: Any, seed: int, run_ours: Callable[[sides.Case, Any], sides.Outcome]
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


def _cast(params: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def _relative(x: np.ndarray, reference: np.ndarray) -> float:
    x = np.asarray(x, np.float64)
    return float(np.linalg.norm(np.ravel(x - reference)) / np.linalg.norm(np.ravel(reference)))
