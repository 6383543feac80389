"""`python main.py plan`: the train step of a configuration, compiled for a machine that need not be there."""

import dataclasses
import json

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.plan.against import compare
from fusmae_jax.plan.against import data as data_of
from fusmae_jax.plan.against import lines as lines_of
from fusmae_jax.plan.batches import Batches, MemoryLine, batches_of, largest_rows, line_through, second_point
from fusmae_jax.plan.compiled import CompiledStep, compile_step, state_bytes
from fusmae_jax.plan.records import layout
from fusmae_jax.plan.remedies import remedies
from fusmae_jax.plan.report import MachinePlan, data, estimate, lines
from fusmae_jax.plan.speed import Speed
from fusmae_jax.plan.speed import speed as speed_of
from fusmae_jax.plan.topology import Machine, machine
from fusmae_jax.plan.trace import read_trace
from fusmae_jax.train.setup import Setup, make_setup

MOST_TRIES = 5  # sizes to compile beside the configured one
FAR = 2  # a line is not followed further than so many times the larger of its sizes


def run_plan(
    config: Config,
    topology: str,
    *,
    verify: bool = False,
    speed: bool = False,
    against: str = '',
    as_json: bool = False,
    mfu: float | None = None,
    examples: int = 0,
) -> int:
    """Prints what a run needs on a machine; returns 1 if the configured batch does not fit it.

    Args:
        config: of a pretraining run.
        topology: TPUs or GPUs such as `v5e:16x16` or `h100:8`, or `local`.
        verify: also compile the largest batch, as a run would.
        speed: also compile the step for a TPU as a run would, for its compiler's estimate of the time.
        against: a profile of a run on that machine, to lay beside the model instead of planning.
        as_json: numbers instead of lines.
        mfu: model FLOPs utilisation in (0, 1], where it is not to be taken from the program.
        examples: records of the training split; 0 takes the data's, or the published number.

    Raises:
        InputError: there is no such machine, or the settings do not fit together.
    """
    target = machine(topology)
    if against:
        comparison = compare(read_trace(against), target, config)
        print(json.dumps(data_of(comparison), indent=2) if as_json else '\n'.join(lines_of(comparison)))
        return 0
    plan = make_plan(config, target, verify=verify, speed=speed, mfu=mfu, examples=examples)
    print(json.dumps(data(plan), indent=2) if as_json else '\n'.join(lines(plan)))
    return 0 if plan.fits else 1


def make_plan(
    config: Config,
    target: Machine,
    *,
    verify: bool = False,
    speed: bool = False,
    mfu: float | None = None,
    examples: int = 0,
) -> MachinePlan:
    """The plan of a run on a machine; see `run_plan`."""
    if speed and target.platform == 'cpu':
        raise InputError('--speed: nothing is known of the speed of a CPU; name TPUs or GPUs with --topology')
    config, notes = _settled(config, target)
    contract, examples, assumed = layout(config, examples)
    if assumed and config.data.stats == 'dataset':
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, stats='config'))

    def build(changed: Config) -> Setup:
        return make_setup(changed, contract, examples, target.devices)

    setup = build(config)
    batch_size, limit = config.train.batch_size, target.memory
    step = compile_step(setup, batch_size, quick=True, inspect=True)
    sizes = _sizes(setup, step, limit)
    line, batches = _line(setup, sizes), batches_of(setup)
    rows = largest_rows(line, limit) if line else None
    best = None if rows is None else batches.below(rows)
    if line is None:
        best = sizes[0].batch_size if sizes else 0
    elif step.memory is None:
        # A refusal states less than is needed, so the line is asked as well (see `_sizes`).
        step = step._replace(total=max(step.total, int(line.at(batches.rows(batch_size)))))
    changes = []
    if step.total > limit:
        changes = remedies(setup, step, line, limit, build, lambda s: compile_step(s, batch_size, quick=True))
    fast = _speed(setup, target, step, best, speed)
    return MachinePlan(
        machine=target,
        setup=setup,
        step=step,
        state=state_bytes(setup),
        points=[(s.batch_size, s.total) for s in sizes],
        largest=best,
        verified=compile_step(setup, best, quick=False) if verify and best else None,
        remedies=changes,
        speed=fast,
        estimate=estimate(setup, target, fast, mfu),
        examples=examples,
        notes=(*notes, *assumed, *setup.notes),
    )


def _speed(
    setup: Setup, target: Machine, step: CompiledStep, largest: int | None, asked: bool
) -> Speed | None:
    """The speed of the configured step: of a GPU always, of a TPU where it was asked for."""
    if target.platform == 'tpu' and asked:
        # With the effort of a run: what the compiler expects of a quick program is three times too slow.
        step = compile_step(setup, step.batch_size, quick=False, inspect=True)
    elif target.platform != 'gpu':
        return None
    return speed_of(target, step, batches_of(setup), largest)


def _settled(config: Config, target: Machine) -> tuple[Config, tuple[str, ...]]:
    """The configuration as it would be on the machine, and what had to be chosen for that."""
    notes = []
    train = config.train
    if train.compute_dtype == 'auto' and target.platform != 'cpu':
        # 'auto' looks at the backend of this process, which is not the machine that the plan is for.
        train = dataclasses.replace(train, compute_dtype='bfloat16')
        notes.append(f"train.compute_dtype='auto' is bfloat16 on {target.kind}")
    config = dataclasses.replace(config, train=train)
    parts = make_mesh(config.parallel, target.devices).size * train.accumulation
    # Where there is none, make_setup refuses the configured one and says what to change.
    size = Batches(config.data, parts).near(max(1, round(train.batch_size / parts))) or train.batch_size
    if size != train.batch_size:
        notes.append(
            f'train.batch_size={train.batch_size} cannot be split over {parts} parts, and a run would '
            f'refuse it; planned for --config.train.batch_size={size}'
        )
        config = dataclasses.replace(config, train=dataclasses.replace(train, batch_size=size))
    return config, tuple(notes)


def _sizes(setup: Setup, step: CompiledStep, limit: int) -> list[CompiledStep]:
    """The steps that the line goes through: that of the configured batch, if it was compiled, and another.

    A compiler that refuses a program states less than it would need, so such a size only tells where to go
    next; a refusal is quick. Fewer than two steps if not even the least batch fits, or hardly more.
    """
    batches, most = batches_of(setup), None
    state, made, last = state_bytes(setup), [step] if step.memory else [], step
    for _ in range(MOST_TRIES):
        rows = batches.rows(last.batch_size)
        near = second_point(rows, last.total, state, limit)
        if last.memory is None:
            # Well below, as a guess from what the refusal stated would come out too large again.
            most, near = rows - 1, max(1, min(near, rows) * 2 // 3)
        size = batches.near(near, most, {s.batch_size for s in made})
        if not size:
            break
        last = compile_step(setup, size, quick=True)
        made += [last] if last.memory else []
        if len(made) == 2:
            break
    made = sorted(made, key=lambda s: s.batch_size)
    line = _line(setup, made)
    rows = (largest_rows(line, limit) or 0) if line else 0
    if made and rows > FAR * batches.rows(made[-1].batch_size):
        # What a few rows need says little of many: memory grows faster once nothing stays on the chip.
        return _further(setup, made, rows * 2 // 3)
    return made


def _further(setup: Setup, made: list[CompiledStep], rows: int) -> list[CompiledStep]:
    """The larger of two sizes, and one of about so many rows: half as far away after each refusal."""
    batches = batches_of(setup)
    known = batches.rows(made[-1].batch_size)
    for _ in range(MOST_TRIES):
        size = batches.below(rows)
        if batches.rows(size) <= known:
            break
        step = compile_step(setup, size, quick=True)
        if step.memory:
            return [made[-1], step]
        rows = (known + batches.rows(size)) // 2
    return made


def _line(setup: Setup, sizes: list[CompiledStep]) -> MemoryLine | None:
    """Bytes of one device over its rows of a micro-batch."""
    if len(sizes) < 2:
        return None
    batches = batches_of(setup)
    first, second = ((batches.rows(s.batch_size), s.total) for s in sizes)
    return line_through(first, second)
