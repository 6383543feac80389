"""The doctor against generated evidence: nothing is found in clean sets, every plain fault is found."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data.doctor import registration
from data.doctor.checks import examine
from tests.support import faults
from tests.support.doctor_checks import FAULTS, QUICK, checks_for, grave, only, spoilt
from tests.support.faults import LAYOUTS, SEEDS, clean, found
from tests.support.faults_s1 import S1
from tests.support.faults_s2 import S2

# Not in the measured tables until `python -m tests.support.doctor_table` writes them again.
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
