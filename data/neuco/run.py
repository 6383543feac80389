"""The command `neuco`: a CSV with one embedding a location, as NeuCo-Bench reads it.

An image of 2.64 km is cut into windows of the ground that the model learned from. Their features are averaged
over the windows with a valid pixel, then over the seasons that have such a window.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.progress import track

from fusmae_jax import __version__, storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.load import load_one
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fit
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.pooling import check_pooled, pool
from fusmae_jax.input import compatibility
from fusmae_jax.input.contract import Contract, Statistics
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.input.statistics import Moments
from fusmae_jax.models import fusmae

from ..ssl4eo_s12.schema import RESOLUTION, SIZE, TIMES
from . import cubes
from .cubes import Layout, Location
from .settings import NeucoConfig, check_settings

SAMPLE = 16  # locations, four images each, that are looked at before the model runs
# A window that is this much shorter than the image still is the only one.
LEFT_OUT = 0.05

Windows = dict[str, np.ndarray]  # sensor -> (images, rows, columns, bands)


class Encoder(NamedTuple):
    """A model ready for the windows of some locations at once."""

    run: Callable[[Windows], tuple[np.ndarray, np.ndarray]]  # features (images, width), whether of any pixel
    width: int
    notes: list[str]


def neuco(config: NeucoConfig, data: str, checkpoint: str, out: str) -> int:
    """Embeds the locations below `data` into the CSV `out`; returns the exit code 0.

    `out`.json beside it says how the numbers came about.

    Raises:
        InputError: settings, files, model and output do not fit together; nothing is written then.
    """
    check_settings(config)
    target = _target(out, config)
    model = load_one(checkpoint)
    sensors = _sensors(config, model, checkpoint)
    members = cubes.locations(Path(data), sensors, config.level)
    side = _side(model, sensors)
    starts = window_starts(side)
    layout = cubes.layout(sensors, config.level, config.s2_offset, side)
    encoder = make_encoder(config, model, layout, _sample(members, layout, starts), data)
    _check_width(config, encoder.width, checkpoint)
    for line in encoder.notes:
        print(line)
    print(
        f'{len(members):,} locations, {TIMES} seasons, {len(starts) ** 2} windows of {side} x {side} pixels '
        f'an image; {encoder.width:,} numbers a location'
    )
    begin = time.perf_counter()
    empty = _write(target, members, embeddings(config, members, layout, starts, encoder), encoder.width)
    about = {
        'fusmae_jax': __version__,
        'model': model.config.name,
        'checkpoint': checkpoint,
        'settings': to_dict(config),
        'inputs': to_dict(layout.groups),
        'differences': encoder.notes,
        'locations': len(members),
        'empty': empty,
    }
    storage.write_json(target.with_name(f'{target.name}.json'), about)
    print(f'wrote {target} in {time.perf_counter() - begin:.1f} s')
    if empty:
        print(f'note: {len(empty):,} locations have no valid pixel and zeros, such as {empty[0]}')
    return 0


def _check_width(config: NeucoConfig, width: int, source: str) -> None:
    if config.most_dims and width > config.most_dims:
        raise InputError(
            f'{source}: {config.feature!r} has {width:,} numbers, and NeuCo-Bench takes {config.most_dims:,}'
            ': take a narrower encoder or another config.feature, or config.most_dims=0 where the '
            'configuration of the benchmark sets no `embedding_dim`'
        )


def _target(name: str, config: NeucoConfig) -> Path:
    out = Path(name)
    if out.suffix.lower() != '.csv':
        raise InputError(f'--out={out}: ends in {out.suffix!r}, expected .csv')
    if not out.parent.is_dir():
        raise InputError(f'--out={out}: the folder {out.parent} does not exist')
    if os.path.lexists(out) and not config.overwrite:
        raise InputError(f'{out} exists; name another file, or set --config.overwrite=True')
    return out


def _sensors(config: NeucoConfig, model: Pretrained, source: str) -> list[str]:
    """The modalities that are read, in the order of the model."""
    known = model.config.model.modalities
    for name in config.sensors:
        if name not in known:
            raise InputError(f'config.sensors: {source} has no modality {name!r}; {nearest(name, known)}')
    if others := [name for name in known if name not in ('s1', 's2') and not config.sensors]:
        raise InputError(f'{source}: the archive has no {others[0]!r}; name others: config.sensors')
    return [name for name in known if name in (config.sensors or known)]


def _side(model: Pretrained, sensors: Sequence[str]) -> int:
    """Pixels of a window: the ground of a training record, or the whole image where none is known."""
    grounds = {
        max(group.size) * group.resolution
        for group in model.contract.first.groups.values()
        if group.modality in sensors
    }
    pixels = round(min(grounds, default=0.0) / RESOLUTION)
    return min(pixels, SIZE) or SIZE


def window_starts(side: int, length: int = SIZE) -> list[int]:
    """Where windows of `side` pixels begin along an axis of `length`, evenly, so that they cover it.

    A single window lies in the middle, and may leave out LEFT_OUT of the axis.
    """
    count = max(1, math.ceil(length / side - LEFT_OUT))
    if count == 1:
        return [(length - side) // 2]
    return np.linspace(0, length - side, count).round().astype(int).tolist()


def windows_of(image: np.ndarray, side: int, starts: Sequence[int]) -> np.ndarray:
    """The windows of images (n, rows, columns, bands), as (n x windows, side, side, bands)."""
    cut = [image[:, top : top + side, left : left + side] for top in starts for left in starts]
    return np.stack(cut, axis=1).reshape(-1, side, side, image.shape[-1])


def _read(location: Location, layout: Layout, starts: Sequence[int]) -> Windows:
    return {
        name: windows_of(cubes.read(file, name, layout.groups[name]), layout.groups[name].size[0], starts)
        for name, file in location.files.items()
    }


def _sample(members: Sequence[Location], layout: Layout, starts: Sequence[int]) -> Windows:
    """Windows of some locations, one of each image, evenly spread."""
    chosen = sorted({int(i) for i in np.linspace(0, len(members) - 1, SAMPLE).round()})
    parts = [_read(members[index], layout, starts) for index in chosen]
    every = len(starts) ** 2
    return {name: np.concatenate([part[name][::every] for part in parts]) for name in layout.groups}


def make_encoder(
    config: NeucoConfig, model: Pretrained, layout: Layout, sample: Windows, source: str
) -> Encoder:
    """The function from windows to features, once the files fit the model.

    Args:
        config: of the command.
        model: the checkpoint.
        layout: what is read.
        sample: windows whose pixels are looked at.
        source: what errors call the data.

    Raises:
        InputError: with everything that does not fit, and what to do.
    """
    contract = Contract(
        dataset='SSL4EO-S12-downstream',
        groups=layout.groups,
        products=layout.products,
        statistics={name: _measured(sample[name], layout, name) for name in layout.groups},
        statistics_split='sample',
    )
    looks = []
    for name, group in layout.groups.items():
        looks += compatibility.look(name, {name: sample[name]}, {name: group}, model.contract)
    notes = compatibility.check(looks, config.accept, source)
    settings = EncoderSettings(
        stats=config.stats, absent_bands=config.absent_bands, accept=config.accept, batch=config.batch
    )
    fitted = fit(model, contract, list(layout.groups), settings, source)
    check_pooled([config.feature], model.config.model, source)
    run = _compiled(config.feature, model, fitted.config, contract)
    one = {name: windows[:1] for name, windows in sample.items()}
    width = jax.eval_shape(run, model.params, one)[0].shape[-1]
    return Encoder(lambda windows: jax.device_get(run(model.params, windows)), width, [*notes, *fitted.notes])


def _measured(windows: np.ndarray, layout: Layout, name: str) -> Statistics:
    moments = Moments(windows.shape[-1])
    for image in windows:
        moments.add(image, layout.groups[name])
    return moments.result()


def _compiled(feature: str, model: Pretrained, config: Config, contract: Contract) -> Any:
    inputs = make_inputs(config, contract)
    # The whole model: its parameters have the names of all sensors.
    graphdef = fusmae.graph(model.config.model, model.dtype)

    def run(params: Any, windows: Mapping[str, Any]) -> tuple[Any, Any]:
        pooled, seen = pool(nnx.merge(graphdef, params), inputs(windows, None), [feature])
        return pooled[feature], seen

    return jax.jit(run)


def embeddings(
    config: NeucoConfig, members: Sequence[Location], layout: Layout, starts: Sequence[int], encoder: Encoder
) -> Iterator[tuple[np.ndarray, bool]]:
    """The embedding of each location, (width,) float32, and whether it is of any pixel."""
    images = TIMES * len(starts) ** 2
    together = max(1, config.batch // images)
    parts = [members[start : start + together] for start in range(0, len(members), together)]

    def read(part: Sequence[Location]) -> Windows:
        some = [_read(location, layout, starts) for location in part]
        # The last ones are read again and dropped: one shape is compiled.
        some += [some[-1]] * (together - len(some))
        return {name: np.concatenate([one[name] for one in some]) for name in layout.groups}

    with ThreadPoolExecutor(1) as pool_of_one:
        ahead = pool_of_one.submit(read, parts[0])
        for number, part in enumerate(track(parts, 'encoding')):
            windows = ahead.result()
            if number + 1 < len(parts):
                ahead = pool_of_one.submit(read, parts[number + 1])
            features, seen = encoder.run(windows)
            shape = together, TIMES, len(starts) ** 2
            means, some = season_mean(features.reshape(*shape, -1), seen.reshape(shape))
            yield from list(zip(means, some.tolist()))[: len(part)]


def season_mean(features: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over windows, then over seasons, of those that hold a valid pixel; zeros without any.

    Args:
        features: (locations, seasons, windows, width).
        seen: (locations, seasons, windows) bool.

    Returns:
        (locations, width) float32, and which locations have a valid pixel.
    """
    values = np.where(seen[..., None], features, 0).astype(np.float64)
    windows = values.sum(axis=2) / np.maximum(seen.sum(axis=2), 1)[..., None]
    seasons = np.any(seen, axis=2)
    mean = windows.sum(axis=1) / np.maximum(seasons.sum(axis=1), 1)[:, None]
    return mean.astype(np.float32), np.any(seasons, axis=1)


def id_of(name: str) -> str:
    """A location as the CSV names it: with the suffix of its file where a table reader would see a number.

    The loader of the benchmark takes that suffix off, and reads 0012 as 12.
    """
    try:
        float(name)
    except ValueError:
        return name
    return f'{name}{cubes.SUFFIX}'


def _write(
    target: Path, members: Sequence[Location], rows: Iterator[tuple[np.ndarray, bool]], width: int
) -> list[str]:
    """Writes the CSV, which gets its name when it is complete; returns the locations without a pixel."""
    part, empty = target.with_name(f'.{target.name}.{os.getpid()}.part'), []
    try:
        with open(part, 'w', encoding='utf-8') as stream:
            stream.write(','.join(['id', *map(str, range(width))]) + '\n')
            for location, (vector, some) in zip(members, rows, strict=True):
                if not np.isfinite(vector).all():
                    raise InputError(f'{location.name}: an embedding that is not finite; is the model sound?')
                # Nine digits are what a float32 needs to come back as it was.
                stream.write(','.join([id_of(location.name), *(f'{value:.9g}' for value in vector)]) + '\n')
                empty += [] if some else [location.name]
        # What is said of numbers never stands beside other ones, also where a kill comes in between.
        target.with_name(f'{target.name}.json').unlink(missing_ok=True)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return empty
