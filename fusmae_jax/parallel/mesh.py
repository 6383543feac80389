"""The device mesh, with axes `data` and `fsdp`, and the layout of a batch on it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusmae_jax.config.run import Parallel
from fusmae_jax.errors import InputError

AXES = ('data', 'fsdp')


def make_mesh(parallel: Parallel, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (all of them by default); an axis of -1 takes what is left."""
    devices = jax.devices() if devices is None else devices
    data, fsdp = parallel.data, parallel.fsdp
    if data == -1 and fsdp > 0:
        data = len(devices) // fsdp
    elif fsdp == -1 and data > 0:
        fsdp = len(devices) // data
    if data * fsdp != len(devices) or data < 1:
        raise InputError(
            f'config.parallel: data={parallel.data} x fsdp={parallel.fsdp} does not cover '
            f'{len(devices)} devices; -1 takes what is left'
        )
    # Auto leaves the layout of intermediates to the compiler; jax.make_mesh defaults to Explicit.
    types = (AxisType.Auto,) * 2
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if slices == 1 or data % slices:
        if slices > 1 and devices[0].platform == 'tpu':
            raise InputError(
                f'config.parallel: data={data} cannot span {slices} slices; make it a multiple of {slices}, '
                f'so that fsdp={fsdp} stays within one slice'
            )
        return jax.make_mesh((data, fsdp), AXES, axis_types=types, devices=devices)
    # Gradients cross the slow network between slices once a step; parameters never do.
    grid = create_hybrid_device_mesh((data // slices, fsdp), (slices, 1), devices)
    return Mesh(grid, AXES, axis_types=types)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over the whole mesh along their first axis."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raises InputError unless every device gets the same number of rows in every micro-batch."""
    parts = mesh.size * accumulation
    if batch_size % parts:
        devices = f'{mesh.size} devices' + (f' x {accumulation} micro-batches' if accumulation > 1 else '')
        raise InputError(
            f'config.train.batch_size={batch_size} cannot be split over {devices}; '
            f'the nearest that can: {max(parts, round(batch_size / parts) * parts)}'
        )


def target_platform() -> str:
    """'gpu', 'tpu' or 'cpu': what the program that is being traced will run on.

    That is the platform of the mesh where one is set, since it may be compiled for a machine that is not
    there, and otherwise the one that jax has found.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def on_each_device(function: Callable[..., Any], *batch: Any, shared: tuple[Any, ...] = ()) -> Any:
    """`function(*batch, *shared)`, run by each device on its own rows of the arrays in `batch`.

    For kernels, which the compiler cannot split: it would gather the whole batch on every device. The results
    have a leading axis of rows too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*batch, *shared)
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = (*[rows] * len(batch), *[whole] * len(shared))
    return jax.shard_map(function, in_specs=specs, out_specs=rows, check_vma=False)(*batch, *shared)
