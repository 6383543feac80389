"""The start of a run: lock, parts, compiled step, overview, all held against the other processes."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from clu import parameter_overview
from etils import epath

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config.build import flatten, to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_train
from fusmae_jax.models.kernels.check import check_kernels
from fusmae_jax.parallel.lock import POLL, Lock
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.parallel.processes import check_same, gather, together
from fusmae_jax.run import jax_flags, trackers
from fusmae_jax.run.goodput import Goodput
from fusmae_jax.run.labelled import LabelledEvaluation
from fusmae_jax.run.workdir import versions
from fusmae_jax.train.checksum import make_check
from fusmae_jax.train.flops import peak_flops
from fusmae_jax.train.setup import Setup, make_setup

# What may differ between the processes of one run.
HOST = ('data.path', 'data.threads', 'data.prefetch', 'data.cache', 'parallel.process_id')
PATIENCE = 10  # seconds that a network file system may take to show a new file to the other hosts


def open_run(config: Config) -> tuple[Setup, Mixture]:
    """The parts of a run and its training records.

    Raises:
        InputError: settings and data do not fit together, or are not the same in all processes.
    """
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise InputError(
            f'process {jax.process_index()} has {jax.local_device_count()} of {jax.device_count()} devices, '
            f'and there are {jax.process_count()} processes: all must have equally many'
        )
    # First of all: with other settings each process would fail later, and for another reason.
    settings = flatten(to_dict(config))
    paths = {name for name in settings if name.startswith('data.mixture.') and name.endswith('.path')}
    shared = {name: value for name, value in settings.items() if name not in {*HOST, *paths}}
    # By name settings are equal in any order, and this one is a part of the model.
    shared['order of model.modalities'] = [*config.model.modalities]
    check_same(
        shared | versions() | jax_flags.values(), 'start them with the same code and the same settings'
    )
    together(lambda: trackers.check(config))
    source = together(lambda: open_train(config))
    setup = together(lambda: make_setup(config, source.contract, len(source)))
    check_same(
        {'data fingerprint': source.contract.digest, 'records': len(source)},
        f'their data are not the same set (data.path={config.data.path}); copy it again',
    )
    # Asked by all: one machine may have a disk for it and another none.
    together(lambda: source.copy_to(config.data.cache) if config.data.cache else None)
    return setup, source


def lock_workdir(workdir: epath.Path, stack: contextlib.ExitStack) -> Lock | None:
    """Keeps `workdir` for this run until `stack` is closed; the lock in the first of its processes.

    Raises:
        InputError: another run is at work there.
    """
    lock = Lock(workdir, 'a run of `pretrain`') if jax.process_index() == 0 else None
    # All of them ask for as long as the first one does not know: none waits in an exchange for another.
    while not gather(together(lambda: lock.take() if lock else None))[0]:
        time.sleep(POLL)
    if lock:
        stack.callback(lock.release)
    return lock


def check_storage_is_shared(workdir: epath.Path) -> None:
    """Raises InputError unless all processes see a file that the first one writes into `workdir`."""
    if jax.process_count() == 1:
        return
    probe = workdir / gather(f'.shared-{os.getpid()}-{time.time_ns()}')[0]
    first = jax.process_index() == 0
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
    gather(None)  # nobody looks before it is there
    deadline = time.monotonic() + PATIENCE
    while not (seen := probe.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        check_same(
            {'a file that process 0 wrote there': 'seen' if seen else 'not seen'},
            f'--workdir={workdir} must be on storage that all of them share',
        )
    finally:
        if first:
            probe.unlink()


def newest_step(checkpoints: Checkpoints) -> int | None:
    """The step from which a run goes on; raises InputError unless all processes see the same one."""
    saved = checkpoints.latest()
    check_same(
        {'newest checkpoint': saved},
        f'they list {checkpoints.directory} differently; start them again in a minute',
    )
    return saved


def print_overview(setup: Setup, source: Mixture) -> None:
    """Prints the parameters, what is to be known of the data, and the share of this process."""
    mesh = setup.mesh
    if jax.process_index() == 0:
        abstract = setup.abstract_state()['params']
        print(parameter_overview.get_parameter_overview(abstract, include_stats=False))
        for note in setup.notes:
            print(f'data: {note}')
    sharding = batch_sharding(mesh)
    rows = sum(len(pipeline.local_rows(sharding, count)) for count in source.rows.values())
    print(
        f'process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of '
        f'{mesh.size} devices ({mesh.devices.flat[0].device_kind}), mesh data={mesh.shape["data"]} x '
        f'fsdp={mesh.shape["fsdp"]}, {rows} of {setup.config.train.batch_size} rows a step, '
        f'{setup.total_steps} steps over {len(source):,} records, {setup.dtype}',
        flush=True,
    )


def make_labelled(setup: Setup) -> LabelledEvaluation | None:
    """The evaluation of `log.knn`, or None if it is off."""
    knn = setup.config.log.knn
    if not knn.every_steps:
        return None
    task = Task(
        path=knn.path,
        train_split=knn.train_split,
        val_split=knn.val_split,
        labels=knn.labels,
        kind=knn.kind,
    )
    return LabelledEvaluation(setup, task, knn.k, probe_epochs=knn.probe_epochs)


def make_goodput(workdir: epath.Path, setup: Setup) -> Goodput:
    """Measures where the time of a run goes; MFU where the chip's peak is known."""
    config, peak = setup.config, peak_flops(setup.mesh.devices.flat[0].device_kind)
    flops = setup.recipe.flops_per_image(config) * config.train.batch_size if peak else 0.0
    lead, all_peak = jax.process_index() == 0, (peak or 0.0) * setup.mesh.size
    return Goodput(workdir, lead, flops, all_peak, config.train.batch_size)


def trust_kernels(setup: Setup) -> None:
    """Raises InputError unless the fused kernels of a run on GPUs compute the same as plain operations."""
    if setup.mesh.devices.flat[0].platform == 'gpu':
        together(lambda: check_kernels(setup.config, setup.dtype))


def compile_step(setup: Setup) -> tuple[Any, Callable[[Any, int], None] | None]:
    """The compiled train step, and the check of replicas (None: there are none, or none is wanted).

    Prints how long the step took to compile and what a device has to hold.
    """
    begin = time.perf_counter()
    compiled = setup.lower().compile()
    memory = compiled.memory_analysis()
    if jax.process_index() == 0:
        print(
            f'compiled in {time.perf_counter() - begin:.1f} s; a device holds '
            f'{memory.argument_size_in_bytes / 2**20:,.0f} MiB of state and input and '
            f'{memory.temp_size_in_bytes / 2**20:,.0f} MiB of temporaries',
            flush=True,
        )
    replicas = setup.mesh.size > 1 and setup.config.checkpoint.checksum_every_steps > 0
    return compiled, make_check(setup.abstract_state()['params'], setup.mesh) if replicas else None
