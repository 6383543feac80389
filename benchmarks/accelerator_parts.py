"""What `accelerator.py` measures: one part, in a process of its own. Prints a line `RESULT {...}`.

Heavy imports come late: the environment of the process decides on platform and kernels.
"""

import dataclasses
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS = 10
HALF = 3  # steps before the checkpoint of the resume, and after it
RECORDS = 128
# By --size: settings beside those of configs/pretrain.py:xae.
SIZES = {
    'S': ['model.size=S'],
    'B': [],
    'L': ['model.size=L'],
    'tiny': [
        *('model.size=tiny', 'model.image_size=(32,32)', 'model.patch_size=8'),
        *('model.decoder.width=16', 'model.decoder.heads=2'),
    ],
}


def settings(job: dict[str, Any]) -> Any:
    """The configuration of a part."""
    from fusmae_jax.config.build import build
    from fusmae_jax.config.files import load_config

    root = Path(__file__).resolve().parents[1]
    data = [f'data.path={job["data"]}/synthetic/1.0.0', 'data.train_split=train', 'data.val_split=']
    changes = [*SIZES[job['size']], *data, f'train.batch_size={job["batch"]}', *job['settings']]
    return build(load_config(f'{root}/configs/pretrain.py:xae', changes))


def data(job: dict[str, Any]) -> dict[str, Any]:
    """Random records of the layout of BigEarthNet-MM, read again and again by the other parts."""
    from fusmae_jax.shipped.data.synthetic import write

    write(job['data'], RECORDS)
    return {'text': f'{RECORDS} random records'}


def kernels(job: dict[str, Any]) -> dict[str, Any]:
    """The fused kernels against plain operations."""
    from fusmae_jax.models.kernels.check import check_kernels
    from fusmae_jax.train.state import compute_dtype

    config = settings(job)
    count = check_kernels(config, compute_dtype(config))
    return {'text': f'{count} kernels agree' if count else 'no kernel is selected here'}


def step(job: dict[str, Any]) -> dict[str, Any]:
    """The train step of a run, input preparation included."""
    from fusmae_jax.bench.step import measure_step
    from fusmae_jax.input.mixture import open_train

    config = settings(job)
    measured = measure_step(config, open_train(config), job['batch'])
    return {
        'seconds': measured.seconds,
        'mfu': measured.mfu,
        'memory': measured.planned if measured.peak is None else measured.peak,
        'first': measured.compile_seconds,
        'modelled': modelled(measured.compiled.as_text() or ''),
    }


def modelled(program: str, kind: str = '') -> float | None:
    """Seconds of the roofline of a compiled program; None where the figures of the device are not known."""
    import jax

    from fusmae_jax.plan.gpus import gpu_of
    from fusmae_jax.plan.hlo import read
    from fusmae_jax.plan.roofline import roofline

    gpu = gpu_of(kind or jax.devices()[0].device_kind)
    return roofline(read(program), gpu).total.seconds if gpu and program else None


def race(job: dict[str, Any]) -> dict[str, Any]:
    """A contender of `bench race`: model and optimizer without the preparation of the input."""
    from fusmae_jax.bench.contenders import SCANNED, UNROLLED, WARMUP, make, timed
    from fusmae_jax.train.flops import peak_flops, train_flops_per_image

    config, ours = settings(job), job['name'] in (SCANNED, UNROLLED)
    side = make(job['name'], config, job['batch'], job['platform'])
    first = timed(side.step).seconds
    for _ in range(WARMUP):
        side.step()
    seconds = statistics.median(timed(side.step).seconds for _ in range(ROUNDS))
    peak = peak_flops(side.device)
    flops = train_flops_per_image(config) * job['batch']
    return {
        'seconds': seconds,
        'mfu': flops / seconds / peak if peak else None,
        'memory': side.peak(),
        'first': first,
        'modelled': modelled(side.program()) if ours else None,
    }


def loader(job: dict[str, Any]) -> dict[str, Any]:
    """Reading and batching alone, on the host."""
    from fusmae_jax.bench.input import loader_rate
    from fusmae_jax.input.mixture import open_train

    config = settings(job)
    threads = os.cpu_count() or 1
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, threads=threads))
    rate = loader_rate(config, next(iter(open_train(config).sources.values())))
    return {'text': f'{rate:,.0f} records/s with {threads} threads'}


def whole(job: dict[str, Any]) -> dict[str, Any]:
    """Steps without a break, saved half way; the digest of the state after the last one."""
    times, digest = _train(job, 0)
    Path(job['data'], 'digest').write_text(digest)
    return {'seconds': statistics.median(times[1:]), 'text': f'digest {digest[:12]}'}


def resumed(job: dict[str, Any]) -> dict[str, Any]:
    """The second half from the checkpoint, compiled anew: the same state, bit for bit?"""
    file = Path(job['data'], 'digest')
    if not file.exists():
        raise RuntimeError('the run that is to be resumed did not end')
    times, digest = _train(job, HALF)
    if digest != file.read_text():
        raise RuntimeError(f'not bit-exact: digest {digest[:12]}, without a break {file.read_text()[:12]}')
    return {'seconds': statistics.median(times[1:]), 'text': 'bit-exact'}


def _train(job: dict[str, Any], start: int) -> tuple[list[float], str]:
    """Seconds of the steps from `start` on, and a digest of the state after step 2 * HALF."""
    import jax

    from fusmae_jax.bench.step import make_setup
    from fusmae_jax.checkpoints.checkpoints import Checkpoints
    from fusmae_jax.input import pipeline
    from fusmae_jax.input.mixture import open_train
    from fusmae_jax.parallel.mesh import batch_sharding

    config = settings(job)
    source = open_train(config)
    setup = make_setup(config, source.contract, len(source))
    sharding, times = batch_sharding(setup.mesh), []
    batches = source.batches(config.seed, sharding)
    compiled = setup.lower().compile()
    checkpoints = Checkpoints(f'{job["data"]}/resume', keep=1)
    state = checkpoints.restore(setup.abstract_state(), start) if start else setup.init_state()
    for index in range(start, 2 * HALF):
        if index == HALF and not start:
            checkpoints.save(state, {})
            checkpoints.wait()
        batch = pipeline.to_devices(batches[index], sharding, source.rows, setup.objective.fields)
        jax.block_until_ready(batch)
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begin)
    checkpoints.close()
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(state)):
        digest.update(leaf.tobytes())
    return times, digest.hexdigest()


def device(job: dict[str, Any]) -> dict[str, Any]:
    """What the other parts run on."""
    import jax

    first = jax.devices()[0]
    if first.platform != job['platform']:
        raise RuntimeError(
            f'jax finds {first.platform}, not {job["platform"]}: give --platform={first.platform}'
        )
    return {'text': first.device_kind, 'jax': jax.__version__, 'count': jax.device_count()}


KINDS = {f.__name__: f for f in (device, data, kernels, step, race, loader, whole, resumed)}


def main(text: str) -> int:
    """Runs the part that a JSON object describes."""
    job = json.loads(text)
    if job['platform'] == 'cpu':
        from fusmae_jax.bench.memory import keep_all_freed

        keep_all_freed()
    print('RESULT', json.dumps(KINDS[job['kind']](job)), flush=True)
    return 0


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main(sys.argv[1]))
