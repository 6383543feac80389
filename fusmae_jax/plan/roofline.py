"""The roofline of a compiled step on a GPU: how long its kernels must take, and where that time goes.

A kernel takes as long as its products at the rate that large products reach, or as its bytes at the
bandwidth that large kernels reach, whichever is longer. That is a floor and no measurement: gaps between
kernels, products of shapes that fill the chip badly, arithmetic outside products and the network between
devices are not in it.
"""

from collections.abc import Iterable
from typing import NamedTuple

from fusmae_jax.plan.collectives import kind_of
from fusmae_jax.plan.gpus import Gpu
from fusmae_jax.plan.hlo import Module
from fusmae_jax.plan.kernels import FILL, MOVES, Kernel, Product, kernels
from fusmae_jax.plan.parts import BLOCKS, DECODERS, Place, places

SLICES, FILLS, COLLECTIVES = 'scan slices', 'zero-fills', 'collectives'


class Share(NamedTuple):
    """What a group of kernels adds up to in one step of one device."""

    seconds: float = 0.0  # modelled
    product_seconds: float = 0.0  # of its products alone
    flops: int = 0
    read: int = 0  # bytes
    written: int = 0
    kernels: int = 0

    @property
    def traffic(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class Placed(NamedTuple):
    """A kernel with the part of the model that it belongs to, and what it adds to the step."""

    kernel: Kernel
    place: Place
    share: Share


class Roofline(NamedTuple):
    """All kernels of a step; functions below answer questions about them."""

    gpu: Gpu
    kernels: tuple[Placed, ...]

    @property
    def total(self) -> Share:
        """The whole step."""
        return _sum(self.kernels)

    def by_place(self) -> dict[Place, Share]:
        """What each part of the model and kind of work adds up to, the longest first."""
        groups: dict[Place, list[Placed]] = {}
        for placed in self.kernels:
            groups.setdefault(placed.place, []).append(placed)
        sums = {where: _sum(group) for where, group in groups.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))

    def wide_products(self) -> list[tuple[Placed, Product]]:
        """Products whose operands are float32 or wider, with the kernels that they are in."""
        return [(k, p) for k in self.kernels for p in k.kernel.products if p.dtype in ('f32', 'f64')]

    def filled(self) -> int:
        """Bytes of buffers that are written with a constant."""
        return sum(k.share.written for k in self.kernels if k.kernel.hero == FILL)

    def moved(self) -> dict[str, int]:
        """Bytes that kernels read and write only to have the same numbers elsewhere, by operation."""
        return {
            name: sum(k.share.traffic for k in self.kernels if k.kernel.hero == name and not k.share.flops)
            for name in MOVES
        }

    def unknown(self) -> list[str]:
        """Names of hand-written kernels whose operations are not counted."""
        return [k.kernel.instruction.name for k in self.kernels if k.kernel.unknown]


def _sum(placed: Iterable[Placed]) -> Share:
    return add(each.share for each in placed)


def add(shares: Iterable[Share]) -> Share:
    """Several shares as one."""
    return Share(*map(sum, zip(*shares, Share())))


def roofline(module: Module, gpu: Gpu) -> Roofline:
    """The roofline of an optimised program on a GPU."""
    where = places(module)
    return Roofline(
        gpu,
        tuple(
            Placed(kernel, _settled(where[kernel.instruction.name], kernel), _share(kernel, gpu))
            for kernel in kernels(module)
        ),
    )


def _settled(place: Place, kernel: Kernel) -> Place:
    """What a kernel does for the loops around it, or for the network, has a kind of its own."""
    if kind_of(kernel.instruction):
        return Place(place.part, COLLECTIVES)
    return stacked(place, kernel.hero)


def stacked(place: Place, hero: str) -> Place:
    """The place of what only moves the numbers of stacked blocks in and out of their stacks."""
    if place.part not in (BLOCKS, DECODERS):
        return place
    if hero == FILL:
        return Place(place.part, FILLS)
    return Place(place.part, SLICES) if hero in ('dynamic-slice', 'dynamic-update-slice') else place


def _share(kernel: Kernel, gpu: Gpu) -> Share:
    products = sum(product.flops / gpu.rate(product.dtype, product.exact) for product in kernel.products)
    times = kernel.times
    return Share(
        times * max(products, kernel.traffic / gpu.stream),
        times * products,
        times * kernel.flops,
        times * kernel.read,
        times * kernel.written,
        times,
    )
