"""How processes find each other and agree, without a run; the whole runs are in test_two_process."""

import os
import subprocess
import sys

import jax
import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.parallel import distributed, processes
from tests.support.processes import ROOT, free_port

# Everything that several processes settle among themselves, without the minute that two whole runs take.
AGREE = """
import contextlib, os, signal, sys, time, types
import jax
from etils import epath
from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config.run import Parallel
from fusmae_jax.errors import InputError
from fusmae_jax.parallel import processes, distributed
from fusmae_jax.parallel.preemption import Preemption
from fusmae_jax.run import start
start.PATIENCE = 1
port, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
distributed.initialize(Parallel(coordinator=f'localhost:{port}', num_processes=2, process_id=index))
def refused(call, *arguments):
    try:
        call(*arguments)
    except InputError as error:
        print('refused:', error)
def fails_in_one():
    if index:
        raise InputError('no such folder')
    return 'fine'
with contextlib.ExitStack() as stack:
    preemption = Preemption(stack)
    print(jax.process_count(), jax.device_count(), processes.gather({'from': 'x' * (index + 1)}))
    refused(processes.check_same, {'seed': index, 'size': 3}, 'use the same')
    refused(processes.together, fails_in_one)
    start.check_storage_is_shared(epath.Path(folder) / 'shared')
    refused(start.check_storage_is_shared, epath.Path(folder) / str(index))
    refused(start.newest_step, types.SimpleNamespace(latest=lambda: index or None, directory='seen'))
    checkpoints = Checkpoints(epath.Path(folder) / 'shared', keep=1)
    everywhere = jax.sharding.NamedSharding(jax.make_mesh((4,), ('data',)), jax.sharding.PartitionSpec())
    values = jax.device_put({'step': 6000, 'params': {'a': 1.0}, 'opt_state': {'b': 2.0}}, everywhere)
    for call in range(1000):
        if call == 5:
            checkpoints.save(values, {})  # of a run that has gone on from a checkpoint far behind these calls
            if index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1.5)  # jax looks for the signal once a second
        if preemption.reached():
            break
        time.sleep(0.01 * (1 + index))
    checkpoints.close()
    print('stops at', call)
"""


def test_processes_agree_on_values_failures_and_where_to_stop(tmp_path):
    """SIGTERM to one while a checkpoint is saved; the faster and the slower one stop at the same call."""
    port, running = free_port(), []
    for index in range(2):
        command = [sys.executable, '-c', AGREE, str(port), str(index), str(tmp_path)]
        environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2'}
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    try:
        words = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0], words
    lines = [[x for x in out.splitlines() if 'Gloo' not in x] for out, _ in words]
    for said, prefix in zip(lines, ('process 1: ', '')):
        text = '\n'.join(said)
        assert said[0] == "2 4 [{'from': 'x'}, {'from': 'xx'}]"
        assert 'seed: 0 in process 0; 1 in process 1' in text and 'size' not in text
        assert f'refused: {prefix}no such folder' in text
        assert text.count('storage that all of them share') == 1
        assert 'newest checkpoint: None in process 0; 1 in process 1' in text and 'list seen diff' in text
    assert lines[0][-1] == lines[1][-1] and lines[0][-1].startswith('stops at'), lines
    assert 5 <= int(lines[0][-1].split()[-1]) < 900


def test_a_coordinator_that_nobody_reaches_is_named_in_time():
    """A host that is not there, and processes that never come: a sentence and exit code 2, no stack trace."""
    code = (
        'import sys\nfrom fusmae_jax.config.run import Parallel\n'
        'from fusmae_jax.parallel import distributed\n'
        'where, index = f"localhost:{sys.argv[1]}", int(sys.argv[2])\n'
        'distributed.initialize(Parallel(coordinator=where, num_processes=2, process_id=index), timeout=1)'
    )
    for index, words in ((1, 'nothing has answered there for 1 s'), (0, 'not all 2 processes were there')):
        done = subprocess.run(
            [sys.executable, '-c', code, str(free_port()), str(index)],
            cwd=ROOT,
            env=os.environ | {'JAX_PLATFORMS': 'cpu'},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2 and words in done.stderr and 'stack trace' not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'coordinator': 'host:80'}, 'set parallel.num_processes'),
        ({'coordinator': 'host', 'num_processes': 2, 'process_id': 0}, 'must be HOST:PORT'),
        ({'coordinator': 'host:80', 'num_processes': 2, 'process_id': 2}, 'count from 0 to 1'),
        ({'num_processes': 2, 'process_id': 1}, 'set parallel.coordinator'),
        ({'num_processes': 2}, 'set parallel.coordinator'),
        ({'process_id': 0}, 'set parallel.coordinator'),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_waits(values, words):
    with pytest.raises(InputError, match=words):
        distributed.initialize(cfg.Parallel(**values))


def test_nothing_to_join_leaves_a_process_alone(monkeypatch):
    for name, value in {'SLURM_STEP_NODELIST': 'n1', 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}.items():
        monkeypatch.setenv(name, value)
    distributed.initialize(cfg.Parallel())
    distributed.initialize(cfg.Parallel(num_processes=1, process_id=0))
    distributed.initialize(cfg.Parallel(distributed='off', coordinator='host:80'))
    assert not jax.distributed.is_initialized()
    assert processes.gather({'a': [1]}) == [{'a': [1]}]


@pytest.mark.parametrize(
    ('variables', 'devices'),
    [
        ({'SLURM_NTASKS': '2', 'SLURM_NNODES': '2', 'SLURM_GPUS_ON_NODE': '8'}, list(range(8))),
        ({'SLURM_NTASKS': '2', 'SLURM_NNODES': '2', 'CUDA_VISIBLE_DEVICES': '0,1,2'}, [0, 1, 2]),
        ({'SLURM_NTASKS': '16', 'SLURM_NNODES': '2', 'CUDA_VISIBLE_DEVICES': '5'}, [0]),
        ({'SLURM_NTASKS': '16', 'SLURM_NNODES': '2', 'SLURM_GPUS_ON_NODE': '8'}, None),
        ({'SLURM_NTASKS': '2', 'SLURM_NNODES': '2'}, None),
    ],
)
def test_a_slurm_task_uses_the_gpus_that_are_its_own(variables, devices):
    assert distributed._local_devices(variables) == devices
