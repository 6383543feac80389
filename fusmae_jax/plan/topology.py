"""The machine that a plan is for: named TPU slices or GPUs that need not be there, or the devices at hand."""

import importlib.util
import os
import re
from argparse import ArgumentTypeError
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from packaging.requirements import Requirement

from fusmae_jax import installed
from fusmae_jax.config.options import share
from fusmae_jax.errors import InputError
from fusmae_jax.plan.gpus import GPUS, Gpu, description

GIB = 2**30
LOCAL = 'local'
SYNTAX = re.compile(r'(v4|v5e|v5p|v6e):(\d+(?:x\d+){1,2}?)(?:x(\d+)slices)?')
GPU_SYNTAX = re.compile(rf'({"|".join(GPUS)}):(\d+)(?:x(\d+)hosts)?')
EXAMPLES = (
    'v5e:16x16, v5p:4x4x4, v5e:16x16x2slices (two slices of 16 x 16), h100:8, h100:8x4hosts (four hosts of 8 '
    'GPUs), or local'
)
PLUGINS = ('jax_cuda13_plugin', 'jax_cuda12_plugin')
# Share of a GPU's memory that jax takes, and the variables that change it, the first that is set.
SHARE, SHARE_VARIABLES = 0.75, ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


class Chip(NamedTuple):
    """One kind of TPU chip, as the vendor describes it."""

    hbm: int  # bytes; cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e
    axes: int  # dimensions of its network
    options: dict[str, Any]  # for libtpu
    clock: float  # Hz at which its matrix units, all busy, give the peak of the data sheet


# Both cores of a v4 or v5p chip are one device.
MEGACORE = {'chip_config_name': 'megacore'}
CHIPS = {
    'v4': Chip(32 * GIB, 3, MEGACORE, 1.05e9),  # 275 TFLOP/s of 8 units of 128 x 128 multiply-adds
    'v5e': Chip(16 * GIB, 2, {}, 1.5e9),  # 197 of 4
    'v5p': Chip(95 * GIB, 3, MEGACORE, 1.75e9),  # 459 of 8
    # 918 of what is taken as 4 units of 256 x 256: the compiler reckons with more multiply-adds a cycle for a
    # large product than the 2 units of its data sheet have.
    'v6e': Chip(32 * GIB, 2, {}, 1.75e9),
}


class Machine(NamedTuple):
    """Devices to compile for, and the memory of each."""

    name: str
    devices: list[jax.Device]
    slices: int
    hosts: int
    memory: int  # bytes of one device that a program can have
    memory_source: str
    clock: float | None = None  # Hz, of a TPU

    @property
    def kind(self) -> str:
        """The devices' name in jax."""
        return self.devices[0].device_kind

    @property
    def platform(self) -> str:
        """'tpu', 'gpu' or 'cpu'."""
        return self.devices[0].platform


def machine(name: str) -> Machine:
    """The machine of a `--topology`; raises InputError if there is none of that name."""
    if name == LOCAL:
        return _local()
    if gpus := GPU_SYNTAX.fullmatch(name):
        return _gpus(name, GPUS[gpus[1]], int(gpus[2]), int(gpus[3] or 1))
    match = SYNTAX.fullmatch(name)
    if not match:
        raise InputError(f'--topology={name}: not understood; write {EXAMPLES}')
    generation, shape, slices = match[1], match[2], int(match[3] or 1)
    chip = CHIPS[generation]
    if shape.count('x') + 1 != chip.axes:
        raise InputError(
            f'--topology={name}: a {generation} slice has {chip.axes} dimensions; write {EXAMPLES}'
        )
    if slices < 1:
        raise InputError(f'--topology={name}: there must be at least one slice')
    devices = _described(name, f'{generation}:{shape}', slices, chip)
    hosts = len({(getattr(d, 'slice_index', 0), d.process_index) for d in devices})
    limit, source = _compiler_limit(devices[0]), 'limit of the compiler'
    if limit is None:
        limit, source = chip.hbm, 'the whole HBM of the data sheet'
    return Machine(name, devices, slices, hosts, limit, source, chip.clock)


def is_here(device: jax.Device) -> bool:
    """Whether a device is one of this machine, and not of a description."""
    return device in jax.devices()


def _gpus(name: str, gpu: Gpu, count: int, hosts: int) -> Machine:
    """Hosts of so many GPUs each, none of which need be there."""
    if not count or not hosts:
        raise InputError(f'--topology={name}: there must be at least one GPU and one host')
    if not any(importlib.util.find_spec(plugin) for plugin in PLUGINS):
        raise InputError(
            f"--topology={name} is compiled by jax's CUDA plugin, which is not installed: "
            f'{installed.install("cuda-plan")} (no GPU is needed), or use --topology=local'
        )
    _leave_accelerators_alone()
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            platform='cuda', topology_name='', target_config=description(gpu), topology=f'{hosts}x1x{count}'
        )
    except Exception as error:  # a class of jaxlib that differs between versions
        raise InputError(f"--topology={name}: jax's CUDA plugin refuses it ({error})") from error
    variable = next((v for v in SHARE_VARIABLES if os.environ.get(v)), '')
    taken = _share(variable) if variable else SHARE
    source = f'{taken:.0%} of the card, which is what jax takes' + (f'; {variable}' if variable else '')
    return Machine(name, list(described.devices), 1, hosts, int(taken * gpu.memory), source)


def _share(variable: str) -> float:
    try:
        return share(os.environ[variable])
    except ArgumentTypeError as error:
        raise InputError(f'the environment variable {variable}: {error}') from error


def _leave_accelerators_alone() -> None:
    # Sharded constants are made on this host's own devices: a CPU will do, where nobody asked for another.
    if not os.environ.get('JAX_PLATFORMS'):
        jax.config.update('jax_platforms', 'cpu')


def _described(name: str, shape: str, slices: int, chip: Chip) -> list[jax.Device]:
    """The devices of a TPU slice that is not there."""
    if not os.environ.get('TPU_LIBRARY_PATH') and importlib.util.find_spec('libtpu') is None:
        raise InputError(
            f'--topology={name} is compiled by libtpu, which is not installed: '
            f'{installed.install("tpu")} (no TPU is needed), or use --topology=local'
        )
    if mismatch := libtpu_mismatch():
        logging.warning(mismatch)
    # libtpu asks for these on a machine without a TPU, and otherwise looks for one, or for its only user.
    for key, value in (
        ('TPU_WORKER_HOSTNAMES', 'localhost'),
        ('TPU_ACCELERATOR_TYPE', 'v5litepod-256'),
        ('TPU_SKIP_MDS_QUERY', '1'),
        ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
    ):
        os.environ.setdefault(key, value)
    _leave_accelerators_alone()
    from jax.experimental import topologies

    several = {'num_slices': slices} if slices > 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform='tpu', topology_name=shape, **chip.options, **several
        )
    except Exception as error:  # a class of jaxlib that differs between versions
        raise InputError(
            f'--topology={name}: libtpu knows no such machine ({error}); try {EXAMPLES}'
        ) from error
    return list(described.devices)


def libtpu_mismatch() -> str:
    """A sentence where the installed libtpu is not the one that the installed jax asks for; else ''."""
    if os.environ.get('TPU_LIBRARY_PATH'):
        return ''  # a library of the user's own, whose version nothing states
    paired = next(
        requirement.specifier
        for requirement in map(Requirement, metadata.requires('jax') or ())
        if requirement.name == 'libtpu'
    )
    libtpu = metadata.version('libtpu')
    if paired.contains(libtpu, prereleases=True):
        return ''
    return (
        f'libtpu {libtpu} is not the one that jax {metadata.version("jax")} is made for (libtpu{paired}): '
        f'plans take up to three times as long and may differ; pip install "libtpu{paired}"'
    )


def _compiler_limit(device: jax.Device) -> int | None:
    """Bytes that libtpu gives to a program: less than the HBM, since it keeps some for itself.

    Only the refusal of a program that is far too large states it.
    """
    where = jax.sharding.SingleDeviceSharding(device)
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)
    try:
        jax.jit(lambda x: x + 1, in_shardings=where, out_shardings=where).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return out_of_memory(str(error))[1]
    return None


UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
AMOUNT = r'([\d.]+)([KMGT]?)'


def out_of_memory(message: str) -> tuple[int | None, int | None]:
    """Bytes needed and available, from the compiler's refusal; None for what it does not state."""
    needed = re.search(rf'Used {AMOUNT} of {AMOUNT} hbm', message)
    if needed:
        return _amount(needed[1], needed[2]), _amount(needed[3], needed[4])
    needed = re.search(rf'\({AMOUNT}\) exceeds available \w+ \({AMOUNT}\)', message, re.IGNORECASE)
    if needed:
        return _amount(needed[1], needed[2]), _amount(needed[3], needed[4])
    return None, None


def _amount(number: str, unit: str) -> int:
    return int(float(number) * UNITS[unit])


def _local() -> Machine:
    devices = jax.devices()
    stats = devices[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        memory, source = int(stats['bytes_limit']), 'what jax may take of this device'
    else:
        pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        memory, source = pages // jax.local_device_count(), 'memory of this host, shared by its devices'
    return Machine(LOCAL, devices, 1, jax.process_count(), memory, source)
