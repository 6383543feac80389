"""One script for ten minutes on a machine with an NVIDIA GPU: what the train step does there, in one table.

    pip install -e '.[cuda,parity]'
    python benchmarks/accelerator.py

Each part has a process of its own (`accelerator_parts.py`) with a time limit, so one that fails or hangs
costs its own row alone. What no longer fits `--budget` seconds is left out, the least important first, and
the table says so. Writes `benchmarks/results/<card>.md`.

`--platform=cpu --size=tiny` runs the same with a small model where there is no GPU; its numbers mean nothing.
`--only=step,race` runs parts of these kinds alone.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name('accelerator_parts.py')
LIMIT = 240  # seconds of a part; a compile that takes longer is taken for one that hangs
# Seconds that a part of a kind is taken to need before one of that kind has run.
GUESS = {'step': 90, 'race': 60, 'whole': 100, 'resumed': 100, 'loader': 20, 'kernels': 30, 'data': 20}
BATCHES = {'tiny': (4, 8)}  # of other sizes: 256 and 512
DETERMINISTIC = {
    'XLA_FLAGS': '--xla_gpu_deterministic_ops=true',
    # A program from the cache would be the same one anyway.
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
}


USUAL, WHOLE = 'as configured', 'deterministic operations, without a break'


class Part(NamedTuple):
    """One row of the table."""

    kind: str  # a function of accelerator_parts
    title: str
    batch: int
    settings: tuple[str, ...] = ()
    name: str = ''  # of a contender of the race
    environment: tuple[tuple[str, str], ...] = ()


class Row(NamedTuple):
    """A part and what came of it: a result, or a reason why there is none."""

    part: Part
    result: dict[str, Any]
    problem: str = ''


Run = Callable[[Part, float], dict[str, Any]]


def parts(size: str) -> list[Part]:
    """All parts, the most important first."""
    first, second = BATCHES.get(size, (256, 512))

    def step(text: str, batch: int = first) -> Part:
        chosen = tuple(f'model.{word}' for word in text.split())
        return Part('step', f'train step, {text or USUAL}', batch, chosen)

    def race(name: str, batch: int = first) -> Part:
        return Part('race', f'race: {name}', batch, name=name)

    ours = 'fusmae_jax unrolled'  # as with `model.scan='auto'`
    exact = tuple(DETERMINISTIC.items())
    return [
        Part('data', 'data', first),
        Part('kernels', 'fused kernels against plain operations', first),
        step(''),
        race('torch.compile'),
        race(ours),
        race('torch eager'),
        Part('loader', 'loader alone, on the host', first),
        step('attention=cudnn'),
        step('', second),
        step('scan=True'),
        Part('whole', WHOLE, first, environment=exact),
        Part('resumed', 'deterministic operations, resumed half way', first, environment=exact),
        step('attention=xla'),
        step('norm=xla'),
        race('torch.compile', second),
        race(ours, second),
        step('attention=xla norm=xla'),
        step('attention=pallas norm=xla'),
        step('attention=pallas norm=pallas'),
        race('torch eager', second),
    ]


def measure(
    chosen: list[Part], budget: float, run: Run, clock: Callable[[], float] = time.monotonic
) -> list[Row]:
    """Runs parts in their order; one that would not end within `budget` seconds is left out.

    Args:
        chosen: the parts.
        budget: seconds for all of them.
        run: measures a part within a limit of seconds; raises RuntimeError.
        clock: in seconds.
    """
    begin, last, rows = clock(), dict(GUESS), []
    for part in chosen:
        started = clock()
        left = budget - (started - begin)
        if last[part.kind] > left:
            problem = f'left out: {max(left, 0):.0f} s left, about {last[part.kind]:.0f} s needed'
            rows.append(Row(part, {}, problem))
            continue
        try:
            rows.append(Row(part, run(part, min(left, LIMIT))))
            last[part.kind] = clock() - started
        except RuntimeError as error:
            rows.append(Row(part, {}, f'failed: {error}'))
        print(f'{part.title}, batch {part.batch}: {rows[-1].problem or "done"}', file=sys.stderr, flush=True)
    return rows


def run_part(job: dict[str, Any], environment: dict[str, str], limit: float) -> dict[str, Any]:
    """A part in its own process; raises RuntimeError with the last line of its error, or with the limit."""
    # Otherwise the last line of an error of what jax traces is about jax's own frames.
    environment = environment | {'JAX_TRACEBACK_FILTERING': 'off'}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            raise RuntimeError(f'not done after {limit:.0f} s') from None
    lines = [line for line in out.splitlines() if line.startswith('RESULT ')]
    if process.returncode or not lines:
        said = [line.strip() for line in err.splitlines() if line.strip()] or ['no message']
        raise RuntimeError(f'{said[-1][:200]} (exit code {process.returncode})')
    return json.loads(lines[-1].removeprefix('RESULT '))


def table(rows: list[Row]) -> list[str]:
    """The rows in Markdown."""
    head = (
        'part',
        'batch',
        'ms',
        'images/s',
        'MFU',
        'GiB',
        'compile, s',
        'modelled ms',
        'measured / modelled',
    )
    lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for part, result, problem in rows:
        if problem or 'seconds' not in result:
            cells = [problem or result.get('text', ''), *[''] * 6]
        else:
            cells = _cells(part, result)
        text = ' | '.join(cell.replace('|', '/') for cell in [part.title, f'{part.batch}', *cells])
        lines.append(f'| {text} |')
    return lines


def _cells(part: Part, result: dict[str, Any]) -> list[str]:
    seconds, model = result['seconds'], result.get('modelled')
    note = f' ({result["text"]})' if 'text' in result else ''
    memory, mfu, first = (result.get(key) for key in ('memory', 'mfu', 'first'))
    return [
        f'{seconds * 1e3:,.1f}{note}',
        f'{part.batch / seconds:,.1f}',
        '-' if mfu is None else f'{mfu:.1%}',
        '-' if memory is None else f'{memory / 2**30:.2f}',
        '-' if first is None else f'{first:.1f}',
        '-' if model is None else f'{model * 1e3:,.1f}',
        '-' if model is None else f'{seconds / model:.2f}',
    ]


def conclusions(rows: list[Row]) -> list[str]:
    """What follows from several rows: ratios to PyTorch, the price of determinism."""
    seconds = {(r.part.title, r.part.batch): r.result['seconds'] for r in rows if 'seconds' in r.result}
    said = []
    for (title, batch), ours in seconds.items():
        if title.startswith('race: fusmae_jax'):
            for name in ('torch.compile', 'torch eager'):
                if theirs := seconds.get((f'race: {name}', batch)):
                    times = f'{theirs / ours:.2f} x {name}'
                    said.append(f'Batch {batch}: {times}, without input preparation on either side.')
        usual = seconds.get((f'train step, {USUAL}', batch))
        if title == WHOLE and usual:
            said.append(
                f'Batch {batch}: deterministic operations cost {(ours - usual) * 1e3:+,.1f} ms a step.'
            )
    return said


TEXT = """# {card}

{count} device(s) ({card}), driver {driver}, jax {jax}, {date}. XAE, ViT-{size}, {platform}.

    {command}

`train step`: what `pretrain` runs, input preparation included, on random records. `race`: model, loss and
AdamW alone, as in `bench race`; neither side prepares its input there, so these rows compare with each other
and not with `train step`. Times: medians of ten steps. MFU: analytic operations over the peak of the data
sheet. GiB: what {held}. Compile: in the race the whole first step. Modelled: the
roofline of the same compiled program, a floor. A program that was compiled before comes from a cache.

{table}

{conclusions}
"""


def report(rows: list[Row], about: dict[str, Any]) -> str:
    """The file of results."""
    said = '\n'.join(f'- {line}' for line in conclusions(rows)) or 'No two rows to compare.'
    return TEXT.format(**about, table='\n'.join(table(rows)), conclusions=said)


def driver() -> str:
    """Version of the NVIDIA driver, or a dash."""
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return '-'
    return (done.stdout.splitlines() or ['-'])[0].strip()


def options(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--budget', type=float, default=600, help='seconds for everything')
    parser.add_argument('--platform', choices=('gpu', 'cpu'), default='gpu')
    parser.add_argument('--size', choices=('tiny', 'S', 'B', 'L'), default='B')
    parser.add_argument('--only', default='', help='kinds of parts, such as step,race')
    parser.add_argument('--results', type=Path, default=ROOT / 'benchmarks' / 'results')
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Measures, prints and writes the table; returns 1 if a part failed."""
    given, begin = options(words), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        cache = {'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache'}
        common = {'platform': given.platform, 'size': given.size, 'data': folder}
        base = {**os.environ, **cache, 'JAX_PLATFORMS': 'cpu' if given.platform == 'cpu' else 'cuda,cpu'}

        def run(part: Part, limit: float) -> dict[str, Any]:
            job = common | {
                'kind': part.kind,
                'batch': part.batch,
                'settings': part.settings,
                'name': part.name,
            }
            return run_part(job, {**base, **dict(part.environment)}, limit)

        try:
            device = run(Part('device', 'device', 0), 120)
        except RuntimeError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
        chosen = parts(given.size)
        if given.only:
            chosen = [part for part in chosen if part.kind in ('data', *given.only.split(','))]
        rows = measure(chosen, given.budget - (time.monotonic() - begin), run)
    card = device['text']
    about = {
        'card': card,
        'count': device['count'],
        'driver': driver(),
        'jax': device['jax'],
        'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
        'size': given.size,
        'platform': given.platform,
        'command': shlex.join(['python', 'benchmarks/accelerator.py', *words]),
        'held': 'the device held at most' if given.platform == 'gpu' else 'was planned, or the process held',
    }
    text = report(rows, about)
    print(text)
    name = re.sub(r'\W+', '_', f'{card}{"" if given.size == "B" else f" {given.size}"}'.lower()).strip('_')
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f'{name}.md').write_text(text)
    return int(any(row.problem.startswith('failed') for row in rows))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
