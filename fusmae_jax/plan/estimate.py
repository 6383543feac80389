"""Speed, hours and input rate of a run, from its operations and an assumed utilisation."""

from typing import NamedTuple

import jax

from fusmae_jax.input.mixture import row_counts
from fusmae_jax.plan.topology import Machine
from fusmae_jax.train.flops import peak_flops, train_flops_per_image
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import abstract_batch


class Estimate(NamedTuple):
    """What follows from the shapes and, for the last three, from `mfu`: None where the peak is unknown."""

    flops_per_image: float
    bytes_per_image: float  # as the host sends it to the device
    mfu: float  # assumed
    images_per_second: float | None
    hours: float | None  # in steps: evaluation, checkpoints and compilation come on top
    host_bytes_per_second: float | None  # into each host


def estimate(setup: Setup, machine: Machine, mfu: float) -> Estimate:
    """The estimate of a whole run at a model FLOPs utilisation in (0, 1]."""
    config = setup.config
    batch_size = config.train.batch_size
    rows = row_counts(config.data, batch_size)
    batch = abstract_batch(setup.contract, setup.objective.fields, rows, setup.mesh)
    image_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)) / batch_size
    flops = train_flops_per_image(config)
    peak = peak_flops(machine.devices[0])
    if peak is None:
        return Estimate(flops, image_bytes, mfu, None, None, None)
    rate = mfu * peak * len(machine.devices) / flops
    hours = setup.total_steps * batch_size / rate / 3600
    return Estimate(flops, image_bytes, mfu, rate, hours, rate * image_bytes / machine.hosts)
