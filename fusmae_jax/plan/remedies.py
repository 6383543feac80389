"""Remedies for a step that does not fit into memory, the cheapest first, and what each of them saves."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from fusmae_jax.config.run import Config
from fusmae_jax.plan.batches import MARGIN, Batches, MemoryLine, batches_of, largest_rows
from fusmae_jax.plan.compiled import CompiledStep, batch_bytes, bytes_on_device, state_bytes
from fusmae_jax.plan.topology import GIB
from fusmae_jax.train.recipes import recipe_of
from fusmae_jax.train.setup import Setup

SHOWN = 3
MOST_SHARDS = 16  # more save little of a model of this kind, and cost more to gather


class Remedy(NamedTuple):
    """One change of the configuration."""

    setting: str  # as it is written on the command line
    saves: int  # bytes of one device
    source: str  # 'computed' | 'estimated' | 'compiled'
    price: str  # what it costs
    enough: bool  # whether it makes the step fit by itself


def remedies(
    setup: Setup,
    step: CompiledStep,
    line: MemoryLine | None,
    limit: int,
    rebuild: Callable[[Config], Setup],
    compile_one: Callable[[Setup], CompiledStep],
) -> list[Remedy]:
    """Up to three remedies for a step over the limit, in the order of what they cost in time.

    Args:
        setup: the run as configured.
        step: its compiled step, which is too large.
        line: bytes of one device over its rows of a micro-batch; None where too few sizes fit.
        limit: bytes that one device has.
        rebuild: the same run with another configuration.
        compile_one: the compiled step of a run.
    """
    room = limit * (1 - MARGIN)
    options = [_shard(setup, step, room, rebuild)]
    if line:
        options.insert(0, _accumulate(setup, step, line, room))
    if setup.config.model.remat != 'full':
        options.append(_recompute(setup, step, room, rebuild, compile_one))
    options.append(_shrink(setup, step, line, limit) if line else None)
    return [remedy for remedy in options if remedy and remedy.saves > 0][:SHOWN]


def _accumulate(setup: Setup, step: CompiledStep, line: MemoryLine, room: float) -> Remedy | None:
    """The fewest micro-batches that fit; or, where none do, as many as there can be."""
    devices, now, data = setup.mesh.size, setup.config.train.accumulation, setup.config.data
    rows = step.batch_size // devices
    choices = [k for k in range(now + 1, rows + 1) if Batches(data, devices * k).splits(step.batch_size)]
    if not choices:
        return None
    # The sum of gradients is held beside the state; it is as large as the parameters.
    sums = 0 if now > 1 else bytes_on_device(setup.abstract_state()['params'])
    whole = batch_bytes(setup, step.batch_size)

    def after(k: int) -> float:
        # The batch is on the device as a whole from the beginning, whatever the line makes of its rows.
        return line.at(rows / k) + whole * (1 - now / k) + sums

    best = next((k for k in choices if after(k) <= room), choices[-1])
    return Remedy(
        f'train.accumulation={best}',
        int(step.total - after(best)),
        'estimated',
        'no more operations, smaller ones',
        after(best) <= room,
    )


def _shard(
    setup: Setup, step: CompiledStep, room: float, rebuild: Callable[[Config], Setup]
) -> Remedy | None:
    """Parameters and optimizer over as many devices of a slice as can share them."""
    slices = len({getattr(device, 'slice_index', 0) for device in setup.mesh.devices.flat})
    # A power of two, as MOST_SHARDS is, which the sides of the parameters can be divided by.
    now, wanted = setup.mesh.shape['fsdp'], math.gcd(setup.mesh.size // slices, MOST_SHARDS)
    if wanted <= now:
        return None
    parallel = dataclasses.replace(setup.config.parallel, data=-1, fsdp=wanted)
    saves = state_bytes(setup) - state_bytes(rebuild(dataclasses.replace(setup.config, parallel=parallel)))
    return Remedy(
        f'parallel.fsdp={wanted}',
        saves,
        'computed',
        'parameters sent in each step',
        step.total - saves <= room,
    )


def _recompute(
    setup: Setup,
    step: CompiledStep,
    room: float,
    rebuild: Callable[[Config], Setup],
    compile_one: Callable[[Setup], CompiledStep],
) -> Remedy:
    """All blocks computed again in the backward pass."""
    model = dataclasses.replace(setup.config.model, remat='full')
    after = compile_one(rebuild(dataclasses.replace(setup.config, model=model))).total
    return Remedy(
        'model.remat=full',
        step.total - after,
        'compiled',
        f'{recipe_of(setup.config).full_remat_share(setup.config):.0%} more operations',
        after <= room,
    )


def _shrink(setup: Setup, step: CompiledStep, line: MemoryLine, limit: int) -> Remedy | None:
    """The largest batch that fits, which is another training."""
    batches = batches_of(setup)
    batch_size = batches.below(largest_rows(line, limit) or 0)
    if not batch_size:
        return None
    return Remedy(
        f'train.batch_size={batch_size}',
        int(step.total - line.at(batches.rows(batch_size))),
        'estimated',
        'another batch, so another training',
        True,
    )


def sentence(step: CompiledStep, devices: int, limit: int, options: list[Remedy]) -> str:
    """The whole of it in one sentence."""
    changes = ', '.join(
        f'{r.setting} saves {r.saves / GIB:.2f} GiB ({r.source}; {r.price}; '
        f'{"enough" if r.enough else "not enough alone"})'
        for r in options
    )
    about = '' if step.memory else 'about '  # of a program that was refused
    needs = f'{about}{step.total / GIB:.2f} of {limit / GIB:.2f} GiB'
    return f'Out of memory: {step.batch_size // devices:,} images on each device need {needs}; ' + (
        f'cheapest first, {changes}.' if options else 'use more or larger devices.'
    )
