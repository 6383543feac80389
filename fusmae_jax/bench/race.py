"""`python main.py bench race`: our train step and the PyTorch reference's, timed in one run.

Both get the same normalised images, masks, weights and compute type, and both do forward, backward and
AdamW. Each contender has a process of its own, so that neither holds the other's memory.
"""

import dataclasses
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.parallel.rules import Params

WARMUP, REPEATS = 3, 10
CONTENDERS = ('torch eager', 'torch.compile', 'fusmae_jax scan', 'fusmae_jax unrolled')


@dataclasses.dataclass(frozen=True)
class Lap:
    """What one contender needed."""

    device: str
    seconds: float  # median of a step
    first: float  # seconds of the first step, compilation included
    peak: int  # bytes held at most: device memory on a GPU, the process on CPU


def race(config: Config, sizes: list[int]) -> int:
    """Prints a line for each batch size and contender, with the ratio to eager PyTorch (above 1: faster)."""
    try:
        import torch
    except ImportError as error:
        raise InputError("bench race needs PyTorch: pip install -e '.[parity]'") from error
    threads = torch.get_num_threads()
    print(f'{config.name}, ViT-{config.model.size}, torch {torch.__version__}, {threads} threads')
    context = multiprocessing.get_context('spawn')
    for size in sizes or [config.train.batch_size]:
        eager = 0.0
        for name in CONTENDERS:
            pool = context.Pool(1)
            lap = pool.apply(_run, (name, config, size))
            pool.close()
            pool.join()
            # The first of CONTENDERS is eager PyTorch.
            eager = eager or lap.seconds
            print(
                f'batch {size} | {name:19} | {lap.device} | step {lap.seconds * 1e3:,.1f} ms | '
                f'{size / lap.seconds:,.1f} images/s | {eager / lap.seconds:.2f} x eager | '
                f'first step {lap.first:.1f} s | peak {lap.peak / 2**30:.2f} GiB'
            )
    return 0


def _run(name: str, config: Config, size: int) -> Lap:
    return (_torch if name.startswith('torch') else _ours)(name, config, size)


def _time(step: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of a step, and those of the first."""
    times = []
    for _ in range(1 + WARMUP + REPEATS):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return sorted(times[1 + WARMUP :])[REPEATS // 2], times[0]


def _held() -> int:
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _ours(name: str, config: Config, size: int) -> Lap:
    import jax
    import optax
    from flax import nnx

    from fusmae_jax.interop import sides
    from fusmae_jax.models import fusmae
    from fusmae_jax.train import losses
    from fusmae_jax.train.objective import Masked, error_sums
    from fusmae_jax.train.optimizer import make_optimizer, schedule
    from fusmae_jax.train.state import compute_dtype

    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan=name.endswith('scan')))
    dtype = compute_dtype(config)
    case = sides.make_case(config, size, 0)
    params = fusmae.init_params(config.model, jax.random.key(0), dtype)
    masked = sides.masked_case(config, case, dtype)
    graphdef = fusmae.graph(config.model, dtype)
    weights = {key: m.loss_weight for key, m in config.model.modalities.items()}
    optimizer = make_optimizer(config.optimizer, schedule(config.optimizer, 1000, size, size))

    def loss(params: Params, patches: Any, order: Any) -> Any:
        batch = Masked(patches, order, case.visible)
        predictions, _ = nnx.merge(graphdef, params)(patches, order, case.visible)
        return losses.combine(error_sums(config, batch, predictions)[0], weights)[0]

    def update(state: Any, patches: Any, order: Any) -> Any:
        params, moments = state
        value, grads = jax.value_and_grad(loss)(params, patches, order)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    compiled = jax.jit(update, donate_argnums=0)
    state: Any = (params, optimizer.init(params))

    def step() -> None:
        nonlocal state
        state, value = compiled(state, masked.patches, masked.order)
        jax.block_until_ready(value)

    seconds, first = _time(step)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return Lap(device.device_kind, seconds, first, stats.get('peak_bytes_in_use', _held()))


def _torch(name: str, config: Config, size: int) -> Lap:
    import jax
    import torch

    from fusmae_jax.interop import sides
    from fusmae_jax.interop.reference.train import make_optimizer
    from fusmae_jax.models import fusmae

    where = 'cuda' if torch.cuda.is_available() else 'cpu'
    low = config.train.compute_dtype == 'bfloat16' or (
        config.train.compute_dtype == 'auto' and where == 'cuda'
    )
    # On the CPU, so that the GPU holds nothing of jax beside the model that is timed.
    with jax.default_device(jax.devices('cpu')[0]):
        params = fusmae.init_params(config.model, jax.random.key(0))
        model = sides.torch_model(config, params, 'float32').to(where)
    case = sides.make_case(config, size, 0)
    images, ids, keep = sides.torch_inputs(case, 'float32')
    images, ids = ({key: x.to(where) for key, x in part.items()} for part in (images, ids))
    optimizer = make_optimizer(model, config.optimizer)
    forward = torch.compile(model) if name == 'torch.compile' else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(where, torch.bfloat16, enabled=low):
            loss, _ = forward(images, ids, keep)
        loss.backward()
        optimizer.step()
        if where == 'cuda':
            torch.cuda.synchronize()

    seconds, first = _time(step)
    cuda = where == 'cuda'
    peak = torch.cuda.max_memory_allocated() if cuda else _held()
    return Lap(torch.cuda.get_device_name() if cuda else 'cpu', seconds, first, peak)
