"""`python main.py predict`: a scene of any size to a map of classes and their probabilities, or of numbers.

Windows are those of `encode`, but as large on the ground as the records that the head learned from, on a grid
of the reference system, read, encoded and merged in memory that does not grow with the rows. A pixel of the
map is one of the labels that the head learned; where windows overlap its probabilities are a tapered mean.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import rasterio

from fusmae_jax import __version__
from fusmae_jax.config.build import to_dict
from fusmae_jax.embed import check, ground
from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.run import anchor_notes, gdal_options, lay_out
from fusmae_jax.embed.settings import EncodeConfig, check_settings, option_name
from fusmae_jax.embed.stream import EncodeJob, rows_of_cells
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fingerprint, open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense.features import check_preset
from fusmae_jax.eval.dense.stored import StoredHead, bands_of, read_head
from fusmae_jax.geo.grid import Grid
from fusmae_jax.input.contract import LabelMap, NumberMap
from fusmae_jax.predict.dates import check_order
from fusmae_jax.predict.output import ClassOutput, NumberOutput
from fusmae_jax.predict.predictor import DATES, make_predictor

T = TypeVar('T')


def predict(
    config: EncodeConfig,
    files: Mapping[str, str],
    checkpoint: str,
    head: str,
    out: str,
    probabilities: str,
    before: Mapping[str, str] = {},
) -> int:
    """Writes the map of a scene; returns the exit code 0.

    Args:
        config: what is known of the files, and how windows lie; `output`, `dtype`, `compress`, `cog` and
            `stac` do not apply.
        files: sensor -> GeoTIFF, of the sensors that the head learned from.
        checkpoint: the encoder that the head was trained on; of a fine-tuning
            `encoder.safetensors` beside it.
        head: a file of `heads/` of a `dense_probe`, or `head.npz` of a point of a `dense_finetune`.
        out: the map of classes, or of numbers in their unit, a .tif; `out`.json says what its numbers mean.
        probabilities: a .tif with a band a class; '' for none, as of numbers.
        before: the same sensors of an earlier date, for a head that compares two; what `config` says of a
            sensor holds for both of its files.

    Raises:
        InputError: files, head, encoder and outputs do not fit together; nothing is written then.
    """
    check_settings(config)
    # Windows overlap, whatever a configuration of `encode` says of its output.
    config = dataclasses.replace(config, output='tokens')
    given = [*files.values(), *before.values()]
    targets = [_target(name, config.overwrite, given) for name in (out, probabilities) if name]
    if len({target.resolve() for target in targets}) < len(targets):
        raise InputError(f'--out and --probabilities are both {out}; they are two files, name another one')
    learned = read_head(head)
    if set(files) != set(learned.modalities):
        raise InputError(
            f'{head} was trained on {" and ".join(learned.modalities)}, given: '
            f'{" and ".join(files) or "nothing"}; give these files, or a head of these sensors'
        )
    _check_dates(config, files, before, learned, head)
    if probabilities and isinstance(learned.labels, NumberMap):
        raise InputError(
            f'{head} predicts {learned.labels.quantity}, and numbers have no probabilities; leave '
            '--probabilities out'
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**gdal_options()))
        job, grid, about = _settle(config, files, checkpoint, head, learned, stack, before)
        start = time.perf_counter()
        lines = _write(job, grid, targets, learned, about)
    count = job.layout.rows.windows * job.layout.columns.windows
    print(f'{count:,} windows in {time.perf_counter() - start:.1f} s; {grid.rows} x {grid.columns} pixels')
    for line in lines:
        print(f'  {line}')
    print(f'wrote {", ".join(map(str, targets))} and {targets[0].name}.json')
    return 0


def _check_dates(
    config: EncodeConfig, files: Mapping[str, str], before: Mapping[str, str], learned: StoredHead, head: str
) -> None:
    """Raises InputError unless there are images of as many dates as a head was trained on."""
    if learned.dates == 1 and before:
        raise InputError(
            f'{head} was trained on images of one date; leave '
            f'{option_name(next(iter(before)), before=True)} out'
        )
    if learned.dates > 1 and set(before) != set(files):
        wanted = ' and '.join(option_name(name, before=True) for name in files)
        raise InputError(
            f'{head} was trained on the change between two dates: give {wanted}, the same ground before'
        )
    for name, file in before.items():
        if all(map(os.path.exists, (file, files[name]))) and os.path.samefile(file, files[name]):
            raise InputError(
                f'{option_name(name, before=True)}={file} is the file of {option_name(name)}: nothing would '
                'have changed'
            )
    if before and config.stats == 'dataset':
        raise InputError(
            "config.stats='dataset': two dates with statistics of their own would hide what changed; leave "
            "it at 'checkpoint'"
        )


def _target(name: str, overwrite: bool, files: Sequence[str]) -> Path:
    """An output as a path; raises InputError unless it can be written."""
    out = Path(name)
    if out.suffix.lower() not in ('.tif', '.tiff'):
        raise InputError(f'{out}: a map is a GeoTIFF; let its name end in .tif')
    if not out.parent.is_dir():
        raise InputError(f'{out}: the folder {out.parent} does not exist')
    if any(out.exists() and Path(f).exists() and out.samefile(f) for f in files):
        raise InputError(f'{out} is one of the inputs')
    for file in (out, _legend(out)):
        if os.path.lexists(file) and not overwrite:
            raise InputError(f'{file} exists; name another file, or set --config.overwrite=True')
    return out


def _legend(out: Path) -> Path:
    """The file that says what the numbers of a map mean."""
    return out.with_name(f'{out.name}.json')


def _settle(
    config: EncodeConfig,
    files: Mapping[str, str],
    checkpoint: str,
    head: str,
    learned: StoredHead,
    stack: contextlib.ExitStack,
    before: Mapping[str, str] = {},
) -> tuple[EncodeJob, Grid, dict[str, Any]]:
    """Opens and checks the files, lays out the windows, compiles."""
    model = _encoder(checkpoint, head, learned)
    restricted = check.restrict(model.config, files, checkpoint)
    by_date = _opened(config, [*restricted.model.modalities], files, before, stack)
    rasters = _of_dates(by_date)
    ground.check_apart(rasters)
    extent, lines = ground.align(rasters)
    size = _ground(config, learned, head)
    pixels = {name: check.window_pixels(raster, size) for name, raster in rasters.items()}
    dates = [
        check.fit(model, restricted, of_date, {f: pixels[f'{date}{f}'] for f in of_date}, size, config)
        for date, of_date in zip(DATES, by_date)
    ]
    cells = learned.labels.size
    layout = lay_out(config, extent, size, cells, [*pixels.values()])
    notes = [*lines, *(line for fitted in dates for line in fitted.notes)]
    notes += anchor_notes(config, layout, 'numbers')
    notes += _of_head(learned, dates)
    for line in notes:
        print(line)
    if learned.temperature != 1:
        print(f'probabilities at the temperature {learned.temperature:.3f}, which was fitted with the head')
    grid = ground.output_grid(extent, (size[0] / cells[0], size[1] / cells[1]), layout.rows, layout.columns)
    predictor = make_predictor(model, dates[0], learned, layout.batch[0] * layout.batch[1], *dates[1:])
    groups = _of_dates([fitted.contract.groups for fitted in dates])
    job = EncodeJob(config, rasters, groups, layout, predictor, learned.shape.classes)
    about = {
        'fusmae_jax': __version__,
        'checkpoint': checkpoint,
        'head': head,
        'temperature': learned.temperature,
        'inputs': to_dict(groups),
        'differences': notes,
        'settings': to_dict(config),
    }
    return job, grid, about


def _opened(
    config: EncodeConfig,
    names: Sequence[str],
    files: Mapping[str, str],
    before: Mapping[str, str],
    stack: contextlib.ExitStack,
) -> list[dict[str, Raster]]:
    """The rasters of each date by field, of the sensors `names` in this order, whatever order was given."""
    by_date = [
        ground.open_rasters(config, {name: of_date[name] for name in names}, stack)
        for of_date in (files, before)
        if of_date
    ]
    if len(by_date) > 1:
        check_order(*by_date)
    return by_date


def _of_dates(each: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """What there is by field for one date or two, in one mapping."""
    return {f'{date}{field}': value for date, of_date in zip(DATES, each) for field, value in of_date.items()}


def _encoder(checkpoint: str, head: str, learned: StoredHead) -> Pretrained:
    """The encoder that a head was trained on; raises InputError for another one."""
    system = open_system(checkpoint, EncoderSettings(absent=learned.absent))
    if system.model is None or not _is_of(system.model, system.fingerprint, learned.weights):
        raise InputError(
            f'{head} was trained on an encoder with the fingerprint {learned.weights}, {checkpoint} has '
            f'{system.fingerprint}; give the checkpoint that the probe was run on, or '
            'the encoder.safetensors beside the head of a fine-tuning'
        )
    if learned.stats != 'checkpoint':
        raise InputError(
            f'{head} was trained with encoder.stats={learned.stats!r}: the statistics of its data set are '
            "not those that a scene is read with; probe with encoder.stats='checkpoint'"
        )
    check_preset(system.model.config, checkpoint)
    return system.model


def _is_of(model: Pretrained, opened: str, wanted: str) -> bool:
    """Whether a fingerprint is that of an encoder, in whichever number format this machine computes it.

    One that learned in bfloat16 on an accelerator is opened in float32 where there is none.
    """
    if opened == wanted:
        return True
    formats = (name for name in ('float32', 'bfloat16') if name != model.dtype.name)
    same = any(
        fingerprint(Pretrained(model.config, model.contract, model.params, name)) == wanted
        for name in formats
    )
    if same:
        print(f'note: the head learned from tokens in another number format than {model.dtype.name}')
    return same


def _of_head(learned: StoredHead, dates: Sequence[check.FittedFiles]) -> list[str]:
    """How the data of a head differ from those of its encoder, or from the files, in words."""
    lines = []
    if learned.accepted:
        lines.append(
            f'note: the head learned from data that differ from those of the encoder in '
            f'{", ".join(learned.accepted)}, as was accepted; are these files like the former?'
        )
    for name, bands in learned.bands.items():
        there = [bands_of(fitted.contract, fitted.config)[name] for fitted in dates]
        if new := sorted({band for each in there for band in each} - {*bands}):
            lines.append(
                f'note: {name}: the head learned without {", ".join(new)}, for which the mean stood; the '
                'files have them: leave them out'
            )
        if gone := [band for band in bands if not all(band in each for each in there)]:
            lines.append(f'note: {name}: the head learned with {", ".join(gone)}, which the files lack')
    return lines


def _ground(config: EncodeConfig, learned: StoredHead, head: str) -> tuple[float, float]:
    """Metres (rows, columns) of a window: those of the records that the head learned from.

    They need not be those of the encoder, which may have been probed on images of another size.
    """
    labels = learned.labels
    rows, columns = (round(count * labels.resolution, 6) for count in labels.size)
    if config.window and (config.window, config.window) != (rows, columns):
        raise InputError(
            f'config.window={config.window:g}: {head} was trained on images of {rows:g} x {columns:g} m, and '
            'windows are as large; leave it at 0'
        )
    return rows, columns


def _write(
    job: EncodeJob, grid: Grid, targets: list[Path], learned: StoredHead, about: dict[str, Any]
) -> list[str]:
    """Writes everything under other names first; returns what is said of the map."""
    labels = learned.labels
    output = ClassOutput(labels) if isinstance(labels, LabelMap) else NumberOutput(labels)
    about |= output.about
    parts = [target.with_name(f'.{target.name}.{os.getpid()}.part') for target in targets]
    try:
        writers = output.open(parts, grid, about)
        try:
            some = False
            for values, valid in rows_of_cells(job):
                some |= bool(valid.any())
                for writer, rows in zip(writers, output.rows(values, valid)):
                    writer.write(rows)
            if not some:
                names = ', '.join(str(raster.file) for raster in job.rasters.values())
                raise InputError(
                    f'{names}: not one pixel that all dates measured, nothing to map; are the nodata values '
                    'right?'
                )
            for writer in writers:
                writer.finish()
        except BaseException:
            for writer in writers:
                writer.abort()
            raise
        _legend(parts[0]).write_text(json.dumps(about, indent=2) + '\n')
        # A kill in between leaves a map without a legend, not with that of another one.
        _legend(targets[0]).unlink(missing_ok=True)
        for part, target in zip(parts, targets):
            os.replace(part, target)
        os.replace(_legend(parts[0]), _legend(targets[0]))
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
            _legend(part).unlink(missing_ok=True)
    return output.lines()
