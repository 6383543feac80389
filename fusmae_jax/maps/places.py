"""Places on the ground: the cell under a coordinate, and the most similar cells as a table."""

import csv
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio.errors
import rasterio.warp

from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid

APART = 3  # cells: neighbours share windows, so that a place is similar to those around it in any case
_SPARE = (2 * APART) ** 2  # candidates for each place that is asked for, as neighbours are left out


class Place(NamedTuple):
    """One cell, with the middle of its footprint."""

    rank: int
    longitude: float
    latitude: float
    x: float
    y: float
    row: int
    column: int
    similarity: float


def parse(text: str) -> tuple[float, float]:
    """Longitude and latitude of `LON,LAT`; raises InputError for anything else."""
    try:
        longitude, latitude = (float(part) for part in text.split(','))
    except ValueError:
        raise InputError(
            f'--query={text}: give longitude and latitude in degrees, as --query=13.4,52.5'
        ) from None
    if not (abs(longitude) <= 180 and abs(latitude) <= 90):
        raise InputError(
            f'--query={text}: longitude lies within 180 degrees, latitude within 90; longitude comes first'
        )
    return longitude, latitude


def cell_at(grid: Grid, longitude: float, latitude: float) -> tuple[int, int]:
    """Row and column of the cell under a coordinate; raises InputError outside of the grid."""
    try:
        (x,), (y,) = rasterio.warp.transform('EPSG:4326', grid.crs, [longitude], [latitude])
    except rasterio.errors.RasterioError:
        x = y = math.nan
    row, column = (grid.top - y) / grid.step_y, (x - grid.left) / grid.step_x
    if not (0 <= row < grid.rows and 0 <= column < grid.columns):
        left, bottom, right, top = rasterio.warp.transform_bounds(grid.crs, 'EPSG:4326', *grid.bounds)
        raise InputError(
            f'--query={longitude:g},{latitude:g} lies outside of the embeddings: longitude {left:.4f} to '
            f'{right:.4f}, latitude {bottom:.4f} to {top:.4f}'
        )
    return int(row), int(column)


class Best:
    """The most similar cells of a stream of rows, no two of them close to each other or to the query."""

    def __init__(self, count: int, query: tuple[int, int]):
        self.count, self.query = count, query
        self._kept = np.empty((0, 3))  # similarity, row, column

    def add(self, row: int, similarity: np.ndarray) -> None:
        """Takes in rows of cells (rows, columns), NaN without data."""
        rows, columns = np.nonzero(np.isfinite(similarity))
        new = np.stack([similarity[rows, columns], rows + row, columns], axis=1)
        both = np.concatenate([self._kept, new])
        order = np.lexsort((both[:, 2], both[:, 1], -both[:, 0]))
        self._kept = both[order[: (self.count + 1) * _SPARE]]

    def places(self, grid: Grid) -> list[Place]:
        """The places, the best first."""
        chosen: list[tuple[float, int, int]] = []
        taken = [self.query]
        for value, row, column in self._kept.tolist():
            at = int(row), int(column)
            if len(chosen) < self.count and all(
                max(abs(at[0] - r), abs(at[1] - c)) >= APART for r, c in taken
            ):
                taken.append(at)
                chosen.append((value, *at))
        return [_place(grid, rank, *one) for rank, one in enumerate(chosen, 1)]


def _place(grid: Grid, rank: int, similarity: float, row: int, column: int) -> Place:
    x, y = grid.left + (column + 0.5) * grid.step_x, grid.top - (row + 0.5) * grid.step_y
    (longitude,), (latitude,) = rasterio.warp.transform(grid.crs, 'EPSG:4326', [x], [y])
    return Place(rank, round(longitude, 7), round(latitude, 7), x, y, row, column, round(similarity, 6))


def write_csv(file: Path, places: list[Place]) -> None:
    """A row for each place."""
    with file.open('w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(Place._fields)
        writer.writerows(places)


def write_geojson(file: Path, places: list[Place]) -> None:
    """A point for each place, in longitude and latitude."""
    features = [
        {
            'type': 'Feature',
            'geometry': {'type': 'Point', 'coordinates': [place.longitude, place.latitude]},
            'properties': {'rank': place.rank, 'similarity': place.similarity},
        }
        for place in places
    ]
    file.write_text(json.dumps({'type': 'FeatureCollection', 'features': features}, indent=2) + '\n')
