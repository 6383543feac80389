"""Importing other people's weights: Hugging Face ViT and ViTMAE, timm, MAE, DINO-MM, SatViT, MultiMAE.

`import_weights(layout, state, model)` reads a state dict of name -> numpy array (see `files.read_state`).
What a file lacks stays as it is in `base`, what has no place is listed as unused, and both are in the
report; a name that is neither is an error. Layer-norm epsilons are not in such files: set
`numerics.norm_eps` (timm, DINO-MM, MultiMAE 1e-6; SatViT 1e-5; Hugging Face in its config, 1e-12).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fusmae_jax.config.run import Modality, Model
from fusmae_jax.errors import nearest, raise_all
from fusmae_jax.interop.weights import positions
from fusmae_jax.interop.weights.foreign import LAYOUTS
from fusmae_jax.interop.weights.layouts import STACK, reference_rules
from fusmae_jax.interop.weights.rules import (
    ImportOptions,
    ImportPlan,
    ImportReport,
    State,
    check_state,
    flatten,
    ours_shapes,
    to_ours,
    unflatten,
)


def import_weights(
    layout: str,
    state: State,
    model: Model,
    base: Mapping[str, Any] | None = None,
    options: ImportOptions | None = None,
) -> tuple[dict[str, Any], ImportReport]:
    """Parameters of `model` from a file of another project.

    Args:
        layout: 'hf_vit', 'hf_vitmae', 'timm', 'mae', 'dino_mm', 'satvit', 'multimae', or 'fusmae' for the
            PyTorch reference's names.
        state: name -> numpy array.
        model: the resolved model settings.
        base: our parameters, nested; they stay where the file has none.
        options: see `rules.ImportOptions`.

    Returns:
        Nested parameters and the report.

    Raises:
        InputError: one message with every difference between the file and the model.
    """
    options = options or ImportOptions()
    if layout not in LAYOUTS:
        raise_all('import', [f'layout={layout!r}; {nearest(layout, LAYOUTS)}'])
    if model.fusion.encoder == 'stack' and layout != 'fusmae':
        return _import_stacked(layout, state, model, base, options)
    plan = LAYOUTS[layout](state, model, options)
    report = ImportReport(notes=plan.notes)
    # Apart from the rules, which know no tables: ours may be of another kind or grid.
    tables = {name: plan.state.pop(name) for name in (plan.table, plan.decoder_table) if name in plan.state}
    problems, report.unused = check_state(plan.rules, plan.state, plan.ignore)
    problems += plan.problems
    shapes = ours_shapes(reference_rules(model))
    flat_base = flatten(base or {})
    made = {rule.ours for rule in plan.rules} | ({positions.TABLE} if plan.table else set())
    report.kept = [path for path in shapes if path not in made]
    if lacking := [path for path in report.kept if path not in flat_base]:
        problems.append(f'the file has no weights for {", ".join(lacking)}; give `base` parameters for them')
    # Not yet raised: one message names what is wrong with the tables too.
    params = {} if problems else to_ours(plan.rules, plan.state)
    placed = _Tables(plan, tables, model, options)
    report.notes += placed.notes
    report.unused += placed.unused
    raise_all(f'{layout} weights do not fit the model', problems + placed.problems)
    params.update(placed.learned)
    if plan.cls_row and plan.table:
        # Our CLS has no position: the token with its row added is the same sum.
        params['encoder/cls'] = params['encoder/cls'] + tables[plan.table].reshape(-1, model.width)[0]
        report.notes.append('the positional row of CLS was added to CLS')
    # Before those that are kept come in, which are in our order already.
    params = positions.turn(params, placed.turned)
    report.imported = sorted(params)
    params.update({path: flat_base[path] for path in report.kept})
    return unflatten({path: params[path] for path in shapes}), report


def _import_stacked(
    layout: str, state: State, model: Model, base: Mapping[str, Any] | None, options: ImportOptions
) -> tuple[dict[str, Any], ImportReport]:
    """Parameters of a model that stacks the bands of its sensors: those of one sensor that has them all.

    Their trees are the same; the numbers of a stacked patch lie sensor by sensor.
    """
    bands = tuple(band for modality in model.modalities.values() for band in modality.bands)
    single = dataclasses.replace(
        model, modalities={STACK: Modality(bands)}, fusion=dataclasses.replace(model.fusion, encoder='none')
    )
    params, report = import_weights(layout, state, single, base, options)
    flat, order = flatten(params), stacked_order(model)
    for path, axis in ((f'encoder/patch/{STACK}/kernel', 0), (f'decoders/{STACK}/predict/kernel', 1)):
        if path in report.imported:
            flat[path] = np.take(flat[path], order, axis)
    if f'decoders/{STACK}/predict/bias' in report.imported:
        flat[f'decoders/{STACK}/predict/bias'] = flat[f'decoders/{STACK}/predict/bias'][order]
    return unflatten(flat), report


def stacked_order(model: Model) -> np.ndarray:
    """Where the numbers of a stacked patch stand in a patch (row, column, band) of all its bands."""
    counts = [len(modality.bands) for modality in model.modalities.values()]
    index = np.arange(model.patch_size**2 * sum(counts)).reshape(-1, sum(counts))
    return np.concatenate([part.ravel() for part in np.split(index, np.cumsum(counts)[:-1], axis=1)])


class _Tables:
    """What the positional tables of a file, those of the encoder and of the decoders, ask for."""

    def __init__(
        self, plan: ImportPlan, tables: Mapping[str, np.ndarray], model: Model, options: ImportOptions
    ):
        self.model, self.options = model, options
        self.turned = ''  # streams whose residual features are to be turned: '', 'e', 'd' or 'ed'
        self.learned: dict[str, np.ndarray] = {}  # the encoder's table, if the model has one
        self.notes: list[str] = []
        self.unused: list[str] = []
        self.problems: list[str] = []
        if plan.table:
            self._read(plan, plan.table, tables.get(plan.table), 'e')
        if plan.decoder_table:
            self._read(plan, plan.decoder_table, tables.get(plan.decoder_table), 'd')

    def _read(self, plan: ImportPlan, name: str, table: np.ndarray | None, stream: Literal['e', 'd']) -> None:
        """Takes in the table of the encoder (e) or the decoders (d)."""
        model = self.model
        width = model.width if stream == 'e' else model.decoder.width
        if table is None or table.shape[-1] != width or table.ndim != 3:
            fault = 'is missing' if table is None else f'has shape {table.shape}'
            self.problems.append(f'{name} {fault}, expected (1, tokens, {width})')
            return
        rows = table[0, 1:] if plan.cls_row else table[0]
        side = round(len(rows) ** 0.5)
        grid = next((g for g in (self.options.grid, plan.grid) if g != (0, 0)), (side, side))
        if grid[0] * grid[1] != len(rows):
            self.problems.append(
                f'{name} has {len(rows)} patch rows, which is no {grid} grid; give options.grid'
            )
            return
        if stream == 'd' and plan.cls_row and np.any(table[0, 0]):
            self.problems.append(f'{name}: the row of CLS is not zero; our decoders give CLS no position')
        if stream == 'e' and model.positions == 'learned':
            self.learned[positions.TABLE] = positions.interpolate(rows, grid, model.grid)
            if grid != model.grid:
                self.notes.append(f'{name}: bicubic from a {grid} to a {model.grid} grid')
            return
        kind = positions.recognise(rows, grid)
        if kind == 'learned':
            self._drop(name, stream)
            return
        if grid != model.grid:
            self.notes.append(f'{name}: positions are computed for the {model.grid} grid, not interpolated')
        if kind == 'column_first':
            self.turned += stream
            self.notes.append(
                f'{name} has the column half first: all weights along those features are turned by half the '
                'width'
            )

    def _drop(self, name: str, stream: Literal['e', 'd']) -> None:
        """A learned table in the file of a model whose positions are sine-cosine."""
        hint = "set model.positions='learned'" if stream == 'e' else 'our decoders have fixed positions only'
        if self.options.drop_positions:
            self.unused.append(name)
        else:
            self.problems.append(f'{name} is not a sine-cosine table: {hint}, or options.drop_positions=True')
