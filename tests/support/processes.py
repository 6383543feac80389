"""Starts the processes of a run on this machine, and waits for them, with a limit."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """What a process left: its exit code, when that was in seconds after the start, and its words."""

    code: int
    seconds: float
    output: str


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def run_processes(
    config, workdir, *, count, devices, moments=None, settings=(), own=None, heartbeat=20, limit=240
):
    """Runs `pretrain` in `count` processes of `devices` CPU devices each.

    `moments` maps a process to (moment, signal) of `distributed_worker.py`; `own` to settings of its own.
    """
    port, logs, running = free_port(), [], []
    shared = [f'--config={config}', f'--workdir={workdir}', *settings]
    if count > 1:
        shared += [
            f'--config.parallel.coordinator=localhost:{port}',
            f'--config.parallel.num_processes={count}',
            f'--config.parallel.heartbeat_seconds={heartbeat}',
        ]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    begin = time.monotonic()
    try:
        for index in range(count):
            log = Path(f'{workdir}.{index}.log')
            logs.append(log)
            moment = (moments or {}).get(index, ('never', 'SIGTERM'))
            words = [*shared, *([f'--config.parallel.process_id={index}'] if count > 1 else [])]
            words += (own or {}).get(index, [])
            with log.open('w') as file:
                running.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            '-m',
                            'tests.support.distributed_worker',
                            *moment,
                            'pretrain',
                            *words,
                        ],
                        cwd=ROOT,
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        return _wait(running, logs, begin, limit)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _wait(running, logs, begin, limit):
    ended = {}
    while len(ended) < len(running):
        for index, process in enumerate(running):
            if index not in ended and process.poll() is not None:
                ended[index] = time.monotonic() - begin
        if time.monotonic() - begin > limit:
            words = '\n'.join(log.read_text()[-2000:] for log in logs)
            raise AssertionError(f'after {limit} s only the processes {sorted(ended)} had ended:\n{words}')
        time.sleep(0.05)
    return [
        Ended(process.returncode, ended[index], logs[index].read_text())
        for index, process in enumerate(running)
    ]
