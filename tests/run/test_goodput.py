import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusmae_jax.run import goodput
from fusmae_jax.run.goodput import Goodput, Sitting, shares

ROOT = Path(__file__).parents[2]


def sitting(begin, first, last, **seconds):
    return Sitting(begin, first, last, seconds)


def test_phases_add_up_to_the_wall_time_and_inner_ones_count_once(tmp_path):
    begin = time.perf_counter()
    measured = Goodput(tmp_path, active=True)
    age = measured.sittings()[0].seconds['start']
    with measured.phase('step'):
        with measured.phase('input'):
            time.sleep(0.2)
        time.sleep(0.1)
    measured.write()
    wall = time.perf_counter() - begin
    seconds = measured.sittings()[-1].seconds
    assert seconds['input'] >= 0.2 and seconds['step'] >= 0.1
    assert sum(seconds.values()) - age == pytest.approx(wall, abs=5e-2)
    with pytest.raises(KeyError), measured.phase('step'), measured.phase('lunch'):
        pass


def test_nothing_is_lost_without_a_restart():
    split, away = shares([sitting(0, 0, 100, step=80.0, input=10.0, start=10.0)])
    assert split['step'] == 0.8 and split['lost'] == 0 and away == 0
    assert sum(split.values()) == pytest.approx(1)


def test_steps_done_again_are_lost():
    """100 steps in 100 s, back to step 75, 25 s more until step 100: a quarter of the first 100 s is lost."""
    split, away = shares(
        [
            sitting(0.0, 0, 100, step=80.0, input=20.0, start=25.0),
            sitting(200.0, 75, 100, step=20.0, input=5.0),
        ]
    )
    assert split['lost'] == pytest.approx(25 / 150)
    assert split['step'] == pytest.approx((80 - 20 + 20) / 150)
    assert split['start'] == pytest.approx(25 / 150)
    assert away == pytest.approx(75)
    assert sum(split.values()) == pytest.approx(1)


def test_a_fall_back_past_a_whole_sitting_loses_it_and_part_of_the_one_before():
    split, _ = shares(
        [sitting(0, 0, 10, step=10.0), sitting(10, 10, 20, step=20.0), sitting(30, 5, 20, step=15.0)]
    )
    assert split['lost'] * 45 == pytest.approx(5 + 20)
    assert split['step'] * 45 == pytest.approx(5 + 15)


def test_work_is_lost_once():
    """Killed twice at step 10 and back at step 5 each time: the first five steps count all the while."""
    split, _ = shares(
        [sitting(0, 0, 10, step=10.0), sitting(10, 5, 10, step=5.0), sitting(15, 5, 10, step=5.0)]
    )
    assert split['lost'] * 20 == pytest.approx(10)


def test_the_rate_of_images_leaves_out_what_is_no_step(tmp_path):
    measured = Goodput(tmp_path, active=True, images=8)
    time.sleep(0.1)  # the start
    measured.starts_at(100)
    rates = []
    for step in (101, 102, 103):
        with measured.phase('step'):
            with measured.phase('input'):
                time.sleep(0.01)
            time.sleep(0.03)
            for name in ('evaluation', 'checkpoint'):
                with measured.phase(name):
                    time.sleep(0.2 * (step == 102))
        measured.reached(step)
        rates.append(measured.scalars()['images_per_second'])
    assert all(8 / 0.12 < rate <= 8 / 0.04 for rate in rates)


def test_the_age_of_a_process_counts_in_its_first_sitting_alone(tmp_path):
    Goodput(tmp_path, active=True)  # if no test before has counted it
    later = Goodput(tmp_path / 'other', active=True)
    (sitting,) = later.sittings()
    assert sitting.seconds['start'] < 0.1 and sitting.begin == pytest.approx(time.time(), abs=1)


def test_input_wait_mfu_and_the_summary(tmp_path):
    measured = Goodput(tmp_path, active=True, flops=1e6, peak=1e9)
    with measured.phase('step'):
        first = measured.scalars()
        assert 'mfu' not in first and 'images_per_second' not in first
        for step in (1, 2):
            with measured.phase('input'):
                time.sleep(0.01)
            time.sleep(0.02)
            measured.reached(step)
        values = measured.scalars()
    assert 10 <= values['input_wait_ms'] < 25
    assert 1e6 / (0.06 * 1e9) < values['mfu'] <= 1e6 / (0.03 * 1e9)
    assert 0 < values['goodput/input'] < values['goodput/step'] < 1
    assert measured.summary().startswith('goodput: ') and 'in 1 sitting; ' in measured.summary()
    again = Goodput(tmp_path, active=True)
    assert len(again.sittings()) == 2 and ' between them' in again.summary()


KILLED = """
import sys, time
from fusmae_jax.run import goodput
goodput.EVERY_SECONDS = 0.05
measured = goodput.Goodput(sys.argv[1], active=True)
measured.starts_at(3)
with measured.phase('step'):
    for step, _ in enumerate(measured.waits(time.sleep(0.01) for _ in range(10**6)), start=4):
        measured.reached(step)
"""


def test_the_file_survives_a_kill(tmp_path):
    with subprocess.Popen([sys.executable, '-c', KILLED, tmp_path], cwd=ROOT) as process:
        file, until = tmp_path / goodput.FILE, time.monotonic() + 60
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    (before,) = goodput.read(tmp_path)
    assert before.first == 3 and before.last > 4
    assert before.seconds['input'] > before.seconds['step']
    assert before.seconds['start'] > 0.1  # with the imports of that process
    measured = Goodput(tmp_path, active=True)
    measured.starts_at(3)
    assert shares(measured.sittings())[0]['lost'] > 0
    file.write_text(json.dumps(['half']))
    assert goodput.read(tmp_path) == []
