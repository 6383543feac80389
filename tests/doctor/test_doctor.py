"""The doctor against generated evidence: silent on clean sets, not on plain faults; and its parts alone."""

import dataclasses
import datetime
import re
from pathlib import Path

import numpy as np
import pytest
from rasterio.windows import Window

from fusmae_jax.geo.grid import window_onto
from fusmae_jax.shipped.data.doctor import names, radar, registration, tiffs
from fusmae_jax.shipped.data.doctor.checks import examine
from fusmae_jax.shipped.data.doctor.evidence import Declared, Sensor, solar_hour
from fusmae_jax.shipped.data.doctor.findings import Finding, by_amount, exit_code, worst
from fusmae_jax.shipped.data.doctor.raw import find_folder, names_in, spread
from fusmae_jax.shipped.data.doctor.splits import descending
from fusmae_jax.shipped.data.doctor.summary import summarise, usable
from tests.support import faults
from tests.support.doctor_checks import FAULTS, QUICK, checks_for, grave, only, spoilt
from tests.support.faults import LAYOUTS, SEEDS, clean, found
from tests.support.faults_s1 import S1
from tests.support.faults_s2 import S2

# Not in the table of layouts until `python -m tests.support.doctor_table` writes it again.
UNMEASURED = ('S1 scaled to its own range', 'S2 scaled to its own range', 'a wrong geotransform of S2')
DOCUMENT = Path(__file__).parents[2] / 'docs' / 'doctor.md'


@pytest.fixture(scope='module')
def evidence():
    """64 patches with the bands and grids of BigEarthNet, half as wide."""
    return clean('bigearthnet', SEEDS['judged'][0], size=60)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_nothing_is_wrong_with_clean_sets(layout):
    assert grave(examine(clean(layout, 2001, size=60))) == []


def test_nothing_is_wrong_with_few_patches():
    for patches in (1, 2, 16):
        assert grave(examine(clean('bigearthnet', 2002, patches, size=60))) == []


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.name)
def test_plain_faults_are_found(evidence, fault):
    sick = spoilt(only(evidence, fault), fault, fault.judged.plain, 1)
    assert found(fault, examine(sick, checks_for(fault)))


def test_the_list_of_faults_is_one_list():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    for fault in FAULTS:
        assert fault.developed != fault.judged or fault.judged.marginal is None


def test_registration_measures_the_shift_and_its_direction(evidence):
    def moved(down, right):
        images = tuple(
            {b: np.roll(x, (down, right), (0, 1)) for b, x in image.items()}
            for image in evidence.sensors['s1'].images
        )
        return registration.measure(faults.with_sensor(evidence, 's1', images=images))

    for down, right in ((0, 0), (0, 5), (-4, 3)):
        shift = moved(down, right)
        # Sentinel-2 lies the other way from where Sentinel-1 was moved.
        assert shift.down == pytest.approx(-down, abs=0.7)
        assert shift.right == pytest.approx(-right, abs=0.7)
        assert shift.pairs == 64 and shift.height > registration.SURE


def test_too_few_patches_is_said_and_not_guessed(evidence):
    few = dataclasses.replace(
        evidence,
        names=evidence.names[:3],
        sensors={
            m: dataclasses.replace(s, images=s.images[:3], grids=s.grids[:3])
            for m, s in evidence.sensors.items()
        },
    )
    open_questions = {f.code for f in examine(few) if f.severity == 'cannot tell'}
    assert {'s1.calibration', 's2.order', 's2.level', 'pair.shift'} <= open_questions
    offset = next(f for f in S2 if f.name == 'offset applied twice')
    sick = examine(spoilt(few, offset, 1.0, 1))
    assert 's2.offset' in {f.code for f in sick if f.severity == 'cannot tell'}


def test_a_declared_unit_scale_or_offset_is_no_fault(evidence):
    """What the contract states is applied before anything is judged."""
    by_name = {fault.name: fault for fault in FAULTS}

    def declared_as(name, modality, **about):
        sick = spoilt(evidence, by_name[name], 1.0, 1)
        sensor = sick.sensors[modality]
        about = {'dtype': {}} | {
            key: dict.fromkeys(sensor.declared.bands, value) if key in ('scale', 'offset') else value
            for key, value in about.items()
        }
        declared = dataclasses.replace(sensor.declared, **about)
        return grave(examine(faults.with_sensor(sick, modality, declared=declared), QUICK))

    assert declared_as('linear power for dB', 's1', unit='linear') == []
    assert declared_as('amplitude for dB', 's1', unit='amplitude') == []
    assert declared_as('dB times 100 in int16', 's1', scale=0.01) == []
    assert declared_as('offset of +1000, undeclared', 's2', offset=-1000.0) == []
    assert declared_as('reflectance in 0..1 for DN', 's2', unit='reflectance') == []
    # ... and a wrong statement is one.
    about = dataclasses.replace(evidence.sensors['s1'].declared, unit='linear')
    wrong = grave(examine(faults.with_sensor(evidence, 's1', declared=about), QUICK))
    assert [f.code for f in wrong] == ['s1.unit']
    shifted = dict.fromkeys(evidence.sensors['s2'].declared.bands, -1000.0)
    about = dataclasses.replace(evidence.sensors['s2'].declared, offset=shifted)
    wrong = grave(examine(faults.with_sensor(evidence, 's2', declared=about), QUICK))
    assert 's2.offset_twice' in [f.code for f in wrong]


def test_declared_nodata_is_a_note(evidence):
    holes = next(f for f in S1 if f.name == '-9999 along a border of S1')
    sick = spoilt(evidence, holes, 0.07, 1)
    about = dataclasses.replace(sick.sensors['s1'].declared, nodata=(-9999.0,))
    findings = examine(faults.with_sensor(sick, 's1', declared=about), QUICK)
    assert [f.severity for f in findings if f.code == 's1.fill'] == ['note']
    assert grave(findings) == []


def test_the_document_has_every_fault_and_no_plain_one_was_missed():
    rows = [line.strip('| ').split(' | ') for line in DOCUMENT.read_text().splitlines()]
    for fault in FAULTS:
        if fault.name in UNMEASURED:
            continue
        needs, layouts = (row for row in rows if row[0] == fault.name)
        assert '100 %' in needs
        assert all(cell.strip() in ('', '|') or cell.startswith('100 %') for cell in layouts[1:])


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
def test_plain_faults_are_found_in_every_layout(layout):
    missed = []
    for seed in SEEDS['judged']:
        evidence = clean(layout, seed)
        for fault in FAULTS:
            if layout in fault.layouts:
                sick = spoilt(only(evidence, fault), fault, fault.judged.plain, seed)
                missed += [] if found(fault, examine(sick, checks_for(fault))) else [(fault.name, seed)]
    assert missed == []


@pytest.mark.slow
def test_nothing_is_wrong_with_200_clean_sets():
    alarms = []
    for seed in range(20_000, 20_200):
        alarms += [(seed, f.code, f.evidence) for f in grave(examine(clean('bigearthnet', seed)))]
    assert alarms == []


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
    units = radar.units_of(sensor)
    assert set(units) == {unit}
    expected = np.array([[np.median(x) for x in image.values()] for image in given.images])
    np.testing.assert_allclose(
        radar.medians(sensor, units), expected, atol=0.6 if unit == 'wrapped dB' else 0.2
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
