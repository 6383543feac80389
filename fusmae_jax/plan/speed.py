"""How fast a compiled step can be: the roofline on a GPU, the compiler's estimate on a TPU; in words too."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from fusmae_jax.plan.batches import Batches
from fusmae_jax.plan.compiled import CompiledStep
from fusmae_jax.plan.cycles import estimated
from fusmae_jax.plan.gpus import gpu_of
from fusmae_jax.plan.parts import Place
from fusmae_jax.plan.roofline import Roofline, Share, add, roofline
from fusmae_jax.plan.topology import Machine
from fusmae_jax.plan.waves import Waves, waves

MODELLED, ESTIMATED = 'modelled', "the compiler's estimate"
LEAST = 0.005  # share of a step below which a kind of work gets no line


class Speed(NamedTuple):
    """The time of a step on each device, and where it goes."""

    source: str  # MODELLED, a floor, or ESTIMATED; nothing is measured
    places: dict[Place, Share]
    exact: bool  # False if a loop's length could not be read
    roofline: Roofline | None = None  # of a GPU
    waves: Waves | None = None  # of a GPU

    @property
    def total(self) -> Share:
        """The whole step."""
        return add(self.places.values())


def speed(machine: Machine, step: CompiledStep, batches: Batches, largest: int | None) -> Speed | None:
    """The speed of a compiled step; None where its program or the figures of the chip are not known.

    Args:
        machine: that it was compiled for.
        step: with its program; one for a TPU must be compiled as a run does.
        batches: that the run would accept.
        largest: global batch that fits, if there is a limit.
    """
    gpu = gpu_of(machine.kind)
    if step.module is None or (gpu is None and machine.clock is None):
        return None
    if gpu is None:
        assert machine.clock is not None
        cycles = estimated(step.module, machine.clock)
        return Speed(ESTIMATED, cycles.places, cycles.exact) if cycles.places else None
    model = roofline(step.module, gpu)
    better = waves(model, batches, step.batch_size, largest)
    return Speed(MODELLED, model.by_place(), all(s.exact for s in step.module.walk()), model, better)


def lines(speed: Speed) -> list[str]:
    """The speed in words."""
    total, model = speed.total, speed.roofline
    loops = '' if speed.exact else ', at least (a loop of unknown length counts once)'
    time = f'{total.seconds * 1e3:,.1f} ms a step{loops}'
    if model is None:
        head = f"speed       {time}, by libtpu's estimate of the compiled program; nothing is measured"
        return [head, *_parts(speed)]
    return [
        f'speed       {time}: a floor, modelled from the compiled program; nothing is measured',
        f'            {total.flops / 1e12:,.2f} TFLOP of products, {total.product_seconds * 1e3:,.1f} ms; '
        f'{total.traffic / 1e9:,.1f} GB of memory traffic; {total.kernels:,} kernels',
        *_parts(speed),
        _waste(model),
        *([_waves(speed.waves)] if speed.waves else []),
    ]


def _parts(speed: Speed) -> Iterator[str]:
    """A line for each part of the model, and for each kind of work in it, the longest first."""
    whole = speed.total.seconds or 1.0
    groups: dict[str, dict[Place, Share]] = {}
    for place, share in speed.places.items():
        groups.setdefault(place.part, {})[place] = share
    sums = {part: add(group.values()) for part, group in groups.items()}
    for part in sorted(sums, key=lambda part: -sums[part].seconds):
        yield f'            {part:<22}{_share(sums[part], whole)}'
        kinds = [(p.kind, share) for p, share in groups[part].items() if p.kind]
        for kind, share in sorted(kinds, key=lambda item: -item[1].seconds):
            if share.seconds >= LEAST * whole:
                yield f'              {kind:<20}{_share(share, whole)}'


def _share(share: Share, whole: float) -> str:
    text = f'{share.seconds * 1e3:8.2f} ms {share.seconds / whole:6.1%}'
    text += f'   products {share.product_seconds * 1e3:6.2f} ms' if share.product_seconds else ' ' * 22
    return f'{text}   {share.traffic / 1e9:7.2f} GB' if share.traffic else text.rstrip()


def _waste(model: Roofline) -> str:
    moved = {name: size for name, size in model.moved().items() if size >= 1e8}
    moves = ', '.join(
        f'{name} {size / 1e9:,.1f}' for name, size in sorted(moved.items(), key=lambda m: -m[1])
    )
    wide = sum(placed.kernel.times for placed, _ in model.wide_products())
    unknown = model.unknown()
    floor = f'; operations of {", ".join(unknown)} are not known and count as none' if unknown else ''
    return (
        f'traffic     {model.filled() / 1e9:,.1f} GB of constants written, '
        f'{sum(moved.values()) / 1e9:,.1f} GB only moved{f" ({moves})" if moves else ""}; '
        f'{wide} products of float32{floor}'
    )


def _waves(waves: Waves) -> str:
    better = ', '.join(f'batch {size:,} {share:.0%}' for size, share in waves.better)
    return (
        f'waves       incomplete waves of 128 x 256 tiles cost {waves.lost:.0%} of the products over tokens'
        f' (not in the figures above){f"; {better}" if better else ""}'
    )


def data(speed: Speed) -> dict[str, Any]:
    """The speed as numbers: seconds, operations and bytes of one device and step."""
    parts: dict[str, dict[str, Any]] = {}
    for place, share in speed.places.items():
        parts.setdefault(place.part, {})[place.kind or 'all'] = share._asdict()
    out: dict[str, Any] = {
        'source': speed.source,
        'exact': speed.exact,
        **speed.total._asdict(),
        'parts': parts,
    }
    if model := speed.roofline:
        out |= {
            'constants_written': model.filled(),
            'moved': model.moved(),
            'float32_products': sum(placed.kernel.times for placed, _ in model.wide_products()),
            'kernels_of_unknown_operations': model.unknown(),
        }
    if speed.waves:
        better = [{'batch_size': size, 'lost': share} for size, share in speed.waves.better]
        out['waves'] = {'lost': speed.waves.lost, 'better': better}
    return out
