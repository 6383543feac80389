"""The contenders of the race: our train step and the PyTorch reference's, each in a process of its own.

Both get the same normalised images, masks, weights and compute type, and both do forward, backward and
AdamW. Neither prepares its input. Heavy imports come late, since a contender sets its memory up before them.
"""

import dataclasses
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from fusmae_jax.bench.memory import cpu_seconds, keep_all_freed, most_held
from fusmae_jax.config.run import Config

WARMUP = 3
EAGER, COMPILED = 'torch eager', 'torch.compile'
SCANNED, UNROLLED = 'fusmae_jax scan', 'fusmae_jax unrolled'


class Contender(NamedTuple):
    """Who races."""

    name: str
    keeps: bool = False  # whether its process keeps the memory that it frees


class Turn(NamedTuple):
    """One step."""

    seconds: float
    cpu: float  # user and system seconds


class Side(NamedTuple):
    """A contender in its process."""

    device: str
    step: Callable[[], None]  # returns when the step is done
    peak: Callable[[], int]  # bytes held at most: device memory on a GPU, the process on CPU
    program: Callable[[], str] = str  # the optimised HLO of a step that has run; '' of PyTorch's


def serve(line: Connection, contender: Contender, config: Config, size: int, platform: str) -> None:
    """Runs in a process of its own: the first steps, then one for each True that comes down the line.

    Sends the device and the first step when it is ready, a `Turn` for each step, and bytes at the end; the
    text of an error instead of any of them.
    """
    if contender.keeps:
        keep_all_freed()
    try:
        side = make(contender.name, config, size, platform)
        first = timed(side.step)
        for _ in range(WARMUP):
            side.step()
        line.send((side.device, first))
        while line.recv():
            line.send(timed(side.step))
        line.send(side.peak())
    except EOFError:
        pass  # whoever asked is gone
    except Exception as error:
        line.send(f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:200]}')


def timed(step: Callable[[], None]) -> Turn:
    """What a step took."""
    begin, cpu = time.perf_counter(), cpu_seconds()
    step()
    return Turn(time.perf_counter() - begin, cpu_seconds() - cpu)


def make(name: str, config: Config, size: int, platform: str) -> Side:
    """A contender by its name, for a batch of `size` on 'cpu', 'gpu' or 'tpu'."""
    if name in (EAGER, COMPILED):
        return _torch(name == COMPILED, config, size, platform)
    return _ours(name == SCANNED, config, size)


def _ours(scan: bool, config: Config, size: int) -> Side:
    import jax
    import optax
    from flax import nnx

    from fusmae_jax.interop import sides
    from fusmae_jax.models import fusmae
    from fusmae_jax.parallel.rules import Params
    from fusmae_jax.train import losses
    from fusmae_jax.train.objective import Masked, error_sums
    from fusmae_jax.train.optimizer import make_optimizer, schedule
    from fusmae_jax.train.state import compute_dtype

    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan=scan))
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

    state: Any = (params, optimizer.init(params))
    compiled: Any = None

    def step() -> None:
        nonlocal state, compiled
        inputs = state, masked.patches, masked.order
        compiled = compiled or jax.jit(update, donate_argnums=0).lower(*inputs).compile()
        state, value = compiled(*inputs)
        jax.block_until_ready((state, value))

    def peak() -> int:
        return (device.memory_stats() or {}).get('peak_bytes_in_use', most_held())

    device = jax.devices()[0]
    return Side(device.device_kind, step, peak, lambda: compiled.as_text() or '')


def _torch(compiled: bool, config: Config, size: int, platform: str) -> Side:
    import jax
    import torch

    from fusmae_jax.interop import sides
    from fusmae_jax.interop.reference.train import make_optimizer
    from fusmae_jax.models import fusmae

    cuda = platform == 'gpu'
    where, wanted = 'cuda' if cuda else 'cpu', config.train.compute_dtype
    low = wanted == 'bfloat16' or (wanted == 'auto' and cuda)
    # On the CPU, so that the GPU holds nothing of jax beside the model that is timed.
    with jax.default_device(jax.devices('cpu')[0]):
        params = fusmae.init_params(config.model, jax.random.key(0))
        model = sides.torch_model(config, params, 'float32').to(where)
    case = sides.make_case(config, size, 0)
    images, ids, keep = sides.torch_inputs(case, 'float32')
    images, ids = ({key: x.to(where) for key, x in part.items()} for part in (images, ids))
    optimizer = make_optimizer(model, config.optimizer)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(where, torch.bfloat16, enabled=low):
            loss, _ = forward(images, ids, keep)
        loss.backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()

    device = torch.cuda.get_device_name() if cuda else 'cpu'
    return Side(device, step, torch.cuda.max_memory_allocated if cuda else most_held)
