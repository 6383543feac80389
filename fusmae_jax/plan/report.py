"""A plan as lines for a person and as plain data for a program."""

from typing import Any, NamedTuple

import jax

from fusmae_jax.input import cost
from fusmae_jax.input.mixture import row_counts
from fusmae_jax.plan import speed
from fusmae_jax.plan.batches import MARGIN
from fusmae_jax.plan.compiled import CompiledStep
from fusmae_jax.plan.remedies import Remedy, sentence
from fusmae_jax.plan.topology import GIB, Machine
from fusmae_jax.train.flops import peak_flops
from fusmae_jax.train.recipes import recipe_of
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import abstract_batch

ASSUMED_MFU = 0.4
ASSUMED, GIVEN = 'assumed', 'given'  # or the source of a Speed


class Estimate(NamedTuple):
    """What follows from the shapes and, for the last three, from `mfu`: None where the peak is unknown."""

    flops_per_image: float
    bytes_per_image: float  # as the host sends it to the device
    mfu: float
    mfu_source: str  # ASSUMED, GIVEN, or where the speed of the step is from
    images_per_second: float | None
    hours: float | None  # in steps: evaluation, checkpoints and compilation come on top
    host_bytes_per_second: float | None  # into each host


def estimate(setup: Setup, machine: Machine, known: speed.Speed | None, mfu: float | None) -> Estimate:
    """The estimate of a whole run.

    Args:
        setup: the run.
        machine: that it runs on.
        known: speed of its step, where there is one.
        mfu: model FLOPs utilisation in (0, 1] that the user gave; it goes before the speed.
    """
    config = setup.config
    batch_size = config.train.batch_size
    rows = row_counts(config.data, batch_size)
    batch = abstract_batch(setup.contract, setup.objective.fields, rows, setup.mesh)
    image_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)) / batch_size
    flops = recipe_of(config).flops_per_image(config)
    peak = peak_flops(machine.devices[0].device_kind)
    source = GIVEN if mfu else known.source if known else ASSUMED
    if peak is None:
        return Estimate(flops, image_bytes, mfu or ASSUMED_MFU, source, None, None, None)
    peak *= len(machine.devices)
    if known and not mfu:
        mfu = batch_size * flops / (known.total.seconds * peak)
    mfu = mfu or ASSUMED_MFU
    rate = mfu * peak / flops
    hours = setup.total_steps * batch_size / rate / 3600
    return Estimate(flops, image_bytes, mfu, source, rate, hours, rate * image_bytes / machine.hosts)


class MachinePlan(NamedTuple):
    """Everything that was found out."""

    machine: Machine
    setup: Setup
    step: CompiledStep  # of the configured batch
    state: int  # bytes of the train state on one device
    points: list[tuple[int, int]]  # (global batch, bytes of one device) that the line goes through
    largest: int | None  # global batch; 0 if not even one row fits, None where memory does not grow
    verified: CompiledStep | None  # the largest batch, compiled as a run would
    remedies: list[Remedy]  # empty if the configured batch fits
    speed: speed.Speed | None  # of a GPU, and of a TPU where it was asked for
    estimate: Estimate
    examples: int
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the configured batch does."""
        return self.step.total <= self.machine.memory


def lines(plan: MachinePlan) -> list[str]:
    """The plan in words, the most important first."""
    out = [f'note        {note}' for note in plan.notes]
    flops = f'{plan.estimate.flops_per_image / 1e9:,.1f} GFLOP an image'
    operations = f'operations  {flops}, forward and backward, recomputation not counted'
    out += [_title(plan), _memory(plan), _largest(plan), operations, _collectives(plan)]
    compiled = f'compiled    the train step of this configuration in {plan.step.seconds:.0f} s'
    return [*out, *(speed.lines(plan.speed) if plan.speed else []), *_estimate(plan), compiled]


def _title(plan: MachinePlan) -> str:
    machine, setup, devices = plan.machine, plan.setup, len(plan.machine.devices)
    slices = f' in {machine.slices} slices' if machine.slices > 1 else ''
    hosts = '1 host' if machine.hosts == 1 else f'{machine.hosts} hosts'
    mesh = ' x '.join(f'{name}={size}' for name, size in setup.mesh.shape.items())
    batch, parts = setup.config.train.batch_size, setup.config.train.accumulation
    micro = f', in {parts} micro-batches' if parts > 1 else ''
    return (
        f'{machine.name}: {devices} x {machine.kind} on {hosts}{slices}; mesh {mesh}; batch '
        f'{batch:,} ({batch // devices:,} on each device{micro}); {setup.dtype}'
    )


def _memory(plan: MachinePlan) -> str:
    if not plan.fits:
        return sentence(plan.step, len(plan.machine.devices), plan.machine.memory, plan.remedies)
    memory, total, limit = plan.step.memory, plan.step.total, plan.machine.memory
    assert memory is not None  # of a step that fits
    return (
        f'memory      {total / GIB:.2f} of {limit / GIB:.2f} GiB on each device ({total / limit:.0%}; '
        f'{plan.machine.memory_source}): {memory.arguments / GIB:.2f} state and input, '
        f'{(memory.outputs + memory.temporaries) / GIB:.2f} temporaries, {memory.program / GIB:.2f} program'
    )


def _largest(plan: MachinePlan) -> str:
    sizes = ' and '.join(f'{batch:,}' for batch, _ in plan.points)
    minimum = 'one image on each device'
    if plan.setup.config.data.mixture:
        minimum = 'the least that all the sets can share over the devices'
    if len(plan.points) < 2:
        least = f'batch {plan.largest:,} is the only size found to fit' if plan.largest else 'none fits'
        return f'largest     {least}, {minimum} included'
    how = f'from a line through {sizes}, with {MARGIN:.0%} of the memory left free'
    if plan.largest is None:
        return f'largest     no limit seen: memory does not grow between batches of {sizes}'
    if not plan.largest:
        return f'largest     not even {minimum} fits ({how})'
    text = f'largest     batch {plan.largest:,} fits ({how}'
    if plan.verified:
        share = plan.verified.total / plan.machine.memory
        verdict = 'fits' if share <= 1 else 'does NOT fit'
        return f'{text}); compiled in full: {verdict}, {plan.verified.total / GIB:.2f} GiB ({share:.0%})'
    return f'{text}; --verify compiles it)'


def _collectives(plan: MachinePlan) -> str:
    sent = plan.step.collectives
    if plan.step.memory is None:
        return 'collectives unknown: the compiler refused the program for its size'
    if sent is None:
        return 'collectives unknown: the compiler does not print this program'
    kinds = [f'{k}: {t.calls} with {t.bytes / 2**20:,.1f} MiB' for k, t in sent.kinds.items()]
    floor = '' if sent.exact else ' at least (a loop of unknown length counts once)'
    return f'collectives {"; ".join(kinds) or "none"}{" a step on each device" if kinds else ""}{floor}'


def _estimate(plan: MachinePlan) -> list[str]:
    e, steps = plan.estimate, plan.setup.total_steps
    if e.images_per_second is None or e.hours is None or e.host_bytes_per_second is None:
        return ['estimate    unknown: the peak of this device is not listed in fusmae_jax/train/flops.py']
    time = f'{e.hours:,.1f} h' if e.hours >= 1 else f'{e.hours * 60:,.1f} min'
    train = plan.setup.config.train
    length = 'over' if train.steps else f'{train.epochs:g} epochs of'
    how = {
        ASSUMED: f'if the MFU is {e.mfu:.0%} (an assumption)',
        GIVEN: f'if the MFU is {e.mfu:.0%} (as given)',
        speed.MODELLED: f'at most, MFU {e.mfu:.1%} by the floor above (modelled)',
        speed.ESTIMATED: f"at MFU {e.mfu:.1%}, by the compiler's estimate above",
    }[e.mfu_source]
    return [
        f'estimate    {e.images_per_second:,.0f} images/s {how}; {time} for {steps:,} steps, {length} '
        f'{plan.examples:,} records, without evaluation, checkpoints and compilation',
        f'input       {e.host_bytes_per_second / 1e6:,.0f} MB/s and '
        f'{e.images_per_second / plan.machine.hosts:,.0f} records/s into each host '
        f'({e.bytes_per_image / 1e3:,.0f} kB a record)',
        f'            {_input_limit(plan)}',
    ]


def _input_limit(plan: MachinePlan) -> str:
    """Whether a host can read as many records as its devices compute."""
    e = plan.estimate
    assert e.images_per_second is not None
    packed = not plan.setup.config.data.cache
    limit = cost.limit(e.images_per_second / plan.machine.hosts, cost.cpu_seconds(e.bytes_per_image, packed))
    how = 'compressed shards' if packed else 'shards without compression'
    return f'with {how}, {cost.CORES} cores and one process a host, {limit}'


def data(plan: MachinePlan) -> dict[str, Any]:
    """The plan as numbers: bytes, seconds, operations."""
    setup, step, machine = plan.setup, plan.step, plan.machine
    sent = step.collectives
    return {
        'topology': machine.name,
        'device_kind': machine.kind,
        'devices': len(machine.devices),
        'hosts': machine.hosts,
        'slices': machine.slices,
        'mesh': dict(setup.mesh.shape),
        'compute_dtype': str(setup.dtype),
        'batch_size': step.batch_size,
        'accumulation': setup.config.train.accumulation,
        'fits': plan.fits,
        'memory_per_device': {
            'total': step.total,
            'limit': machine.memory,
            'limit_source': machine.memory_source,
            'state': plan.state,
            **(step.memory._asdict() if step.memory else {}),
        },
        'largest_batch': plan.largest,
        'largest_batch_from': [{'batch_size': b, 'memory_per_device': m} for b, m in plan.points],
        'verified': plan.verified
        and {
            'batch_size': plan.verified.batch_size,
            'memory_per_device': plan.verified.total,
            'fits': plan.verified.total <= machine.memory,
        },
        'remedies': [remedy._asdict() for remedy in plan.remedies],
        'collectives': sent
        and {
            'exact': sent.exact,
            **{kind: traffic._asdict() for kind, traffic in sent.kinds.items()},
        },
        'speed': plan.speed and speed.data(plan.speed),
        'estimate': plan.estimate._asdict(),
        'steps': setup.total_steps,
        'examples': plan.examples,
        'compile_seconds': round(step.seconds, 1),
        'notes': list(plan.notes),
    }
