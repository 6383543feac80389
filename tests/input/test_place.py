"""Common ground: rectangles of one reference system, and centres across systems."""

import numpy as np
import pytest
from rasterio.warp import transform

from fusmae_jax.input import place
from fusmae_jax.input.contract import Contract, Group

LARGE = Contract(
    groups={'s1': Group('s1', ('VV',), (120, 120)), 's2': Group('s2', ('B02',), (60, 60), resolution=20)}
)
SMALL = Contract(groups={'s1': Group('s1', ('VV',), (12, 24))})


def places(contract, epsg, *corners):
    return np.array(
        place.describe(contract, np.full(len(corners), epsg), np.array(corners, float)), np.bytes_
    )


def test_a_place_is_text_and_nothing_where_it_is_unknown():
    assert place.describe(SMALL, np.array([32633, 0, 32633]), np.array([[1.5, 2], [3, 4], [np.nan, 2]])) == [
        b'32633 1.5 2 240 120',
        b'',
        b'',
    ]


@pytest.mark.parametrize(
    ('corner', 'expected'),
    [
        ((0, 0), True),
        ((1190, 0), False),  # less than a hundredth of the side in common
        ((1180, -1180), True),
        ((1200, 0), False),
        ((0, -1200), False),
        ((-1100, 1100), True),
        ((5000, 0), False),
    ],
)
def test_rectangles_of_one_system_by_their_common_ground(corner, expected):
    there = places(LARGE, 32633, (500_000, 5_000_000), (900_000, 5_000_000))
    here = places(LARGE, 32633, (500_000 + corner[0], 5_000_000 + corner[1]))
    assert place.overlap(here, there).tolist() == [expected]
    other = np.char.replace(here, b'32633', b'32733')
    assert not place.overlap(other, there).any()


def test_sizes_may_differ_and_axes_too():
    there = places(LARGE, 32633, (500_000, 5_000_000))
    inside, right, below, left = ((500_600, 4_999_500), (501_190, 5e6), (5e5, 4_998_810), (499_770, 5e6))
    outside = ((501_200, 5e6), (5e5, 4_998_800), (499_760, 5e6), (5e5, 5_000_120))
    assert place.overlap(places(SMALL, 32633, inside, right, below, left), there).all()
    assert not place.overlap(places(SMALL, 32633, *outside), there).any()


def test_the_same_ground_in_another_system():
    """At 12 degrees east the zones 32 and 33 meet; the third system is longitude and latitude."""
    here = places(LARGE, 32633, (264_000, 5_300_000), (264_000, 5_298_500), (700_000, 5_300_000))
    (x,), (y,) = transform('EPSG:32633', 'EPSG:32632', [264_600.0], [5_299_400.0])
    there = places(LARGE, 32632, (x - 600, y + 600))
    assert place.overlap(here, there).tolist() == [True, False, False]
    assert place.overlap(there, here).tolist() == [True]
    (east,), (north,) = transform('EPSG:32633', 'EPSG:4326', [264_600.0], [5_299_400.0])
    half = 600 / 111_320
    degrees = places(LARGE, 4326, (east - half / np.cos(np.radians(north)), north + half))
    assert place.overlap(here, degrees).tolist() == [True, False, False]
    assert place.overlap(degrees, degrees).tolist() == [True]


def test_nothing_and_an_unknown_system_share_no_ground():
    here = places(LARGE, 32633, (500_000, 5_000_000))
    assert not place.overlap(here, np.array([b''])).any()
    assert not place.overlap(np.array([b'']), here).any()
    assert not place.overlap(here, places(LARGE, 999_999, (500_000, 5_000_000))).any()
    assert place.overlap(np.array([], np.bytes_), here).shape == (0,)


def test_against_every_pair_compared():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40_000, (2, 200, 2)).astype(float)
    overlapping = place.overlap(places(LARGE, 32633, *corners[0]), places(LARGE, 32633, *corners[1]))
    gap = np.abs(corners[0][:, None] - corners[1][None]).max(axis=-1)
    expected = (gap < 1200 * 0.99).any(axis=1)
    assert (overlapping == expected).all() and 0 < expected.sum() < 200
