"""Start and end of a run of many processes: how they find each other, and how one of them leaves.

TPU pods, SLURM and Open MPI tell a process where it belongs; elsewhere `parallel.coordinator`,
`parallel.num_processes` and `parallel.process_id` do.
"""

import importlib.util
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import jax
from absl import logging

from fusmae_jax.config.run import Parallel
from fusmae_jax.errors import InputError

ADDRESS = 'JAX_COORDINATOR_ADDRESS'  # what jax itself reads, where the configuration names no coordinator


def initialize(parallel: Parallel, timeout: int = 300) -> None:
    """Joins the other processes of the run; does nothing where there are none.

    Must come before anything that touches a device. From then on SIGTERM belongs to jax, which passes it on
    to all processes (see `Preemption`); a Python handler installed later would silence that for good.

    Args:
        parallel: what the configuration says of processes.
        timeout: seconds to wait until all are there.

    Raises:
        InputError: the settings are incomplete. (If not all processes come in time, this process ends with a
            sentence and exit code 2: the wait cannot be broken off otherwise.)
    """
    address = parallel.coordinator or os.environ.get(ADDRESS, '')
    cluster = _cluster()
    if parallel.distributed == 'off' or jax.distributed.is_initialized():
        return
    _check(parallel, address, cluster)
    if not (address or cluster):
        return
    complete = bool(address) and parallel.num_processes > 0 and parallel.process_id >= 0
    # jax answers a missing process by aborting with a stack trace, so the sentence has to come before.
    watch = threading.Timer(timeout, _give_up, (parallel, address, cluster, timeout))
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator_address=address or None,
            num_processes=parallel.num_processes or None,
            process_id=parallel.process_id if parallel.process_id >= 0 else None,
            local_device_ids=_local_devices(os.environ) if cluster == 'slurm' and not complete else None,
            cluster_detection_method='deactivate' if complete else None if cluster == 'tpu' else cluster,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=parallel.heartbeat_seconds,
            # Who leaves waits for the others no longer than it would take to find out that they are lost.
            shutdown_timeout_seconds=parallel.heartbeat_seconds,
        )
    except ValueError:
        if cluster != 'tpu' or address:
            raise
        logging.info('TPU chips, but nothing that tells of other hosts: this process runs alone')
    except jax.errors.JaxRuntimeError as error:
        if 'RPC server' not in str(error):
            raise
        raise InputError(f'coordinator {address}: that port is taken; give all another one') from error
    finally:
        watch.cancel()


def abandon(error: Exception) -> NoReturn:
    """Ends this process of several at once, with the error and what to do about it.

    Any orderly way out, such as finishing a checkpoint, would wait for processes that may be gone. The
    others hear of it when a connection breaks, or `parallel.heartbeat_seconds` have passed.
    """
    known, what = isinstance(error, InputError), str(error)
    if not known:
        traceback.print_exception(error)
        what = (
            'if it lost a connection, another process of this run is gone; see the end of its log. The same '
            'command, in all processes, goes on from the newest checkpoint'
        )
    here = f'process {jax.process_index()} of {jax.process_count()}'
    print(f'error: {here} ends here: {what}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if known else 1)


def _give_up(parallel: Parallel, address: str, cluster: str, timeout: int) -> None:
    """Ends this process with a sentence on what is missing; runs in a thread of its own."""
    count = f'{parallel.num_processes} ' if parallel.num_processes else ''
    where = f'coordinator {address}' if address else f'the coordinator named by {cluster}'
    if parallel.process_id and address and not _answers(address):
        what = (
            f'{where}: nothing has answered there for {timeout} s; check that process 0 runs on that '
            f'machine, that host and port are right, and that no firewall or proxy variable stands between'
        )
    else:
        what = (
            f'{where}: not all {count}processes were there within {timeout} s; check that as many were '
            f'started as parallel.num_processes says, each with its own parallel.process_id, and that all '
            f'can reach it'
        )
    print(f'error: {what}', file=sys.stderr, flush=True)
    os._exit(2)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(':')
    try:
        with socket.create_connection((host.strip('[]'), int(port)), timeout=2):
            return True
    except OSError:
        return False


def _cluster() -> str:
    """Who started several processes: slurm, ompi, tpu; '' for nobody."""
    environment = os.environ
    if 'SLURM_STEP_NODELIST' in environment and _number(environment, 'SLURM_NTASKS') > 1:
        return 'slurm'
    if 'OMPI_MCA_orte_hnp_uri' in environment and _number(environment, 'OMPI_COMM_WORLD_SIZE') > 1:
        return 'ompi'
    chips = [*Path('/dev').glob('accel[0-9]*'), *Path('/dev/vfio').glob('[0-9]*')]
    wanted = (jax.config.jax_platforms or 'tpu').split(',')[0]  # type: ignore[attr-defined]
    return 'tpu' if chips and wanted == 'tpu' and importlib.util.find_spec('libtpu') else ''


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, '')
    return int(value) if value.isdigit() else 0


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """GPUs that a task of a SLURM job uses, of those it sees; None leaves it to jax: one GPU a task.

    jax takes the GPU with the task's number on its node, which is wrong in two cases: a task that sees a
    single GPU counts it as 0, and the only task of a node has all of them.
    """
    visible = environment.get('CUDA_VISIBLE_DEVICES', '')
    count = len(visible.split(',')) if visible else _number(environment, 'SLURM_GPUS_ON_NODE')
    if visible and count == 1:
        return [0]
    alone = _number(environment, 'SLURM_NTASKS') == _number(environment, 'SLURM_NNODES')
    return list(range(count)) if alone and count else None


def _check(parallel: Parallel, address: str, cluster: str) -> None:
    """Raises InputError for settings that cannot work; jax would wait for minutes first."""
    count, index = parallel.num_processes, parallel.process_id
    if not (address or cluster):
        if count > 1 or index >= count:  # unset, they are 0 and -1
            raise InputError(
                f'parallel.num_processes={count}, parallel.process_id={index}: nothing tells where the other '
                'processes are, so each would train alone; set parallel.coordinator, HOST:PORT of process 0'
            )
        return
    if not cluster and (count < 1 or index < 0):
        raise InputError(
            f'coordinator {address}: nothing here tells which process this is; set parallel.num_processes '
            f'(found {count}) and, in each process, its parallel.process_id (found {index}), counted from 0'
        )
    if count and index >= count:
        raise InputError(
            f'parallel.process_id={index}: the {count} processes of parallel.num_processes count from 0 to '
            f'{count - 1}'
        )
    host, _, port = address.rpartition(':')
    if address and not (host and port.isdigit()):
        raise InputError(
            f'parallel.coordinator={address!r} must be HOST:PORT, with any free port of the machine of '
            f'process 0, such as 10.0.0.1:8476'
        )
