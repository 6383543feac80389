"""A profile laid beside the model of the program that ran."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.plan import against, command, topology
from fusmae_jax.plan.hlo import read
from fusmae_jax.plan.trace import Event, _measured, read_trace
from tests.support.tiny import tiny_config

STEPS, TRIPS = 3, 5


def step(x, w):
    return jnp.sum(jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, TRIPS)[0])


def named_step(number):
    def step(x, w):
        return jnp.sum(jnp.sin(x) @ w * number)

    return step


@pytest.fixture(scope='module')
def profile(tmp_path_factory):
    """A profile of three runs of a compiled function on the CPU, and the text of its program."""
    folder = tmp_path_factory.mktemp('profile')
    x = jnp.ones((64, 64))
    # Others of the same name, which a profile of the process holds too.
    others = [jax.jit(named_step(n)).lower(x, x).compile() for n in (1, 2)]
    compiled = jax.jit(step).lower(x, x).compile()
    assert {program.as_text().split()[1] for program in (*others, compiled)} == {'jit_step,'}
    compiled(x, x).block_until_ready()
    with jax.profiler.trace(str(folder)):
        for _ in range(STEPS):
            compiled(x, x).block_until_ready()
    return folder, compiled.as_text()


def test_a_real_trace_is_matched_with_its_program(profile):
    folder, text = profile
    measured = read_trace(folder)
    # The program in the trace is the one that ran, with the stack frames of its instructions.
    ours = {s.instruction.name for s in read(text).walk()}
    assert {s.instruction.name for s in measured.module.walk()} == ours
    stacks = [measured.module.stack(s.instruction) for s in measured.module.walk(into_fusions=True)]
    assert any(frame.function == 'step' for stack in stacks for frame in stack)
    assert measured.steps == STEPS
    assert measured.seconds and set(measured.seconds) <= ours
    assert measured.other == 0
    # Loops are not counted beside what is in them.
    loops = [s.instruction.name for s in measured.module.walk() if s.instruction.opcode == 'while']
    assert loops and not set(loops) & set(measured.seconds)
    assert 0 < sum(measured.seconds.values()) <= 2 * measured.span


def test_a_file_is_taken_too(profile):
    (file,) = profile[0].glob('**/*.xplane.pb')
    assert read_trace(file).steps == STEPS


def test_the_command_lays_it_beside_a_model(profile, capsys):
    config = tiny_config()
    assert command.run_plan(config, 'local', against=str(profile[0])) == 0
    text = capsys.readouterr().out
    assert f'over {STEPS} steps' in text and 'all kernels' in text
    assert command.run_plan(config, 'local', against=str(profile[0]), as_json=True) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers['steps'] == STEPS and numbers['kernels']


def test_with_figures_of_the_chip_each_kernel_has_a_ratio(profile):
    measured = read_trace(profile[0])
    config = dataclasses.replace(tiny_config(), train=cfg.Train(batch_size=8, steps=3))
    machine = topology.machine('local')

    class Device:
        device_kind, platform = 'NVIDIA H200', 'gpu'

    comparison = against.compare(measured, machine._replace(devices=[Device()]), config)
    modelled = {name: pair for name, pair in comparison.kernels.items() if pair.modelled}
    assert modelled and all(pair.ratio > 0 for name, pair in modelled.items() if name in measured.seconds)
    assert comparison.mfu > 0
    assert comparison.images_per_second == pytest.approx(8 / measured.span)
    text = '\n'.join(against.lines(comparison))
    assert 'furthest above their model' in text and 'MFU' in text


PROGRAM = """HloModule jit_step

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %a = f32[8]{0} negate(%x)
  ROOT %b.1 = f32[8]{0} sine(%a)
}
"""


def test_steps_on_several_devices_are_averaged():
    def device(shift):
        steps = (0.0, 1.0)
        return [
            *(Event('a', 'jit_step', shift + t, 0.2) for t in steps),
            *(Event('b_1', '', shift + t + 0.5, 0.1) for t in steps),  # as a GPU's kernels are called
            Event('b', 'jit_other', shift, 9.0),
            Event('MemcpyD2D', '', shift + 0.9, 0.02),
        ]

    measured = _measured(read(PROGRAM), [device(0.0), device(7.0)], 'jit_step')
    assert measured.steps == 2
    assert measured.seconds == pytest.approx({'a': 0.2, 'b.1': 0.1})
    assert measured.other == pytest.approx(0.01)
    assert measured.span == pytest.approx(1.6 / 2)


def test_what_is_no_profile_is_refused(tmp_path, profile):
    with pytest.raises(InputError, match='--profile'):
        read_trace(tmp_path)
    damaged = tmp_path / 'a.xplane.pb'
    (file,) = profile[0].glob('**/*.xplane.pb')
    damaged.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r'a\.xplane\.pb'):
        read_trace(damaged)
