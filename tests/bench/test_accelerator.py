"""The script for a machine with a GPU: its order, its budget, its table; and all of it with a tiny model."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator
from benchmarks.accelerator import GUESS, LIMIT, Part, Row, conclusions, measure, parts, table
from benchmarks.accelerator_parts import KINDS, modelled


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_what_does_not_fit_the_budget_is_left_out_and_said():
    clock, limits = Clock(), {}
    seconds = {'one': 100, 'two': 250, 'three': 1}

    def run(part, limit):
        limits[part.title] = limit
        clock.now += seconds[part.title]
        return {'seconds': 1.0}

    chosen = [Part('step', title, 8) for title in seconds]
    rows = measure(chosen, 400, run, clock)
    assert limits == {'one': LIMIT, 'two': LIMIT}
    # As long as the last one of its kind took, 250 s, which the 50 that are left do not hold.
    assert [row.problem for row in rows] == ['', '', 'left out: 50 s left, about 250 s needed']
    assert measure([Part('step', 'one', 8)], GUESS['step'] - 1, run, clock)[0].problem.startswith('left out')


def test_a_part_that_fails_costs_its_row_alone():
    def run(part, limit):
        if part.title == 'one':
            raise RuntimeError('no such kernel')
        return {'seconds': 0.5, 'mfu': 0.4, 'memory': 2**31, 'first': 60.0, 'modelled': 0.25}

    rows = measure([Part('step', 'one', 8), Part('step', 'two', 8)], 600, run)
    _, _, failed, done = table(rows)
    assert failed == '| one | 8 | failed: no such kernel |  |  |  |  |  |  |'
    assert done == '| two | 8 | 500.0 | 16.0 | 40.0% | 2.00 | 60.0 | 250.0 | 2.00 |'


def test_ratios_are_of_rows_without_input_preparation():
    seconds = {
        'train step, as configured': 0.5,
        'race: torch.compile': 0.6,
        'race: fusmae_jax unrolled': 0.4,
        accelerator.WHOLE: 0.51,
    }
    rows = [Row(Part('step', title, 8), {'seconds': value}) for title, value in seconds.items()]
    assert conclusions(rows) == [
        'Batch 8: 1.50 x torch.compile, without input preparation on either side.',
        'Batch 8: deterministic operations cost +10.0 ms a step.',
    ]


def test_every_part_can_be_run_and_the_configured_step_comes_first():
    everything = parts('B')
    assert {part.kind for part in everything} <= set(KINDS) and set(GUESS) == {p.kind for p in everything}
    assert next(p.title for p in everything if p.kind == 'step') == 'train step, as configured'
    assert {part.batch for part in everything} == {256, 512}
    titles = [(part.title, part.batch) for part in everything]
    assert len(set(titles)) == len(titles)
    for text in ('attention=cudnn', 'attention=xla', 'norm=xla', 'attention=pallas norm=pallas'):
        assert (f'train step, {text}', 256) in titles


def test_a_process_that_fails_or_hangs_is_one_error():
    job = {'kind': 'nothing', 'platform': 'gpu'}
    with pytest.raises(RuntimeError, match=r"KeyError: 'nothing' \(exit code 1\)"):
        accelerator.run_part(job, dict(os.environ), 60)
    with pytest.raises(RuntimeError, match=r'not done after 0 s'):
        accelerator.run_part(job, dict(os.environ), 0.01)


def test_an_error_of_what_jax_traces_is_told_and_not_its_frames(tmp_path, monkeypatch):
    script = tmp_path / 'part.py'
    lines = ['import jax', 'def f(x):', "    raise ValueError('the reason')", 'jax.jit(f)(1)']
    script.write_text('\n'.join(lines))
    monkeypatch.setattr(accelerator, 'SCRIPT', script)
    with pytest.raises(RuntimeError, match='ValueError: the reason'):
        accelerator.run_part({}, dict(os.environ), 60)


def test_a_program_is_modelled_for_a_known_gpu_alone():
    x = jnp.ones((512, 512), jnp.float32)
    program = jax.jit(lambda x: x @ x).lower(x).compile().as_text()
    assert 0 < modelled(program, 'NVIDIA H200') < 1e-3
    assert modelled(program, 'cpu') is None and modelled('', 'NVIDIA H200') is None


@pytest.mark.slow
def test_the_script_runs_from_end_to_end(tmp_path):
    """Minutes of compiling on a busy machine; PyTorch's parts are rows of errors where there is none."""
    command = [sys.executable, accelerator.__file__, '--platform=cpu', '--size=tiny', f'--results={tmp_path}']
    command += ['--only=kernels,loader,whole,resumed']
    quick = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quick)
    text = (tmp_path / 'cpu_tiny.md').read_text()
    assert done.returncode == 0 and text in done.stdout, done.stderr[-2000:]
    rows = {line.split(' | ')[0].strip('| '): line for line in text.splitlines() if line.startswith('|')}
    assert '(bit-exact)' in rows['deterministic operations, resumed half way'], text
    assert '(digest ' in rows[accelerator.WHOLE] and ' records/s ' in rows['loader alone, on the host']
    assert 'no kernel is selected here' in rows['fused kernels against plain operations']
    assert f'jax {jax.__version__}' in text and '--platform=cpu --size=tiny' in text
