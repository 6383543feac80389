"""The parts of the doctor that can be judged by themselves."""

import datetime
import re

import numpy as np
import pytest
from rasterio.windows import Window

from data.doctor import names, radar, tiffs
from data.doctor.evidence import Declared, Sensor, solar_hour
from data.doctor.findings import Finding, by_amount, exit_code, worst
from data.doctor.raw import find_folder, names_in, spread
from data.doctor.splits import descending
from data.doctor.summary import summarise, usable
from fusmae_jax.geo.grid import window_onto
from tests.support.faults import clean


def finding(severity):
    return Finding('x', severity, 'what', 'evidence')


def test_exit_code_is_that_of_the_gravest_finding():
    assert exit_code([]) == exit_code([finding('note'), finding('cannot tell')]) == 0
    assert exit_code([finding('note'), finding('warning')]) == 3
    assert exit_code([finding('error'), finding('warning')]) == 4
    assert worst([finding('cannot tell'), finding('note')]) == 'note'
    graded = [by_amount(n, 'error') for n in (1, 15, 16, 63, 64)]
    assert graded == ['note', 'note', 'warning', 'warning', 'error']


def test_local_solar_time_tells_the_pass():
    def unix(hour, minute):
        moment = datetime.datetime(2017, 6, 13, hour, minute, tzinfo=datetime.UTC)
        return int(moment.timestamp())

    # Over Austria (zone 33) in the morning and in the evening; over California (zone 10) at 14 h UTC.
    seconds, zones = np.array([unix(5, 9), unix(16, 50), unix(14, 7)]), np.array([32633, 32633, 32610])
    hours = solar_hour(seconds, zones)
    np.testing.assert_allclose(hours, [6.15, 17.83, 5.92], atol=0.01)
    assert descending(hours).tolist() == [True, False, True]
    assert np.isnan(solar_hour(seconds[:1], np.array([4326]))).all()


def test_summary_counts_what_cannot_be_used():
    image = np.full((10, 10), -12.5, np.float32)
    image[0, :4] = [np.nan, np.inf, -9999, 0]
    image[1, :2] = [-np.inf, -3.4e38]
    image[2:, :] = np.linspace(-20, -5, 80).reshape(8, 10)
    summary = summarise([{'VV': image}, {}], ('VV', 'VH'), ())
    counts = {name: getattr(summary, name)[0, 0] for name in ('nan', 'inf', 'fill', 'zero', 'usable')}
    assert counts == {'nan': 1, 'inf': 2, 'fill': 2, 'zero': 1, 'usable': 94}
    assert summary.present.tolist() == [[True, False], [False, False]]
    assert summary.minimum[0, 0] == -20 and summary.maximum[0, 0] == -5
    assert usable(image, nodata=(-12.5,)).sum() == 80
    # float16 rounds -9999 to -10000.
    assert not usable(np.array([-9999], np.float16))[0]


@pytest.mark.parametrize('unit', ['dB', 'linear', 'amplitude', 'dB x 100', 'wrapped dB', 'wrapped dB x 100'])
def test_every_unit_is_recognised_and_turned_back_into_decibel(unit):
    evidence = clean('bigearthnet', 31, 8, size=60)
    to_unit = {
        'dB': lambda x: x,
        'linear': lambda x: 10 ** (x / 10),
        'amplitude': lambda x: 10 ** (x / 20),
        'dB x 100': lambda x: np.rint(x * 100).astype(np.int16),
        'wrapped dB': lambda x: np.rint(x).astype(np.int16).view(np.uint16),
        'wrapped dB x 100': lambda x: np.rint(x * 100).astype(np.int16).view(np.uint16),
    }[unit]
    given = evidence.sensors['s1']
    images = tuple({b: to_unit(x) for b, x in image.items()} for image in given.images)
    sensor = Sensor('s1', Declared(('VV', 'VH')), images)
    found = radar.units_of(sensor)
    assert set(found) == {unit}
    expected = np.array([[np.median(x) for x in image.values()] for image in given.images])
    np.testing.assert_allclose(
        radar.medians(sensor, found), expected, atol=0.6 if unit == 'wrapped dB' else 0.2
    )


def test_folders_are_read_no_further_than_needed(tmp_path):
    for i in range(20):
        (tmp_path / 'deep' / f'S1_{i:02d}').mkdir(parents=True)
    pattern = re.compile(r'S1_\d+')
    assert find_folder(tmp_path, pattern) == tmp_path / 'deep'
    assert find_folder(tmp_path, re.compile('S9')) is None
    names, complete = names_in(tmp_path / 'deep', pattern, most=5)
    assert len(names) == 5 and not complete
    assert names_in(tmp_path / 'deep', pattern, most=20)[1]
    assert spread(range(100), 5) == [0, 25, 50, 74, 99] and spread([1, 2], 5) == [1, 2]


def test_names_of_files_tell_sensor_band_and_patch(tmp_path):
    cases = {
        'S1A_x_VV.tif': ('s1', 'VV'),
        'tile_7_s2.tif': ('s2', ''),
        'sentinel-2_tile_B8A.tif': ('s2', 'B8A'),
        'x_b02.tif': ('', 'B02'),
        'class2.tif': ('', ''),
    }
    for name, (sensor, band) in cases.items():
        file = tmp_path / name
        assert (names.sensor_in(file.stem), names.band_in(file)) == (sensor, band), name
    one, other = tmp_path / 'tile_7_S1_VH.tif', tmp_path / 'S2_tile_7_B02.tif'
    assert names.stem(one) == names.stem(other) == 'tile_7'
    assert tiffs.baselines('S2A_MSIL2A_20230101T100000_N0509_R1 PROCESSING_BASELINE=02.06') == (206, 509)


def test_windows_cover_the_same_ground_on_other_grids():
    evidence = clean('bigearthnet', 32, 1, size=120)
    grids = evidence.sensors['s2'].grids[0]
    fine, coarse = grids['B02'], grids['B01']
    window = Window(60, 30, 60, 60)
    assert window_onto(fine, fine, window) == window
    assert window_onto(coarse, fine, window) == Window(10, 5, 10, 10)
    moved = fine._replace(left=fine.left - 100)
    assert window_onto(moved, fine, Window(0, 0, 60, 60)) == Window(10, 0, 60, 60)
