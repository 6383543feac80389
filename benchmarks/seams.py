"""Has a place the same embedding whatever was cut out around it? Two cuts of one scene, cell by cell.

    python -m benchmarks.seams --checkpoint=runs/demo --out=FOLDER

writes a generated scene with both sensors, cuts pieces out of it at random pixels, embeds each as `encode`
does, and compares the cells whose footprints coincide with those of the whole scene. Also, within one scene:
what a patch is to two overlapping windows that both hold all of it, which is what merging has to bridge.
"""

import argparse
import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from fusmae_jax.embed.run import embed
from fusmae_jax.embed.settings import EncodeConfig, SensorFile
from fusmae_jax.encoders.load import load_one
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.geo.raster import open_raster
from fusmae_jax.shipped.data.generate.scene import SceneConfig, resampled, scene

LEFT, TOP, PIXEL = 399_960, 5_700_000, 10  # of a Sentinel-2 tile in UTM zone 33
CONFIG = EncodeConfig(
    s1=SensorFile(unit='dB'),
    s2=SensorFile(unit='DN', offset=0.0),
    batch=16,
    overwrite=True,
    compress='none',
    accept=('statistics',),  # a large made-up scene has other spectra than the pairs of the demo
)
VARIANTS = {  # settings of `encode`, and whether cuts begin where their cells and those of the scene coincide
    'image, centre': ({'anchor': 'image', 'merge': 'centre'}, True),
    'image, mean': ({'anchor': 'image', 'merge': 'mean'}, True),
    'ground, centre': ({'merge': 'centre'}, False),
    'ground, mean': ({'merge': 'mean'}, False),
    'ground, mean, int8': ({'merge': 'mean', 'dtype': 'int8'}, False),
}


def write_scene(folder: Path, size: int, seed: int) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """Pixels (size, size, bands) of each sensor of a generated scene, and the names of the bands."""
    made = scene(SceneConfig(seed=seed, size=size, cloud_share=0, snow_share=0), 0)
    folder.mkdir(parents=True, exist_ok=True)
    sensors = {'s1': made.s1, 's2': resampled(made)}
    return {name: (np.stack([*bands.values()], axis=-1), tuple(bands)) for name, bands in sensors.items()}


def embed_cut(
    model: Pretrained, config: EncodeConfig, sensors: dict, folder: Path, row: int, column: int, size: int
) -> tuple[dict[tuple[int, int], np.ndarray], set[tuple[int, int]]]:
    """Embeddings of a cut by the corner of their cell (millimetres), and the corners of its fixed cells."""
    files = {}
    for name, (pixels, bands) in sensors.items():
        files[name] = str(folder / f'{name}.tif')
        cut = pixels[row : row + size, column : column + size]
        place = Affine(PIXEL, 0, LEFT + column * PIXEL, 0, -PIXEL, TOP - row * PIXEL)
        with rasterio.open(
            files[name], 'w', driver='GTiff', height=cut.shape[0], width=cut.shape[1], count=cut.shape[2],
            dtype=cut.dtype.name, crs='EPSG:32633', transform=place,
        ) as dataset:  # fmt: skip
            dataset.write(np.moveaxis(cut, -1, 0))
            dataset.descriptions = bands
    out = folder / 'cut.tif'
    with contextlib.redirect_stdout(io.StringIO()):
        embed(config, files, model, 'benchmark', str(out))
    fixed = json.loads(Path(f'{out}.json').read_text())['fixed_cells']
    with open_raster(out, beside=False) as dataset:
        scales = np.float32(dataset.scales)
        values, at = np.moveaxis(dataset.read().astype(np.float32), 0, -1) * scales, dataset.transform
    corner = {(i, j): tuple(round(1000 * x) for x in at @ (j, i)) for i, j in np.ndindex(values.shape[:2])}
    inside = {
        corner[i, j]
        for i in range(*fixed['rows'])
        for j in range(*fixed['columns'])
    }  # fmt: skip
    return {corner[i, j]: values[i, j] for i, j in corner}, inside


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The length of the difference over that of the second vector."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare_cuts(
    model: Pretrained, sensors: dict, folder: Path, cuts: int, size: int, cell: int
) -> Iterator[dict]:
    """For each variant the differences of cells that a cut and the whole scene share."""
    whole = len(sensors['s1'][0])
    for name, (changes, coincide) in VARIANTS.items():
        config = dataclasses.replace(CONFIG, **changes)
        reference, known = embed_cut(model, config, sensors, folder, 0, 0, whole)
        rng = np.random.default_rng(0)
        inner, outer = [], []
        for _ in range(cuts):
            row, column = (int(i) for i in rng.integers(1, whole - size, 2))
            if coincide:
                row, column = row // cell * cell, column // cell * cell
            cut, fixed = embed_cut(model, config, sensors, folder, row, column, size)
            for place, vector in cut.items():
                if place in reference:
                    same = place in fixed and place in known
                    (inner if same else outer).append(relative(vector, reference[place]))
        yield {
            'variant': name,
            'fixed': summary(inner),
            'other': summary(outer),
            'all': summary(inner + outer),
        }


def summary(values: list[float]) -> dict[str, float]:
    """How many, the median, the 95th percentile and the largest."""
    if not values:
        return {'cells': 0}
    middle, high = np.percentile(values, [50, 95])
    return {'cells': len(values), 'median': float(middle), 'p95': float(high), 'max': max(values)}


def compare_windows(model: Pretrained, sensors: dict, shift: int, count: int) -> dict[str, float]:
    """A patch in two windows `shift` cells apart, both of which hold all of it."""
    grid = model.config.model.grid[0]
    pixels = 120
    rng = np.random.default_rng(1)
    step = pixels // grid * shift
    differences: list[float] = []
    limit = len(sensors['s1'][0]) - pixels - step
    places = rng.integers(0, limit, (count, 2))
    units = {'s1': 'dB', 's2': 'DN'}

    def tokens(extra: int) -> np.ndarray:
        images = {
            name: np.stack([array[r : r + pixels, c + extra : c + extra + pixels] for r, c in places])
            for name, (array, _) in sensors.items()
        }
        given = model.encode(images, units=units).tokens
        return sum(given.values()).reshape(count, grid, grid, -1) / len(given)

    first, second = tokens(0)[:, :, shift:], tokens(step)[:, :, : grid - shift]
    for a, b in zip(first.reshape(-1, first.shape[-1]), second.reshape(-1, first.shape[-1])):
        differences.append(relative(a, b))
    return {'shift': shift, **summary(differences)}


def main() -> None:
    """Prints one row of JSON for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--out', type=Path, required=True, help='a folder for the scene and its cuts')
    parser.add_argument('--size', type=int, default=720, help='pixels a side of the scene')
    parser.add_argument('--cut', type=int, default=430, help='pixels a side of a cut')
    parser.add_argument('--cuts', type=int, default=4)
    args = parser.parse_args()
    model = load_one(args.checkpoint)
    sensors = write_scene(args.out, args.size, seed=5)
    cell = 120 // model.config.model.grid[0]
    for shift in (1, 3):
        print(
            json.dumps({'variant': 'two windows', **compare_windows(model, sensors, shift, 16)}), flush=True
        )
    for row in compare_cuts(model, sensors, args.out, args.cuts, args.cut, cell):
        print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
