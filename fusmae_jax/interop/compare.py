"""`python main.py compare`: our model against the PyTorch reference, stage by stage and step by step.

Both frameworks get the same batch, masks and weights. Errors are reported for every stage of the forward
pass, for the gradient of every parameter, and for the losses of a short training run.
"""

import dataclasses
import json
from typing import Any

import jax
import rich.console
import rich.table

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.interop.differences import TOLERANCE, Row, run, run_bfloat16
from fusmae_jax.interop.weights.files import read_state
from fusmae_jax.interop.weights.importers import import_weights


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
    try:
        import torch
    except ImportError as error:
        raise InputError("compare needs PyTorch: pip install -e '.[parity]'") from error
    params = import_weights('fusmae', read_state(weights), config.model)[0] if weights else None
    if dtype == 'bfloat16':
        rows = run_bfloat16(config, params=params)
    else:
        rows = run(config, params=params, dtype=dtype)
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


def _print(settings: dict[str, Any], rows: list[Row]) -> None:
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
