"""A storm of kills over one run: `python -m tests.support.storm`.

SIGKILL and SIGTERM hit `python main.py pretrain` at random moments - during start-up, compilation, steps,
checkpoints and evaluation - while its compilation cache and, twice, its newest checkpoint are damaged between
the sittings. In the end it must have finished, with the parameters and losses of a run that nobody disturbed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fusmae_jax.checkpoints import manifest
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import to_dict
from fusmae_jax.encoders.load import load
from fusmae_jax.run import compile_cache
from fusmae_jax.shipped.data.synthetic import write
from tests.support.tiny import tiny_config

ROOT = Path(__file__).parents[2]
EVERY = 10  # steps between two checkpoints, and between two evaluations
PATIENCE = 600.0  # seconds until a sitting that does not get on counts as hung
PHASES = ('start', 'compile', 'step', 'checkpoint', 'evaluation')
# How long after a phase has begun the signal may come, in seconds.
DELAY = {'start': 6.0, 'compile': 2.0, 'step': 0.02, 'checkpoint': 0.05, 'evaluation': 0.1}


class Kill(NamedTuple):
    """One disturbance."""

    name: str  # of the signal
    phase: str
    steps: int  # that the sitting does first, for the phase `step`
    delay: float  # seconds from the begin of the phase


def write_config(folder: Path, steps: int) -> Path:
    """A tiny run in a file in the style of configs/, on records of its own."""
    path = str(write(folder / 'data', records=20))
    config = tiny_config(
        data=cfg.Data(path=path, train_split='train[:16]', val_split='train[16:]', threads=2, prefetch=2),
        train=cfg.Train(batch_size=8, steps=steps),
        checkpoint=cfg.Checkpoint(every_steps=EVERY),
        log=cfg.Log(every_steps=1, images_every_steps=0, eval_every_steps=EVERY),
    )
    file = folder / 'storm_config.py'
    file.write_text(
        'import ml_collections\n\n\ndef get_config():\n'
        f'    return ml_collections.ConfigDict({to_dict(config)!r})\n'
    )
    return file


def launch(config: Path, workdir: Path, log: Path) -> subprocess.Popen:
    """Starts a sitting; its output goes to a file."""
    arguments = ['pretrain', f'--config={config}', f'--workdir={workdir}']
    fast = {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}  # to compile in half the time
    environment = os.environ | fast | {'PYTHONUNBUFFERED': '1'}
    with log.open('w') as out:
        return subprocess.Popen(
            [sys.executable, 'main.py', *arguments], cwd=ROOT, env=environment, stdout=out, stderr=out
        )


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    file = workdir / 'metrics.jsonl'
    text = file.read_text() if file.exists() else ''
    return [json.loads(line) for line in text[: text.rfind('\n') + 1].splitlines()]


def reached(workdir: Path) -> int:
    """The last step whose metrics are written."""
    return max((row['step'] for row in rows(workdir)), default=0)


def begun(kill: Kill, workdir: Path, text: str, first: int, step: int) -> bool:
    """Whether a sitting that prints `text`, and went on from `first`, is where it shall be killed."""
    if kill.phase == 'start':
        return True
    if kill.phase == 'compile':
        return 'process 0 of' in text
    if 'compiled in' not in text:
        return False
    if kill.phase == 'checkpoint':
        return any('tmp' in path.name for path in (workdir / 'checkpoints').glob('*'))
    if kill.phase == 'evaluation':  # metrics come one step late: those of step 9 while step 10 is evaluated
        return step > first and step % EVERY == EVERY - 1
    return step >= first + kill.steps


def wait_for(kill: Kill, process: subprocess.Popen, workdir: Path, log: Path) -> None:
    """Returns when it is time for the signal, or the sitting has ended.

    No sitting gets much further than one checkpoint, so that there is a run left for those that follow.
    """
    until, when, first = time.monotonic() + PATIENCE, None, None
    while process.poll() is None and (now := time.monotonic()) < until:
        text = log.read_text()
        step = reached(workdir) if 'compiled in' in text else 0  # by then the lines of lost steps are gone
        first = step if first is None and 'compiled in' in text else first
        if when is None and begun(kill, workdir, text, first or 0, step):
            when = now + kill.delay
        if (when is not None and now >= when) or (first is not None and step > first + EVERY + 2):
            return
        time.sleep(0.002)


def strike(kill: Kill, config: Path, workdir: Path, log: Path) -> int:
    """One sitting that ends with a signal; returns its exit code."""
    with launch(config, workdir, log) as process:
        wait_for(kill, process, workdir, log)
        ended = process.poll()
        if ended is None:
            process.send_signal(getattr(signal, kill.name))
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
    if ended is not None or code not in (0, -getattr(signal, kill.name)):
        raise AssertionError(
            f'{kill}: exit code {code} before or after the signal\n{log.read_text()[-4000:]}'
        )
    return code


def damage_cache(workdir: Path, rng: random.Random) -> str:
    """Spoils entries of the compilation cache, or the list of their digests."""
    files = sorted((workdir / compile_cache.FOLDER).glob('*'))
    for file in rng.sample(files, min(len(files), 8)):
        content = bytearray(file.read_bytes())
        how = rng.choice(('cut', 'flip', 'empty'))
        if how == 'flip' and content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content if how == 'flip' else content[: len(content) // 2] if how == 'cut' else b'')
    return f'; {min(len(files), 8)} files of the cache damaged' if files else ''


def damage_checkpoint(workdir: Path, rng: random.Random) -> str:
    """Flips a bit in the weights of the newest checkpoint, if there is one before it."""
    steps = sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit())
    if len(steps) < 2 or not (workdir / 'checkpoints' / str(steps[-1]) / manifest.NAME).exists():
        return ''
    newest = workdir / 'checkpoints' / str(steps[-1]) / 'params'
    file = max((f for f in newest.rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f'; checkpoint {steps[-1]} damaged'


def finish(config: Path, workdir: Path, log: Path) -> None:
    """A sitting that nobody disturbs."""
    with launch(config, workdir, log) as process:
        code = process.wait(PATIENCE)
    assert code == 0 and (workdir / 'COMPLETE').exists(), log.read_text()[-4000:]


def same(one: Path, two: Path) -> None:
    """Raises AssertionError unless two runs have the same losses at each step and the same weights."""
    left, right = ({row['step']: row['loss'] for row in rows(path) if 'loss' in row} for path in (one, two))
    assert left == right, [step for step in left if left[step] != right.get(step)]
    assert len([row for row in rows(two) if 'loss' in row]) == len(left)  # no step twice
    for a, b in zip(jax.tree.leaves(load(one).params), jax.tree.leaves(load(two).params), strict=True):
        np.testing.assert_array_equal(a, b)


def storm(folder: Path, steps: int, kills: int, seed: int) -> None:
    """Runs undisturbed and stormy, and compares; raises AssertionError if anything went wrong."""
    rng, begin = random.Random(seed), time.monotonic()
    config, calm, stormy = write_config(folder, steps), folder / 'calm', folder / 'stormy'
    finish(config, calm, folder / 'calm.log')
    print(f'undisturbed: {time.monotonic() - begin:.0f} s', flush=True)
    phases = [PHASES[number % len(PHASES)] for number in range(kills)]
    rng.shuffle(phases)
    spoiled = 0
    for number, phase in enumerate(phases):
        name = rng.choice(('SIGKILL', 'SIGTERM'))
        kill = Kill(name, phase, rng.randrange(1, EVERY), rng.uniform(0, DELAY[phase]))
        code = strike(kill, config, stormy, folder / f'{number}.log')
        note = damage_cache(stormy, rng) if number % 3 == 2 else ''
        if spoiled < min(2, kills // 3) and number >= (spoiled + 1) * kills // 3:
            note += (bad := damage_checkpoint(stormy, rng))
            spoiled += bool(bad)
        print(
            f'{number + 1:3d} {kill.name} during {phase}: step {reached(stormy)}, exit {code}{note}',
            flush=True,
        )
    finish(config, stormy, folder / 'last.log')
    same(calm, stormy)
    moved = sorted(path.name for path in (stormy / manifest.ASIDE).glob('*'))
    assert len(moved) == spoiled, moved
    took = (time.monotonic() - begin) / 60
    print(f'{kills} kills over {steps} steps, {spoiled} checkpoints damaged: bit-identical; {took:.1f} min')


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        storm(Path(place), given.steps, given.kills, given.seed)
