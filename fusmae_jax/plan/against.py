"""A measured step beside the model of the program that ran: part by part, and its slowest kernels."""

from typing import Any, NamedTuple

from fusmae_jax.config.run import Config
from fusmae_jax.plan.cycles import estimated
from fusmae_jax.plan.gpus import gpu_of
from fusmae_jax.plan.parts import Place, places
from fusmae_jax.plan.roofline import roofline
from fusmae_jax.plan.topology import Machine
from fusmae_jax.plan.trace import Measured
from fusmae_jax.train.flops import peak_flops
from fusmae_jax.train.recipes import recipe_of

SHOWN = 10


class Pair(NamedTuple):
    """Seconds of a step."""

    measured: float
    modelled: float

    @property
    def ratio(self) -> float | None:
        """Measured over modelled; None where there is no model."""
        return self.measured / self.modelled if self.modelled else None


class Comparison(NamedTuple):
    """A measured step beside its model; without figures for the chip every modelled time is 0."""

    measured: Measured
    places: dict[Place, Pair]  # the longest first
    kernels: dict[str, Pair]  # by instruction, the largest difference first
    mfu: float | None
    images_per_second: float


def compare(measured: Measured, machine: Machine, config: Config) -> Comparison:
    """Lays what a trace measured beside the model of the same program on the named chip."""
    where, model = places(measured.module), _model(measured, machine)
    kernels = {
        name: Pair(measured.seconds.get(name, 0.0), model.get(name, (0.0, where[name]))[0])
        for name in dict.fromkeys([*measured.seconds, *model])
    }
    groups: dict[Place, list[Pair]] = {}
    for name, pair in kernels.items():
        place = model[name][1] if name in model else where[name]
        groups.setdefault(place, []).append(pair)
    sums = {place: Pair(*map(sum, zip(*pairs))) for place, pairs in groups.items()}
    rate = config.train.batch_size / measured.span if measured.span else 0.0
    peak = peak_flops(machine.kind)
    flops = recipe_of(config).flops_per_image(config)
    mfu = rate * flops / (peak * len(machine.devices)) if peak else None
    return Comparison(
        measured,
        dict(sorted(sums.items(), key=lambda item: -item[1].measured)),
        dict(sorted(kernels.items(), key=lambda item: item[1].modelled - item[1].measured)),
        mfu,
        rate,
    )


def _model(measured: Measured, machine: Machine) -> dict[str, tuple[float, Place]]:
    """Seconds and place of each instruction by the model of its chip; empty where there is none."""
    if gpu := gpu_of(machine.kind):
        kernels = roofline(measured.module, gpu).kernels
        out: dict[str, tuple[float, Place]] = {}
        for placed in kernels:
            name = placed.kernel.instruction.name
            out[name] = (out.get(name, (0.0,))[0] + placed.share.seconds, placed.place)
        return out
    if machine.clock:
        cycles = estimated(measured.module, machine.clock)
        where = places(measured.module)
        return {name: (seconds, where[name]) for name, seconds in cycles.seconds.items()}
    return {}


def lines(comparison: Comparison) -> list[str]:
    """The comparison in words."""
    measured, kernels = comparison.measured, comparison.kernels
    total = Pair(*map(sum, zip(*kernels.values()))) if kernels else Pair(0.0, 0.0)
    idle = max(0.0, measured.span - measured.total)
    mfu = '' if comparison.mfu is None else f', MFU {comparison.mfu:.1%}'
    rest = measured.other * 1e3
    out = [
        f'measured    {measured.span * 1e3:,.2f} ms a step over {measured.steps} steps: '
        f'{comparison.images_per_second:,.0f} images/s{mfu}; '
        f'no kernel runs in {idle / (measured.span or 1):.0%} of it'
        f'{f"; {rest:,.2f} ms in kernels that are none of its instructions" if rest else ""}',
        f'{"":12}{"":<42}{"measured":>12}{"modelled":>12}{"ratio":>8}',
        _line('all kernels', total),
    ]
    out += [_line(f'{p.part}{": " if p.kind else ""}{p.kind}', pair) for p, pair in comparison.places.items()]
    if any(pair.modelled for pair in kernels.values()):
        slowest = list(kernels.items())[:SHOWN]
        out += ['kernels     furthest above their model', *(_line(name, pair) for name, pair in slowest)]
    return out


def _line(name: str, pair: Pair) -> str:
    modelled = f'{pair.modelled * 1e3:9.3f} ms' if pair.modelled else '-'
    ratio = '-' if pair.ratio is None else f'{pair.ratio:.2f}'
    return f'{"":12}{name[:41]:<42}{pair.measured * 1e3:9.3f} ms{modelled:>12}{ratio:>8}'


def data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as numbers, in seconds."""
    measured = comparison.measured
    return {
        'steps': measured.steps,
        'seconds': measured.span,
        'kernel_seconds': measured.total,
        'unmatched_seconds': measured.other,
        'images_per_second': comparison.images_per_second,
        'mfu': comparison.mfu,
        'parts': [p._asdict() | pair._asdict() for p, pair in comparison.places.items()],
        'kernels': {name: pair._asdict() for name, pair in comparison.kernels.items()},
    }
