"""The time of a compiled step on a TPU by its compiler's own estimate, and where that time goes.

libtpu notes with each instruction of a program how many cycles it expects of it. Their sum ignores what
overlaps. They mean something only in a program that was compiled with the effort of a run.
"""

import re
from typing import NamedTuple

from fusmae_jax.plan.hlo import Module, Step
from fusmae_jax.plan.parts import Place, places
from fusmae_jax.plan.roofline import Share, add, stacked

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
PRODUCTS = ('convolution', 'dot')  # a TPU's products are convolutions
STACKED = re.compile(r'dynamic[-_](update[-_])?slice')


class Estimated(NamedTuple):
    """The estimate of a step."""

    places: dict[Place, Share]  # seconds, and how many instructions; the longest first
    seconds: dict[str, float]  # of each instruction in one step, by its name
    exact: bool  # False if the length of a loop could not be read

    @property
    def total(self) -> Share:
        """The whole step."""
        return add(self.places.values())


def estimated(module: Module, clock: float) -> Estimated:
    """The compiler's estimate of an optimised TPU program at a clock in Hz."""
    where = places(module)
    groups: dict[Place, list[Share]] = {}
    seconds: dict[str, float] = {}
    exact = True
    for step in module.walk():
        match = CYCLES.search(step.instruction.attributes)
        exact &= step.exact
        if not match:
            continue
        name, time = step.instruction.name, step.times * int(match[1]) / clock
        multiplies = _multiplies(module, step)
        place = stacked(where[name], _moved(step)) if not multiplies else where[name]
        share = Share(seconds=time, product_seconds=time if multiplies else 0.0, kernels=step.times)
        groups.setdefault(place, []).append(share)
        seconds[name] = seconds.get(name, 0.0) + time
    sums = {place: add(shares) for place, shares in groups.items()}
    return Estimated(dict(sorted(sums.items(), key=lambda item: -item[1].seconds)), seconds, exact)


def _multiplies(module: Module, step: Step) -> bool:
    inside = module.body(step.instruction).values()
    return any(i.opcode in PRODUCTS for i in (step.instruction, *inside))


def _moved(step: Step) -> str:
    """The slicing that an instruction does, by its own name or that of its operation in jax."""
    match = STACKED.search(f'{step.instruction.opcode} {step.instruction.name} {step.instruction.op_name}')
    return match[0].replace('_', '-') if match else ''
