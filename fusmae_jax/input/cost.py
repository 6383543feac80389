"""What reading records costs a host, and whether that or the model limits a run.

The cost is processor time of one core, which adds up over cores; records a second of a busy machine do not.
"""

from typing import Literal, NamedTuple

from fusmae_jax.errors import InputError

CORES = 16  # of the host that `bench input` extrapolates to
# Nanoseconds of one core for a byte of the images of a record, from the page cache to an array of the device:
# `python main.py bench input --data=DIR --threads=1` on generated records of BigEarthNet-MM, busy cores.
ZSTD, PLAIN = 3.0, 1.5
# Seconds of a record in which one process holds Python's lock, so that no more threads help: of the same
# records, the steps of `Batches` that are Python's, and a copy of the bytes that were read.
LOCKED = 1.3e-4


class Rate(NamedTuple):
    """How fast a stage of reading is, and what it takes."""

    records_per_second: float  # by the clock, with the threads that there were
    cpu_seconds: float  # of all threads together, a record


class Limit(NamedTuple):
    """What a host can read beside what a run wants."""

    wanted: float  # records a second into one host
    reached: float  # that the host reads
    cores: float  # that reading as many as wanted keeps busy
    by: Literal['input', 'compute']

    def __str__(self) -> str:
        text = (
            f'{self.wanted:,.0f} records/s into a host keep {self.cores:.1f} cores busy, and it can read '
            f'{self.reached:,.0f}: the '
        )
        if self.by == 'compute':
            return text + 'computation is the limit'
        return text + (
            'input is the limit; records cost less without compression (data.cache, or converted with '
            "compression='none') and with s1_storage='int16', and several processes on a host read more"
        )


def cpu_seconds(image_bytes: float, compressed: bool) -> float:
    """What a record costs one core by our measurement, seconds.

    Args:
        image_bytes: of the images of a record, as they are sent to the device.
        compressed: whether shards are packed with zstd.
    """
    return image_bytes * 1e-9 * (ZSTD if compressed else PLAIN)


def reachable(cpu: float, cores: int = CORES, processes: int = 1) -> float:
    """Records a second that a host reads.

    Args:
        cpu: seconds of one core a record.
        cores: that have nothing else to do.
        processes: on this host; in each, Python's lock sets another limit.
    """
    return min(cores / cpu, processes / LOCKED)


def limit(images_per_second: float, cpu: float, cores: int = CORES, processes: int = 1) -> Limit:
    """Whether the input or the computation is the limit of a run.

    Args:
        images_per_second: that the devices of one host compute.
        cpu: seconds of one core a record: measured by `bench input`, or `cpu_seconds`.
        cores: of the host.
        processes: of the run on this host.

    Raises:
        InputError: a cost or a number of cores that is not positive.
    """
    if not (cpu > 0 and cores > 0 and processes > 0):
        raise InputError(
            f'a record of {cpu} s on {cores} cores in {processes} processes: all must be positive'
        )
    reached = reachable(cpu, cores, processes)
    by: Literal['input', 'compute'] = 'compute' if reached >= images_per_second else 'input'
    return Limit(images_per_second, reached, images_per_second * cpu, by)
