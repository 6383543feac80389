import subprocess
import sys

import pytest

from fusmae_jax.bench import products, race
from fusmae_jax.bench.contenders import COMPILED, EAGER, SCANNED, UNROLLED, Contender, Turn
from tests.support.tiny import smallest_model, tiny_config


def lap(name, *seconds, keeps=False, error=''):
    return race.Lap(Contender(name, keeps), 'cpu', 9.0, [Turn(s, 2 * s) for s in seconds], 2**30, error)


def test_a_ratio_is_of_steps_of_the_same_round():
    # The machine is four times slower in the second round: medians of each alone would say 2.5.
    assert race.ratio(lap('a', 1, 8, 1.25), lap('b', 2, 16, 2.5)) == 2


def test_the_table_holds_everyone_against_the_faster_pytorch(capsys):
    laps = [
        lap(EAGER, 4, 4),
        lap(EAGER, 2, 2, keeps=True),
        lap(COMPILED, 1, 1),
        lap(COMPILED, error='RuntimeError: no compiler'),
        lap(SCANNED, 0.5, 0.5, keeps=True),
    ]
    head, _, eager, kept, compiled, failed, ours, where = race.table(laps, 8, together=True)
    assert 'batch 8' in head and '2 rounds' in head and 'no input preparation' in head and where == 'on cpu'
    assert ' '.join(eager.split()[2:]) == 'as it is 4,000.0 ms 2.0 0.50 0.25 8.00 s 9.0 s 1.00 GiB'
    assert ' '.join(kept.split()[2:]) == 'kept 2,000.0 ms 4.0 1.00 0.50 4.00 s 9.0 s 1.00 GiB'
    assert ' 1.00 ' in compiled and failed.endswith('failed: RuntimeError: no compiler')
    assert ours.split()[3:8] == ['500.0', 'ms', '16.0', '4.00', '2.00']


def test_without_pytorch_there_is_no_ratio():
    *_, ours, _ = race.table([lap(EAGER, error='x'), lap(SCANNED, 1)], 8, together=False)
    assert ours.split()[2:8] == ['as', 'it', 'is', '1,000.0', 'ms', '8.0'] and ours.count(' - ') == 2


def test_on_a_cpu_pytorch_races_twice_and_a_gpu_takes_one_at_a_time():
    twice = [Contender(name, keeps) for name in (EAGER, COMPILED) for keeps in (False, True)]
    if sys.platform.startswith('linux'):
        assert race.contenders('cpu') == [*twice, Contender(SCANNED, True), Contender(UNROLLED, True)]
    assert [c.name for c in race.contenders('gpu')] == [EAGER, COMPILED, SCANNED, UNROLLED]
    assert not any(c.keeps for c in race.contenders('gpu'))


def test_a_step_cannot_be_faster_than_its_products():
    assert 1e8 < products.product_rate() < 1e13
    line = products.products_line(144e9, 100e9)
    assert (
        line.startswith('144.0 GFLOP') and ': 1.44 s of processor time' in line and 'the 100 GFLOP/s' in line
    )


@pytest.mark.slow
def test_contenders_step_in_turn_and_one_that_fails_stops_nobody(monkeypatch):
    # PyTorch for a GPU that is not there, or no PyTorch at all.
    broken, sound = Contender(EAGER), Contender(SCANNED, True)
    monkeypatch.setattr(race, 'contenders', lambda _: [broken, sound])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    laps = race.run(tiny_config(model=smallest_model()), 2, 'gpu', 3)
    assert [lap.contender for lap in laps] == [broken, sound]
    assert 'Error: ' in laps[0].error and not laps[0].turns
    ours = laps[1]
    assert len(ours.turns) == 3 and not ours.error and ours.first > max(t.seconds for t in ours.turns)
    assert ours.peak > 2**25 and all(turn.cpu > 0 for turn in ours.turns) and ours.device == 'cpu'


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='of glibc')
def test_freed_memory_stays_with_a_process_that_asks_for_it():
    code = (
        'import resource, sys\n'
        'from fusmae_jax.bench.memory import keep_all_freed\n'
        'if sys.argv[1:]: assert keep_all_freed()\n'
        'import numpy\n'
        'faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        'def touched():\n'
        '    before = faults(); numpy.ones(2**25); return faults() - before\n'
        'touched(); print(touched())'
    )
    given, kept = (
        int(subprocess.check_output([sys.executable, '-c', code, *words])) for words in ([], ['keep'])
    )
    assert given > 100 and kept < 20
